"""A published checkpoint becomes an artifact that is loaded and evaluated as a trained one."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from asymflow.models.jit import JiTConfig
from asymflow.models.jit_checkpoints import read_published
from asymflow.models.jit_weights import BASIS, SCALE, published_shapes
from asymflow.subspace import random_basis
from pipelines.core.artifacts import load_artifact
from pipelines.core.config import ConfigError, validate
from pipelines.evaluate.class_subject import read_class_model
from pipelines.train.pretrain.config import ImportJitSettings
from pipelines.train.pretrain.imported import import_checkpoint
from pipelines.train.pretrain.model import load_pretrained

TINY = JiTConfig(
    width=32, depth=4, heads=2, bottleneck=20, context_from=1, context_tokens=3, patch_size=4, classes=5
)  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    """Call with a kind and shapes: a checkpoint of random weights."""

    def make(kind, config=TINY):
        generator = torch.Generator().manual_seed(0)
        shapes = published_shapes(config).items()
        tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes}
        if kind == "asymflow":
            tensors |= {BASIS: random_basis(config.patch_dim, 5).float().contiguous(), SCALE: torch.ones(())}
        save_file(tensors, tmp_path / f"{kind}.safetensors")
        return str(tmp_path / f"{kind}.safetensors")

    return make


def settings_for(tmp_path, path, **changes):
    tree = {"checkpoint": path, "context_from": 1, "run": {"storage": str(tmp_path / "runs")}, **changes}
    return validate(ImportJitSettings, tree)


@pytest.mark.parametrize(("kind", "noise_scale"), [("jit", None), ("jit", 2.0), ("asymflow", None)])
def test_an_imported_checkpoint_is_loaded_and_evaluated(tmp_path, checkpoint, kind, noise_scale):
    path = checkpoint(kind)
    settings = settings_for(tmp_path, path, noise_scale=noise_scale, guidance=2.2, steps=7)
    made = import_checkpoint(settings)
    assert made.uri == load_artifact(made.uri, "pretrain").uri
    assert made.step == "pretrain"
    x_t, sigma, labels = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.9]), torch.tensor([0, 5])
    with torch.no_grad():
        u = load_pretrained(made)(x_t, sigma, labels)
        expected = read_published(path, 1, noise_scale).build()(x_t, sigma, labels)
    assert torch.equal(u, expected)
    subject = read_class_model(made, None)
    assert (subject.defaults.height, subject.defaults.width) == (64, 64)  # 16 x 16 patches
    assert (subject.defaults.num_inference_steps, subject.defaults.guidance_scale) == (7, 2.2)
    assert subject.defaults.shift == (noise_scale or 1)
    assert ("noise_scale" in subject.parts) == (noise_scale == 2)
    assert import_checkpoint(settings).uri == made.uri  # found again, by content
    assert import_checkpoint(settings.model_copy(update={"guidance": 2.0})).uri != made.uri


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path, checkpoint):
    with pytest.raises(ConfigError, match="checkpoint: there is no checkpoint at .*absent.pth; JiT's are linked"):
        import_checkpoint(settings_for(tmp_path, str(tmp_path / "absent.pth")))
    with pytest.raises(ConfigError, match="checkpoint: .*not a published size.*give context_from"):
        import_checkpoint(settings_for(tmp_path, checkpoint("jit"), context_from=None))
    other = checkpoint("jit", replace(TINY, mlp_ratio=3.0))
    with pytest.raises(ConfigError, match="checkpoint: its mlp_ratio is 3.0.*; only 4 is supported"):
        import_checkpoint(settings_for(tmp_path, other))
    assert not (tmp_path / "runs").exists()
