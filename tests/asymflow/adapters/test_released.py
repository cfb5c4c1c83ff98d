import json

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from released_file import released_shapes
from safetensors.torch import load_file, save_file

from asymflow.adapters import (
    CONFIG,
    SUBSPACE,
    WEIGHTS,
    adapter_config,
    load_adapter,
    read_adapter,
    released_name,
    save_adapter,
    to_released,
)
from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import LatentFlux2, PixelFlux2
from asymflow.models.geometry import KLEIN_9B
from asymflow.oklab import RELEASED
from asymflow.patches import layout_order
from asymflow.subspace import Subspace

BUFFERS = {"proj_buffer", "scale_buffer"}


def make_subspace(seed=0, s=2.4, layout="channel_first"):
    A = torch.linalg.qr(torch.randn(768, 128, generator=torch.Generator().manual_seed(seed))).Q
    return Subspace(A, s, layout, RELEASED, {"method": "random"})


@pytest.fixture
def make(tiny_transformer):
    """Call for a tiny model whose trained values are all random."""

    def make(cls=PixelFlux2, subspace=None, seed=1, rank=4, alpha=None, **head):
        model = cls.from_latent(tiny_transformer(96), subspace or make_subspace(), **head)
        model.add_lora(rank, alpha, dropout=0.0)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return make


@pytest.fixture(scope="module")
def klein():
    """FLUX.2 klein Base 9B lifted, without values."""
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**KLEIN_9B)
    model = PixelFlux2.from_latent(transformer, make_subspace())
    with torch.device("meta"):
        model.add_lora(256)
    return model


def test_names_shapes_and_types_are_the_released_files(klein):
    tensors = to_released(klein.trainable(), klein.subspace)
    assert len(tensors) == 121
    assert sum(t.numel() for t in tensors.values()) == 353_533_953
    assert len({released_name(name) for name in klein.trainable()}) == len(klein.trainable()) == 119
    types = {"proj_buffer": torch.bfloat16, "scale_buffer": torch.bfloat16}
    expected = {name: (shape, types.get(name, torch.float16)) for name, shape in released_shapes().items()}
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == expected


def test_config_is_the_released_one(klein):
    assert adapter_config("asymflow", klein.transformer.config, klein.subspace) == {
        "_class_name": "AsymFlux2Transformer2DModel",
        "in_channels": 3,
        "patch_size": 16,
        "base_rank": 128,
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "attention_head_dim": 128,
        "joint_attention_dim": 12288,
        "timestep_guidance_channels": 256,
        "axes_dims_rope": [32, 32, 32, 32],
        "rope_theta": 2000,
        "mlp_ratio": 3.0,
        "guidance_embeds": False,
        "num_timesteps": 1,
        "eps": 1e-6,
        "sigma_min": 1e-4,
    }


def test_config_of_a_base_that_leaves_defaults_out():
    few = {"num_layers": 8, "guidance_embeds": False}
    assert adapter_config("asymflow", few, make_subspace())["num_single_layers"] == 48


@pytest.mark.parametrize(
    ("cls", "head"),
    [(PixelFlux2, {}), (LatentFlux2, {}), (DdtFlux2, {"blocks": 1, "heads": 2, "head_width": 8})],
)
def test_round_trip_is_exact(make, tmp_path, cls, head):
    saved, loaded = make(cls, **head), make(cls, seed=2, **head)
    save_adapter(saved, tmp_path / "a")
    load_adapter(loaded, tmp_path / "a")
    save_adapter(loaded, tmp_path / "b")
    values = loaded.trainable()
    for name, value in saved.trainable().items():
        assert torch.equal(values[name], value.half().float()), name
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    written = set(load_file(tmp_path / "a" / WEIGHTS))
    assert (BUFFERS & written) == (set() if cls is LatentFlux2 else BUFFERS)
    assert any(name.startswith("head.") for name in written) == (cls is DdtFlux2)


