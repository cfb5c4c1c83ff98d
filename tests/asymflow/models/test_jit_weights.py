from dataclasses import replace

import pytest
import torch
from published_jit import TINY, batch, published_network, published_velocity, random_tensors

from asymflow.models.jit import SIZES, JiT, JiTConfig, PixelJiT
from asymflow.models.jit_positions import wave
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
from asymflow.subspace import Subspace

NAMES = [f"JiT-{size}/{patch}" for size in SIZES for patch in (16, 32)]


def published_config(name: str) -> JiTConfig:
    """Shapes of JiT-SIZE/PATCH."""
    size, patch = name.removeprefix("JiT-").split("/")
    return replace(SIZES[size], patch_size=int(patch))


def tiny_of(name: str) -> JiTConfig:
    """Depth, heads and context of a published size, all else small."""
    config, patch = published_config(name), 2 if name.endswith("16") else 4
    small = {"bottleneck": 8, "classes": 5, "context_tokens": 3, "patch_size": patch}
    return replace(config, width=4 * config.heads, **small)


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
    assert replace(found, mlp_ratio=config.mlp_ratio) == config
    assert found.hidden == config.hidden
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
