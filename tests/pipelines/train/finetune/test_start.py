"""Start a finetune from an adapter: its values and basis in the model, and what does not fit refused."""

import json
import shutil

import pytest
import torch
from tiny_base import make_transformer
from trained_adapter import make_subspace, trained

from asymflow.adapters import save_adapter
from asymflow.models.lifted import LatentModel
from asymflow.subspace import Subspace
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, validate
from pipelines.core.step import identify
from pipelines.train.finetune.card import model_card
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.export import sampling_defaults
from pipelines.train.finetune.model import build_model
from pipelines.train.finetune.start import basis_file, check_start, find_basis
from pipelines.train.finetune.step import STEP, with_absolute_paths

RANK = 4
TEXT_WIDTH = 96


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    make_transformer(TEXT_WIDTH).save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(trained(make_transformer(TEXT_WIDTH), rank=RANK), folder)
    return folder


def settings_of(base: str, **changes) -> FinetuneSettings:
    tree = {
        "curated": "x", "encoded": "x", "base": base, "lora": {"rank": RANK, "dropout": 0.0},
        "loss": {"perceptual": None}, **changes,
    }  # fmt: skip
    return validate(FinetuneSettings, tree)


@pytest.mark.parametrize("alpha", [None, 2 * RANK])
def test_training_starts_at_the_adapters_values(base, adapter, alpha):
    settings = settings_of(base, start_from=str(adapter), lora={"rank": RANK, "alpha": alpha, "dropout": 0.0})
    subspace = find_basis(settings, {})
    check_start(settings, subspace)
    model, expected = build_model(settings, subspace).eval(), trained(make_transformer(TEXT_WIDTH), rank=RANK)
    generator = torch.Generator().manual_seed(2)
    x_t, text = torch.randn(2, 3, 32, 48, generator=generator), torch.randn(2, 5, TEXT_WIDTH, generator=generator)
    sigma = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        torch.testing.assert_close(model(x_t, sigma, text), expected(x_t, sigma, text), rtol=1e-4, atol=1e-4)
        plain = build_model(settings_of(base, basis="x"), subspace).eval()(x_t, sigma, text)
    assert (plain - expected(x_t, sigma, text)).abs().max() > 0.1
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.trainable().values())


@pytest.mark.parametrize("layout", ["channel_first", "channel_last"])
def test_without_a_basis_it_is_the_adapters(base, adapter, tmp_path, layout):
    settings = settings_of(base, start_from=str(adapter), pixels={"layout": layout})
    subspace, own = find_basis(settings, {}), make_subspace()
    assert subspace.layout == layout
    assert subspace.s == pytest.approx(own.s)
    assert subspace.space == own.space
    assert torch.equal(subspace.A, own.A) == (layout == "channel_first")
    assert torch.equal(Subspace.load(basis_file(settings, {}, str(tmp_path))).A, subspace.A)
    check_start(settings, subspace)
    given = {"basis": Artifact(str(tmp_path / "basis"), {})}
    assert basis_file(settings, given, str(tmp_path)) == f"{tmp_path}/basis/subspace.safetensors"


def test_a_basis_of_the_same_subspace_is_accepted_and_another_refused(base, adapter):
    settings = settings_of(base, start_from=str(adapter), basis="runs/basis/1")
    check_start(settings, make_subspace())
    A = torch.linalg.qr(torch.randn(768, 128, generator=torch.Generator().manual_seed(9))).Q
    other = Subspace(A, 2.4, "channel_first", make_subspace().space)
    with pytest.raises(ConfigError, match="another basis than basis='runs/basis/1'; leave basis empty$"):
        check_start(settings, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 8}}, "its LoRA has rank 4, but lora.rank=8; set lora.rank=4$"),
        ({"lora": None}, "its LoRA has rank 4, but lora.rank=None; set lora.rank=4$"),
        ({"model": "ddt", "loss": {"kind": "flow_matching"}}, "it is an adapter of model=asymflow, but model=ddt$"),
        ({"start_from": "nowhere/at/all"}, "there is no adapter folder at nowhere/at/all$"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(base, adapter, changes, message):
    settings = settings_of(base, **{"start_from": str(adapter), "basis": "x", **changes})
    with pytest.raises(ConfigError, match=f"^start_from='{settings.start_from}': {message}") as error:
        check_start(settings, make_subspace())
    assert "\n" not in str(error.value)


def test_other_layers_and_another_transformer_are_refused(base, adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, tmp_path / "fewer")
    file = tmp_path / "fewer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "single_transformer_blocks" in name and "lora_A" in name)
    save_file({n: t for n, t in tensors.items() if n != name}, file, {"format": "pt"})
    settings = settings_of(base, start_from=str(tmp_path / "fewer"))
    with pytest.raises(ConfigError, match=f"1 tensors are missing: {name}$"):
        check_start(settings, make_subspace())
    shutil.copytree(base, tmp_path / "base")
    make_transformer(48).save_pretrained(tmp_path / "base/transformer")
    settings = settings_of(str(tmp_path / "base"), start_from=str(adapter))
    with pytest.raises(ConfigError, match="made for another model: joint_attention_dim is 96, the model's 48$"):
        check_start(settings, make_subspace())


def test_an_adapter_without_a_basis_needs_one(base, tmp_path):
    model = LatentModel.from_latent(make_transformer(TEXT_WIDTH), make_subspace())
    model.add_lora(RANK)
    save_adapter(model, tmp_path)
    settings = settings_of(base, start_from=str(tmp_path), model="latent", loss={"kind": "flow_matching"})
    with pytest.raises(ConfigError, match="lacks proj_buffer and scale_buffer: it is not an AsymFlow adapter$"):
        find_basis(settings, {})
    check_start(settings, make_subspace())


def test_a_basis_or_an_adapter_is_needed(base):
    with pytest.raises(ConfigError, match="basis: missing; give the artifact of the basis step, or start_from"):
        settings_of(base)


def test_the_artifact_is_identified_by_the_adapters_content(base, adapter, tmp_path):
    config = {"text": "stored", "latents": "stored"}
    inputs = {"curated": Artifact("c", {"id": "1"}), "encoded": Artifact("e", {"id": "2", "config": config})}
    copy, changed = (shutil.copytree(adapter, tmp_path / name) for name in ("copy", "changed"))
    (changed / "config.json").write_text((changed / "config.json").read_text() + " ")
    ids = [identify(STEP, settings_of(base, start_from=str(f)), inputs) for f in (adapter, copy, changed)]
    assert ids[0] == ids[1] != ids[2]
    with_basis = {**inputs, "basis": Artifact("b", {"id": "3"})}
    assert identify(STEP, settings_of(base, basis="x"), with_basis) not in ids
    assert "start_from" in STEP.repositories


def test_workers_get_an_absolute_path_and_the_card_names_the_adapter(base, adapter, monkeypatch):
    monkeypatch.chdir(adapter.parent)
    settings = with_absolute_paths(settings_of(base, start_from=adapter.name))
    assert settings.start_from == str(adapter)
    assert with_absolute_paths(settings_of(base, start_from="owner/name")).start_from == "owner/name"
    card = model_card(settings, make_subspace(), sampling_defaults(settings, (32, 32)))
    assert f"| started from | `{adapter.name}` |" in card