def test_files_hold_the_subspace_twice(make, tmp_path):
    """Rounded, as the released files have it, and whole, as it has to be used."""
    model = make()
    save_adapter(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([WEIGHTS, CONFIG, SUBSPACE])
    tensors, subspace = load_file(tmp_path / WEIGHTS), Subspace.load(tmp_path / SUBSPACE)
    assert torch.equal(tensors["proj_buffer"], model.A.bfloat16())
    assert torch.equal(subspace.A, model.A)
    assert tensors["scale_buffer"].shape == ()
    assert tensors["scale_buffer"] == torch.tensor(2.4).bfloat16()
    before = model.A.clone()
    load_adapter(model, tmp_path)
    assert model.A.dtype == torch.float32
    assert torch.equal(model.A, before)


def test_loaded_model_gives_the_same_velocity(make, tmp_path):
    saved, loaded = make(), make(seed=2)
    with torch.no_grad():
        for parameter in saved.trainable().values():
            parameter.copy_((0.05 * parameter).half())
    save_adapter(saved, tmp_path)
    load_adapter(loaded, tmp_path)
    inputs = torch.randn(1, 3, 32, 32), torch.tensor([0.5]), torch.randn(1, 3, 96)
    with torch.no_grad():
        assert torch.equal(saved(*inputs), loaded(*inputs))


@pytest.mark.parametrize(("alpha", "scale"), [(8, 2.0), (2, 0.5), (3, 0.75)])
def test_alpha_is_folded_into_b(make, tmp_path, alpha, scale):
    saved, plain = make(rank=4, alpha=alpha), make(rank=4, seed=2)
    save_adapter(saved, tmp_path / "a")
    load_adapter(plain, tmp_path / "a")
    for name, value in saved.trainable().items():
        expected = (value * scale if ".lora_B." in name else value).half().float()
        assert torch.equal(plain.trainable()[name], expected), name
    scaled = make(rank=4, alpha=alpha, seed=3)
    load_adapter(scaled, tmp_path / "a")
    save_adapter(scaled, tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_file_is_channel_first_whatever_the_model(make, tmp_path):
    first, last = make_subspace(), make_subspace(layout="channel_last")
    order = layout_order(16, "channel_first", "channel_last")
    twin = Subspace(first.A[order], first.s, "channel_last", RELEASED, {})
    model, other = make(subspace=first), make(subspace=twin, seed=2)
    save_adapter(model, tmp_path / "a")
    load_adapter(other, tmp_path / "a")
    weight = model.transformer.x_embedder.weight.half().float()
    assert torch.equal(other.transformer.x_embedder.weight, weight[:, order])
    assert torch.equal(other.transformer.proj_out.weight, model.transformer.proj_out.weight.half().float()[order])
    save_adapter(other, tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match="another basis"):
        load_adapter(make(subspace=last), tmp_path / "a")


@pytest.mark.parametrize("value", [7e4, float("inf"), float("nan")])
def test_value_that_float16_cannot_hold(make, tmp_path, value):
    model = make()
    with torch.no_grad():
        model.transformer.proj_out.weight[3, 5] = value
    with pytest.raises(ValueError, match="proj_out.weight has values that float16 cannot represent"):
        save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def refuses(model, folder, *parts):
    before = {name: value.clone() for name, value in model.trainable().items()}
    with pytest.raises(ValueError) as caught:
        load_adapter(model, folder)
    for part in parts:
        assert part in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.trainable().items())


def test_another_basis_is_refused(make, tmp_path):
    save_adapter(make(), tmp_path)
    refuses(make(subspace=make_subspace(seed=5)), tmp_path, "proj_buffer belongs to another basis than the model's")
    refuses(make(subspace=make_subspace(s=2.5)), tmp_path, "scale_buffer belongs to another basis than the model's")


def test_another_model_is_refused(make, tmp_path, tiny_transformer):
    save_adapter(make(), tmp_path)
    refuses(make(LatentFlux2), tmp_path, "_class_name is 'AsymFlux2Transformer2DModel'", "made for another model")
    bare = PixelFlux2.from_latent(tiny_transformer(96), make_subspace())
    refuses(bare, tmp_path, "14 tensors are not the model's", "the model has no LoRA: call add_lora first")
    refuses(make(rank=2), tmp_path, "14 tensors are of another shape", "is [4, 32], not [2, 32]")
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "num_layers": 8, "joint_attention_dim": 12288}))
    refuses(make(), tmp_path, "num_layers is 8, the model's 1; joint_attention_dim is 12288, the model's 96")


def test_another_sampling_floor_is_accepted(make, tmp_path):
    saved, loaded = make(), make(seed=2)
    saved.sigma_floor_sample = 4e-2
    save_adapter(saved, tmp_path)
    assert read_adapter(tmp_path)[1]["sigma_min"] == 4e-2
    load_adapter(loaded, tmp_path)
    assert loaded.sigma_floor_sample == 1e-4


def test_missing_and_foreign_tensors_are_counted_in_one_error(make, tmp_path):
    save_adapter(make(), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    loras = sorted(name for name in tensors if ".lora_A." in name)
    changed = {name: tensor for name, tensor in tensors.items() if name not in loras}
    changed |= {"alpha": torch.ones(1), "norm_out.linear.weight": torch.ones(3, 3)}
    save_file(changed, tmp_path / WEIGHTS)
    refuses(
        make(),
        tmp_path,
        f"7 tensors are missing: {', '.join(loras)};",
        "1 tensors are not the model's: alpha",
        "1 tensors are of another shape: norm_out.linear.weight is [3, 3], not [64, 32]",
    )
    save_file(changed | {f"alpha_{i}": torch.ones(1) for i in range(8)}, tmp_path / WEIGHTS)
    listed = ", ".join(["alpha", *(f"alpha_{i}" for i in range(7))])
    refuses(make(), tmp_path, f"9 tensors are not the model's: {listed}, ...;")
    save_file({**tensors, "proj_out.weight": tensors["proj_out.weight"] / 0}, tmp_path / WEIGHTS)
    refuses(make(), tmp_path, "proj_out.weight hold NaN or infinite values")


def test_missing_and_damaged_files(make, tmp_path):
    refuses(make(), tmp_path, f"there is no adapter in {tmp_path}", WEIGHTS, CONFIG)
    save_adapter(make(), tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"nonsense")
    refuses(make(), tmp_path, f"the adapter in {tmp_path} cannot be read")
