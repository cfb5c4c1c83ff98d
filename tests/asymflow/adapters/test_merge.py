import json

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from released_file import released_shapes
from safetensors.torch import load_file, save_file
from trained_adapter import make_subspace, trained, velocities

from asymflow.adapters import CONFIG, SUBSPACE, WEIGHTS, load_merged, merge, save_adapter, to_released
from asymflow.adapters.merge import expected_shapes
from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import LatentFlux2, PixelFlux2
from asymflow.models.geometry import KLEIN_9B
from asymflow.models.pixel import AsymFlux2Transformer2DModel
from asymflow.models.quantized import quantize_linears
from asymflow.oklab import RELEASED


def own_settings(model):
    """As they are written: JSON has no tuples."""
    return json.loads(json.dumps({name: value for name, value in model.config.items() if name[0] != "_"}))


@pytest.mark.parametrize(
    ("layout", "rank", "alpha"),
    [("channel_first", 4, None), ("channel_first", 4, 8), ("channel_last", 4, None), ("channel_first", 0, None)],
)
def test_the_merged_model_is_the_trained_one(tmp_path, tiny_transformer, layout, rank, alpha):
    model = trained(tiny_transformer(96), layout=layout, rank=rank, alpha=alpha)
    save_adapter(model, tmp_path)
    merged, subspace = load_merged(tiny_transformer(96), tmp_path)
    assert subspace.layout == "channel_first"
    assert not any("lora" in name for name in merged.state_dict())
    expected, found = velocities(model, merged)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_a_quantized_base_is_refused(tmp_path, tiny_transformer):
    model, base = trained(tiny_transformer(96, head_width=32)), tiny_transformer(96, head_width=32)
    save_adapter(model, tmp_path)
    quantize_linears(base, ["transformer_blocks.0.attn.to_q"])
    with pytest.raises(ValueError, match="does not fit the base: it is quantized, .*attach it, or give a full base"):
        load_merged(base, tmp_path)


def test_merged_model_before_training_is_the_lift(tiny_transformer):
    model = PixelFlux2.from_latent(tiny_transformer(96), make_subspace()).eval()
    expected, found = velocities(model, AsymFlux2Transformer2DModel.from_latent(tiny_transformer(96), make_subspace()))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_merged_model_is_saved_and_loaded_by_diffusers(tmp_path, tiny_transformer):
    save_adapter(trained(tiny_transformer(96)), tmp_path / "adapter")
    merged, _ = load_merged(tiny_transformer(96), tmp_path / "adapter")
    merged.save_pretrained(tmp_path / "model")
    again = AsymFlux2Transformer2DModel.from_pretrained(tmp_path / "model")
    assert own_settings(again) == own_settings(merged)
    assert again.config.in_channels == 3
    assert again.config.patch_size == 16
    assert again.config.base_rank == 128
    assert all(torch.equal(again.state_dict()[name], value) for name, value in merged.state_dict().items())


def test_an_adapter_of_the_released_names_and_the_9b_shapes_maps_one_to_one():
    with torch.device("meta"):
        base = Flux2Transformer2DModel(**KLEIN_9B)
        tensors = {name: torch.empty(shape, dtype=torch.float16) for name, shape in released_shapes().items()}
    subspace = make_subspace()
    found = expected_shapes(dict(base.named_parameters()), tensors, subspace)
    assert found == {name: torch.Size(shape) for name, shape in released_shapes().items()}
    assert len(found) == 121
    with torch.device("meta"):
        whole = AsymFlux2Transformer2DModel(oklab_mean=list(RELEASED.mean), oklab_std=RELEASED.std)
    merged = merge(base, tensors, subspace)
    assert own_settings(merged) == own_settings(whole)
    assert {n: t.shape for n, t in merged.state_dict().items()} == {n: t.shape for n, t in whole.state_dict().items()}
    reached = {name.split(".lora_")[0] + ".weight" for name in tensors if ".lora_" in name}
    assert reached <= whole.state_dict().keys()
    assert len(reached) == 58


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("proj_out.weight"), "1 tensors are missing: proj_out.weight"),
        (lambda t: t.update(strange=torch.ones(2)), "1 tensors are not the model's: strange"),
        (
            lambda t: t.update({"x_embedder.weight": torch.ones(32, 512)}),
            r"x_embedder.weight is \[32, 512\], not \[32, 768\]",
        ),
        (lambda t: t["proj_out.weight"].fill_(torch.nan), "proj_out.weight hold NaN"),
        (lambda t: t.update({next(n for n in t if "lora_A" in n): torch.ones(5, 32)}), "of another shape"),
        (
            lambda t: [t.pop(n) for n in list(t) if "single" in n],
            "2 tensors are missing: single_transformer",
        ),
        (lambda t: t.pop("scale_buffer"), "lacks scale_buffer"),
    ],
)
def test_damaged_adapters_are_refused_and_change_nothing(tmp_path, tiny_transformer, change, named):
    save_adapter(trained(tiny_transformer(96)), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    base = tiny_transformer(96)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        load_merged(base, tmp_path)
    assert all(torch.equal(base.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("cls", [LatentFlux2, DdtFlux2])
def test_adapters_of_baselines_cannot_be_merged(tmp_path, tiny_transformer, cls):
    head = {"blocks": 1, "heads": 1, "head_width": 16} if cls is DdtFlux2 else {}
    save_adapter(trained(tiny_transformer(96), cls, **head), tmp_path)
    with pytest.raises(ValueError, match="lacks proj_buffer" if cls is LatentFlux2 else "_class_name is 'Ddt"):
        load_merged(tiny_transformer(96), tmp_path)


def test_merging_in_half_precision_rounds_once(tiny_transformer):
    model = trained(tiny_transformer(96))
    tensors = to_released(model.trainable(), model.subspace)
    exact = merge(tiny_transformer(96), tensors, model.subspace).state_dict()
    half = merge(tiny_transformer(96).bfloat16(), tensors, model.subspace).state_dict()
    name = "single_transformer_blocks.0.attn.to_out.weight"
    assert half[name].dtype == torch.bfloat16
    assert half["proj_buffer"].dtype == torch.float32
    assert (half[name].float() - exact[name]).abs().max() < 2**-7 * exact[name].abs().max()


def test_files_of_the_folder(tmp_path, tiny_transformer):
    save_adapter(trained(tiny_transformer(96)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, CONFIG, SUBSPACE}
