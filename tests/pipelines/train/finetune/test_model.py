import json

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from finetune_settings import KINDS, TINY, settings_of

from asymflow.models.ddt import DdtFlux2
from asymflow.models.l2p import L2pModel
from asymflow.models.lifted import LatentModel, PixelModel
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.train.finetune.model import adapt, build_model

CLASSES = {"asymflow": PixelModel, "latent": LatentModel, "ddt": DdtFlux2, "l2p": L2pModel}
SMALL = {"lora": {"rank": 4, "dropout": 0.1}, "ddt": {"blocks": 1, "heads": 4, "head_width": 16}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pipeline folder with a tiny transformer alone."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    Flux2Transformer2DModel(**TINY).save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))
    return str(folder)


def subspace():
    return Subspace(torch.eye(768, 128), 1.0, "channel_first", RELEASED, {})


def settings(base, *kind, **sections):
    return settings_of(*kind, **SMALL, **sections).model_copy(update={"base": base})


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_model_of_the_settings_starts_the_same_everywhere(base, kind):
    first, second = (build_model(settings(base, *kind), subspace()) for _ in range(2))
    assert type(first) is CLASSES[kind[0]]
    assert first.training
    values = second.trainable()
    assert all(torch.equal(p, values[name]) for name, p in first.trainable().items())


def test_without_lora_three_modules_are_trained():
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**TINY)
    model = adapt(settings_of("latent", "flow_matching", lora=None), transformer, subspace())
    assert {name.split(".")[1] for name in model.trainable()} == {"x_embedder", "norm_out", "proj_out"}


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_base_has_the_precision_of_the_settings_and_trained_values_float32(base, precision):
    model = build_model(settings(base, resources={"precision": precision}), subspace())
    assert model.dtype == getattr(torch, precision)
    assert {p.dtype for p in model.trainable().values()} == {torch.float32}
