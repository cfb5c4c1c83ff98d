"""Published checkpoints against an independent network that reads their own names, in float64."""

import argparse
import math
import zipfile
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from asymflow.models.jit import SIZES, JiT, JiTConfig, PixelJiT
from asymflow.models.jit_checkpoints import EMA, read_published
from asymflow.models.jit_positions import positions, wave
from asymflow.models.jit_weights import (
    BASIS,
    SCALE,
    from_published,
    infer_config,
    published_name,
    published_shapes,
    reflection,
    to_published,
)
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace, random_basis

NAMES = [f"JiT-{size}/{patch}" for size in SIZES for patch in (16, 32)]
TINY = JiTConfig(
    width=32, depth=4, heads=2, bottleneck=20, context_from=1, context_tokens=3, patch_size=4, classes=5
)  # fmt: skip
SIDE = 12
"""Of the images, in pixels"""


def published_config(name: str) -> JiTConfig:
    """Shapes of JiT-SIZE/PATCH."""
    size, patch = name.removeprefix("JiT-").split("/")
    return replace(SIZES[size], patch_size=int(patch))


def tiny_of(name: str) -> JiTConfig:
    """Depth, heads and context of a published size, all else small."""
    config, patch = published_config(name), 2 if name.endswith("16") else 4
    small = {"bottleneck": 8, "classes": 5, "context_tokens": 3, "patch_size": patch}
    return replace(config, width=4 * config.heads, **small)


def random_tensors(config: JiTConfig, kind: str, rank: int = 5, seed: int = 0) -> dict:
    """A published file of random float64 weights: at initialization, its zeros would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    spread = 1 / math.sqrt(config.width)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * spread
        for name, shape in published_shapes(config).items()
    }
    for name in tensors:
        if "norm" in name:
            tensors[name] += 1
    if kind == "asymflow":
        tensors |= {BASIS: random_basis(config.patch_dim, rank, seed), SCALE: torch.tensor(1.0, dtype=torch.float64)}
    return tensors


def batch(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return x_t, torch.tensor([0.07, 0.4, 0.97]).double(), torch.tensor([0, 4, 5])


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def rms_norm(tensors, name, x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * tensors[f"{name}.weight"]


def turned(x, angles):
    """Multiply pairs of values, as complex numbers, by e^(i angle)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def published_network(tensors, config: JiTConfig, x, t, y):
    """The published network by its own names: a convolution, attention written out, complex rotations."""
    side = x.shape[-1] // config.patch_size
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float64) / 128)
    angles = t[:, None] * frequencies
    time = linear(tensors, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    time = linear(tensors, "t_embedder.mlp.2", F.silu(time))
    label = tensors["y_embedder.embedding_table.weight"][y]
    condition = F.silu(time + label)
    x = F.conv2d(x, tensors["x_embedder.proj1.weight"], stride=config.patch_size)
    x = F.conv2d(x, tensors["x_embedder.proj2.weight"], tensors["x_embedder.proj2.bias"])
    x = x.flatten(2).transpose(1, 2) + positions(config.width, (side, side), x.device)
    pairs = config.head_width // 4
    steps = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    row, column = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    turns = torch.cat([row.reshape(-1, 1) * steps, column.reshape(-1, 1) * steps], dim=1)
    for i in range(config.depth):
        if config.context_tokens and i == config.context_from:
            x = torch.cat([label[:, None] + tensors["in_context_posemb"], x], dim=1)
            turns = torch.cat([torch.zeros(config.context_tokens, 2 * pairs).double(), turns])
        block = f"blocks.{i}"
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
            part[:, None] for part in linear(tensors, f"{block}.adaLN_modulation.1", condition).chunk(6, dim=1)
        )
        inner = rms_norm(tensors, f"{block}.norm1", x) * (1 + scale_1) + shift_1
        heads = linear(tensors, f"{block}.attn.qkv", inner).unflatten(-1, (3, config.heads, -1))
        q, k, v = (heads[:, :, j].transpose(1, 2) for j in range(3))
        q, k = turned(rms_norm(tensors, f"{block}.attn.q_norm", q), turns), turned(
            rms_norm(tensors, f"{block}.attn.k_norm", k), turns
        )  # fmt: skip
        mixed = torch.softmax(q @ k.mT / math.sqrt(config.head_width), dim=-1) @ v
        x = x + gate_1 * linear(tensors, f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
        inner = rms_norm(tensors, f"{block}.norm2", x) * (1 + scale_2) + shift_2
        gate, value = linear(tensors, f"{block}.mlp.w12", inner).chunk(2, dim=-1)
        x = x + gate_2 * linear(tensors, f"{block}.mlp.w3", F.silu(gate) * value)
    if config.context_tokens:
        x = x[:, config.context_tokens :]
    shift, scale = (part[:, None] for part in linear(tensors, "final_layer.adaLN_modulation.1", condition).chunk(2, 1))
    x = linear(tensors, "final_layer.linear", rms_norm(tensors, "final_layer.norm_final", x) * (1 + scale) + shift)
    x = x.view(-1, side, side, config.patch_size, config.patch_size, 3)
    return torch.einsum("bhwpqc->bchpwq", x).reshape(len(x), 3, SIDE, SIDE)


def published_velocity(tensors, config: JiTConfig, kind: str, x_t, sigma, y):
    """u by the published conventions: JiT's x_0 from the time of the data, or AsymFlow's u_A from sigma, recovered."""
    wide = sigma[:, None, None, None]
    if kind == "jit":
        return (x_t - published_network(tensors, config, x_t, 1 - sigma, y)) / wide
    p, A = config.patch_size, tensors[BASIS]

    def inside(images):
        cut = images.unflatten(2, (-1, p)).unflatten(-1, (-1, p))  # (B, c, h, p, w, q)
        tokens = cut.permute(0, 2, 4, 3, 5, 1).flatten(3)
        tokens = tokens @ A @ A.T
        return tokens.unflatten(3, (p, p, 3)).permute(0, 5, 1, 3, 2, 4).reshape(images.shape)

    u_a = published_network(tensors, config, x_t, sigma, y)
    return inside(u_a) + (x_t - inside(x_t) + u_a - inside(u_a)) / wide


def pixel_model(tensors, config: JiTConfig, kind: str, noise_scale: float = 1.0) -> PixelJiT:
    A = tensors.get(BASIS, torch.eye(config.patch_dim, 0))
    model = PixelJiT(config, Subspace(A.float(), 1.0, "channel_last", SrgbSpace()), noise_scale=noise_scale).double()
    model.network.load_state_dict(from_published(tensors, config, kind))
    model.A = A.double()
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_of_every_published_size(name):
    config = published_config(name)
    shapes = published_shapes(config)
    layers = ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3", "adaLN_modulation.1")
    block = {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    block |= {f"{norm}.weight" for norm in ("norm1", "norm2", "attn.q_norm", "attn.k_norm")}
    expected = {f"blocks.{i}.{leaf}" for i in range(config.depth) for leaf in block}
    whole = ("x_embedder.proj2", "t_embedder.mlp.0", "t_embedder.mlp.2")
    whole += ("final_layer.linear", "final_layer.adaLN_modulation.1")
    expected |= {f"{layer}.{leaf}" for layer in whole for leaf in ("weight", "bias")}
    expected |= {"x_embedder.proj1.weight", "y_embedder.embedding_table.weight", "in_context_posemb"}
    expected |= {"final_layer.norm_final.weight"}
    assert set(shapes) == expected
    width, patch, hidden = config.width, int(name.split("/")[1]), int(config.width * 8 / 3)
    assert shapes["x_embedder.proj1.weight"] == (config.bottleneck, 3, patch, patch)
    assert shapes["x_embedder.proj2.weight"] == (width, config.bottleneck, 1, 1)
    assert shapes["in_context_posemb"] == (1, 32, width)
    assert shapes["y_embedder.embedding_table.weight"] == (1001, width)
    assert shapes["final_layer.linear.weight"] == (3 * patch**2, width)
    assert shapes[f"blocks.{config.depth - 1}.mlp.w12.weight"] == (2 * hidden, width)
    assert shapes["blocks.0.attn.q_norm.weight"] == (width // config.heads,)
    assert sum(shape.numel() for shape in shapes.values()) == config.parameters
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert infer_config(meta) == config


@pytest.mark.parametrize("kind", ["jit", "asymflow"])
@pytest.mark.parametrize("name", NAMES)
def test_the_velocity_is_the_published_network_s_for_every_published_size(name, kind):
    config = tiny_of(name)
    tensors = random_tensors(config, kind)
    x_t, sigma, labels = batch()
    with torch.no_grad():
        u = pixel_model(tensors, config, kind)(x_t, sigma, labels)
    expected = published_velocity(tensors, config, kind, x_t, sigma, labels)
    assert float((u - expected).abs().max()) < 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("kind", ["jit", "asymflow"])
@pytest.mark.parametrize("changes", [{}, {"context_tokens": 0, "context_from": 0}, {"mlp_ratio": 3.0, "heads": 4}])
def test_other_shapes_are_converted_too(changes, kind):
    config = replace(TINY, **changes)
    tensors = random_tensors(config, kind)
    found = infer_config(tensors, config.context_from)
    assert replace(found, mlp_ratio=config.mlp_ratio) == config and found.hidden == config.hidden
    x_t, sigma, labels = batch()
    with torch.no_grad():
        u = pixel_model(tensors, found, kind)(x_t, sigma, labels)
    torch.testing.assert_close(u, published_velocity(tensors, config, kind, x_t, sigma, labels), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["jit", "asymflow"])
@pytest.mark.parametrize("name", NAMES)
def test_a_round_trip_gives_the_file_back(name, kind):
    config = tiny_of(name)
    tensors = {key: value.float() for key, value in random_tensors(config, kind).items() if key not in (BASIS, SCALE)}
    values = from_published(tensors, config, kind)
    with torch.device("meta"):
        assert {key: value.shape for key, value in values.items()} == {
            key: parameter.shape for key, parameter in JiT(config).named_parameters()
        }
    back = to_published(values, config, kind)
    assert set(back) == set(tensors)
    changed = {published_name("time.0.weight")} if kind == "asymflow" else set()
    for key, value in tensors.items():
        if key in changed:  # two rotations, rounded to float32
            torch.testing.assert_close(back[key], value, atol=1e-6, rtol=1e-5)
            assert not torch.allclose(values["time.0.weight"], value, atol=0.1)
        else:
            assert torch.equal(back[key], value), key


def test_the_reflection_turns_the_time_around():
    R, t = reflection(), torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wave(1 - t), wave(t) @ R.T, rtol=0, atol=1e-13)
    torch.testing.assert_close(R @ R, torch.eye(256).double(), rtol=0, atol=1e-14)
    assert torch.equal(R, R.T)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_noise_scale_gives_the_network_the_sample_that_it_was_trained_on(scale):
    tensors = random_tensors(TINY, "jit")
    noise, _, labels = batch(seed=2)
    x_0, _, _ = batch(seed=3)
    t = torch.tensor([0.05, 0.5, 0.9]).double()[:, None, None, None]
    x_0_hat = published_network(tensors, TINY, t * x_0 + (1 - t) * scale * noise, t.flatten(), labels)
    sigma = scale * (1 - t) / (t + scale * (1 - t))  # the same ratio of noise to data
    x_t = (1 - sigma) * x_0 + sigma * noise
    with torch.no_grad():
        u = pixel_model(tensors, TINY, "jit", scale)(x_t, sigma.flatten(), labels)
    torch.testing.assert_close(x_t - sigma * u, x_0_hat, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="noise_scale is 0; it must be above 0"):
        pixel_model(tensors, TINY, "jit", 0)


def file_of(tmp_path, kind="jit", config=TINY, dtype=torch.float32, name="file.safetensors", **changes):
    tensors = random_tensors(config, kind) | changes
    tensors = {key: value.to(dtype).contiguous() for key, value in tensors.items() if value is not None}
    save_file(tensors, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["jit", "asymflow"])
def test_a_file_is_read_with_its_constants_and_its_basis(tmp_path, kind, dtype):
    rows = SIDE // TINY.patch_size
    fixed = positions(TINY.width, (rows, rows), torch.device("cpu"))[None]
    constants = {"feat_rope.base_rope.freqs_cos": torch.ones(9, 8), "x_embedder.pos_embed": fixed}
    found = read_published(file_of(tmp_path, kind, dtype=dtype, **constants), context_from=TINY.context_from)
    assert found.kind == kind and found.config == TINY and found.side == SIDE and found.noise_scale == 1
    rounded = {key: value.to(dtype).double() for key, value in random_tensors(TINY, kind).items()}
    if kind == "asymflow":
        assert found.subspace.rank == 5 and found.subspace.space == SrgbSpace()
        assert float((found.subspace.A - rounded[BASIS]).abs().max()) < 5e-3
        rounded[BASIS] = found.subspace.A.double()
    else:
        assert found.subspace.rank == 0
    x_t, sigma, labels = batch()
    with torch.no_grad():
        u = found.build()(x_t.float(), sigma.float(), labels)
    expected = published_velocity(rounded, TINY, kind, x_t, sigma, labels)
    assert float((u - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_a_pth_of_jit_gives_its_first_moving_average(tmp_path):
    sets = {entry: random_tensors(TINY, "jit", seed=i) for i, entry in enumerate(("model", EMA, "model_ema2"))}
    content = {entry: {f"net.{key}": v.float() for key, v in tensors.items()} for entry, tensors in sets.items()}
    path = tmp_path / "checkpoint-last.pth"
    torch.save({**content, "epoch": 3, "args": argparse.Namespace(model="JiT-B/16")}, path)
    for entry in (EMA, "model"):
        values = read_published(path, TINY.context_from, entry=entry).values
        torch.testing.assert_close(values["label.weight"].double(), sets[entry]["y_embedder.embedding_table.weight"])
    with pytest.raises(ValueError, match="has no weights 'ema'; it has model, model_ema1, model_ema2"):
        read_published(path, TINY.context_from, entry="ema")


@pytest.mark.parametrize(("patch", "scale"), [(8, 1.0), (16, 1.0), (32, 2.0), (64, 4.0)])
def test_jit_of_larger_patches_has_its_published_noise(tmp_path, patch, scale):
    config = replace(TINY, patch_size=patch)
    assert read_published(file_of(tmp_path, config=config), 1).noise_scale == scale
    assert read_published(file_of(tmp_path, config=config), 1, noise_scale=3.0).noise_scale == 3
    assert read_published(file_of(tmp_path, "asymflow", config), 1).noise_scale == 1
    assert read_published(file_of(tmp_path, config=config), 1).side == 16 * patch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.mlp.w3.bias": None, "blocks.2.norm1.weight": None}, "2 tensors are missing: blocks.1.mlp.w3.bias"),
        ({"repa.weight": torch.ones(2)}, "1 tensors are unknown: repa.weight"),
        ({SCALE: torch.ones(())}, "1 tensors are unknown: scale_buffer"),
        ({"final_layer.linear.bias": torch.ones(7)}, r"final_layer.linear.bias is \[7\], not \[48\]"),
        ({"blocks.0.attn.proj.bias": torch.full((32,), torch.nan)}, "blocks.0.attn.proj.bias holds NaN"),
        ({"pos_embed": torch.randn(1, 9, 32)}, "its position embedding is not the fixed one"),
        ({"pos_embed": torch.randn(1, 8, 32)}, "its position embedding is not the fixed one"),
        ({BASIS: torch.eye(48, 4), SCALE: torch.tensor(2.0)}, "its scale_buffer is 2; a model from scratch has 1"),
        ({BASIS: torch.ones(48, 4), SCALE: torch.ones(())}, "the columns of the basis are not orthonormal"),
        ({BASIS: torch.eye(40, 4), SCALE: torch.ones(())}, r"its proj_buffer is \[40, 4\]; expected 48 rows"),
        ({"in_context_posemb": torch.ones(3)}, r"in_context_posemb has shape \[3\]; expected 3 dimensions"),
        ({"t_embedder.mlp.2.weight": torch.ones(())}, r"t_embedder.mlp.2.weight has shape \[\]; expected 2 dimensions"),
        ({"blocks.0.attn.q_norm.weight": None}, "it lacks blocks.0.attn.q_norm.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"file.safetensors is not a checkpoint of JiT: .*{message}") as found:
        read_published(file_of(tmp_path, **changes), TINY.context_from)
    assert "\n" not in str(found.value)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_file_that_cannot_be_read_is_refused_and_runs_no_code(tmp_path, capsys):
    (tmp_path / "text.pth").write_text("no tensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    torch.save({"model_ema1": {"net.x": torch.ones(1)}, "args": Evil()}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with zipfile.ZipFile(tmp_path / "jit-b-16.zip", "w") as archive:
        archive.write(tmp_path / "list.pth", "checkpoint-last.pth")
    for name, message in {
        "absent.pth": "there is no checkpoint at .*absent.pth; JiT's are linked in .*hf download Lakonik/AsymFlow-",
        "": "is a folder; give the checkpoint in it",
        "text.pth": "text.pth is not a file of tensors: ",
        "text.safetensors": "text.safetensors is not a readable safetensors file",
        "evil.pth": "evil.pth is not a file of tensors: ",
        "list.pth": "list.pth holds a list; expected tensors by name",
        "jit-b-16.zip": "is a zip archive; unpack it and give the checkpoint-last.pth in it",
    }.items():
        with pytest.raises(ValueError, match=message) as found:
            read_published(tmp_path / name)
        assert "\n" not in str(found.value)
    assert "executed" not in capsys.readouterr().out


def test_where_class_tokens_enter_must_be_known(tmp_path):
    with pytest.raises(ValueError, match="width 32 with 4 blocks is not a published size.*give context_from"):
        read_published(file_of(tmp_path))
    without = replace(TINY, context_tokens=0, context_from=0)
    assert read_published(file_of(tmp_path, config=without)).config == without
