"""A frozen base in 4 or 8 bits under trained LoRA, against the model whose weights are the dequantized ones."""

import copy

import pytest
import torch
from dequantized import SCHEMES, copy_in_full, weight_in_full
from torch import Tensor, nn
from trained_adapter import trained

from asymflow.adapters import load_adapter, save_adapter
from asymflow.models.adapted import AdaptedModel
from asymflow.models.network import NF4_BLOCK, Quantization
from asymflow.models.quantized import import_bitsandbytes

WIDEST_STEP = 1 - 0.6961928
"""Between neighbouring values of NF4, in units of the block's scale"""


@pytest.fixture(params=SCHEMES)
def scheme(request) -> Quantization:
    return request.param


@pytest.fixture
def models(tiny_transformer, scheme) -> tuple[AdaptedModel, AdaptedModel, AdaptedModel]:
    """The model, the same with a quantized base, and the same with the dequantized weights in float32."""
    model = trained(tiny_transformer(96, head_width=32))
    quantized, dequantized = copy.deepcopy(model), copy.deepcopy(model)
    names = quantized.frozen_linears()
    quantized.quantize_base(scheme=scheme)
    for name in names:
        layers = (m.transformer.get_submodule(name) for m in (quantized, dequantized))
        copy_in_full(next(layers), scheme, next(layers))
    return model.train(), quantized.train(), dequantized.train()


def weight_of(model: AdaptedModel, name: str, scheme: Quantization) -> Tensor:
    return weight_in_full(model.transformer.get_submodule(name), scheme)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(2, 5).bool()
    mask[1, 3:] = False
    x_t, text = torch.randn(2, 3, 32, 48, generator=generator), torch.randn(2, 5, 96, generator=generator)
    return x_t, torch.tensor([0.3, 0.9]), text, mask


def teacher(model: AdaptedModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    z_0, noise = torch.randn(2, 6, 128, generator=generator), torch.randn(2, 6, 768, generator=generator)
    _, sigma, text, mask = inputs()
    return model.teacher_x_0_low(z_0, noise, sigma, text, (2, 3), mask)


def gradients(model: AdaptedModel) -> dict[str, Tensor]:
    model.zero_grad()
    (model(*inputs()).square() * (1 + teacher(model).square().mean())).mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("scheme", ["int8", "fp8"], indirect=True)
def test_weights_in_8_bits_are_within_half_a_step(models, scheme):
    model, quantized, _ = models
    for name in model.frozen_linears():
        weight, found = model.transformer.get_submodule(name).weight.detach(), weight_of(quantized, name, scheme)
        largest = weight.abs().amax(1, keepdim=True)
        # float8_e4m3fn has 3 bits of mantissa, and steps of 2^-9 near zero
        step = largest / 127 if scheme == "int8" else (weight.abs() * 2**-3).clamp_min(2**-9)
        # bitsandbytes rounds to float16 first, which adds 127 / 2^11 of a step
        assert ((found - weight).abs() <= (0.57 if scheme == "int8" else 0.5 + 1e-3) * step).all()
        assert (found - weight).abs().max() > 0.25 * step.min()


@pytest.mark.parametrize("scheme", ["nf4"], indirect=True)
def test_weights_are_within_half_a_step_of_the_quantizer(models, scheme):
    model, quantized, _ = models
    for name in model.frozen_linears():
        weight, found = model.transformer.get_submodule(name).weight, weight_of(quantized, name, scheme)
        blocks, rounded = (value.detach().reshape(-1, NF4_BLOCK) for value in (weight, found))
        scale = blocks.abs().amax(1, keepdim=True)
        # the second term is the error of the 8-bit scales
        assert ((rounded - blocks).abs() <= (WIDEST_STEP / 2 + 1e-3) * scale).all()
        assert (rounded - blocks).abs().max() > 0.1 * scale.max()


def test_velocities_are_those_of_the_dequantized_weights(models):
    model, quantized, dequantized = models
    with torch.no_grad():
        u, found, expected = (m(*inputs()) for m in (model, quantized, dequantized))
        assert_near(found, expected)
        assert_near(teacher(quantized), teacher(dequantized))
    error = (found - u).norm() / u.norm()
    assert 1e-4 < error < 0.2


@pytest.mark.parametrize("scheme", ["nf4"], indirect=True)
def test_student_and_teacher_share_one_quantized_copy(models):
    model, quantized, _ = models
    linear4bit = import_bitsandbytes().nn.Linear4bit
    layers = {n for n, m in quantized.transformer.named_modules() if isinstance(m, linear4bit)}
    assert layers == set(model.frozen_linears())
    assert not any(isinstance(m, linear4bit) for m in quantized.latent_modules.modules())
    with quantized.teacher_view() as transformer:
        assert {n for n, m in transformer.named_modules() if isinstance(m, linear4bit)} == layers
    every = {n for n, m in model.transformer.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n}
    kept = {"x_embedder", "context_embedder", "norm_out.linear", "proj_out"}
    narrow = {"time_guidance_embed.timestep_embedder.linear_1.base_layer"}  # of 16 inputs here, 256 in published models
    assert every - layers == kept | narrow


@pytest.mark.parametrize("scheme", ["int8"], indirect=True)
def test_in_evaluation_llm_int8_rounds_the_inputs_too(models):
    _, quantized, dequantized = models
    with torch.no_grad():
        found, expected = quantized.eval()(*inputs()), dequantized.eval()(*inputs())
    assert 1e-5 < (found - expected).norm() / expected.norm() < 5e-3


def test_gradients_reach_exactly_the_trained_values(models):
    model, quantized, dequantized = models
    found, expected = gradients(quantized), gradients(dequantized)
    assert found.keys() == expected.keys() == quantized.trainable().keys() == model.trainable().keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert_near(found[name], gradient)


def test_checkpointing_gives_the_same_gradients(models):
    _, quantized, _ = models
    expected = gradients(quantized.train())
    quantized.enable_gradient_checkpointing()
    for name, gradient in gradients(quantized).items():
        assert_near(gradient, expected[name])


def test_evaluation_leaves_the_quantized_weights_as_they_are(models, scheme):
    _, quantized, _ = models
    names = models[0].frozen_linears()
    before = {name: weight_of(quantized, name, scheme) for name in names}
    expected = gradients(quantized.train())
    with torch.no_grad():
        quantized.eval()(*inputs())
    assert all(torch.equal(weight_of(quantized, name, scheme), weight) for name, weight in before.items())
    for name, gradient in gradients(quantized.train()).items():
        assert torch.equal(gradient, expected[name])


STORED = {"nf4": torch.uint8, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


def test_in_half_precision_trained_values_and_gradients_stay_float32(tiny_transformer, scheme):
    model = trained(tiny_transformer(96, head_width=32))
    model.set_precision(torch.bfloat16)
    exact = model(*inputs())
    model.quantize_base(scheme=scheme)
    u = model(*inputs())
    u.square().mean().backward()
    assert u.dtype == torch.float32
    assert model.dtype == torch.bfloat16
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.trainable().values())
    types = {p.dtype for p in model.transformer.parameters() if not p.requires_grad}
    assert types == {torch.bfloat16, STORED[scheme]}
    assert (u - exact).norm() < 0.2 * exact.norm()


def test_an_adapter_of_a_quantized_base_loads_on_the_unquantized_one(models, tmp_path):
    model, quantized, _ = models
    for name, own in (("quantized", quantized), ("plain", model)):
        save_adapter(own, tmp_path / name)
    files = [{f.name: f.read_bytes() for f in sorted((tmp_path / n).iterdir())} for n in ("quantized", "plain")]
    assert files[0] == files[1]
    with torch.no_grad():
        expected = model(*inputs())
        for parameter in model.trainable().values():
            parameter.zero_()
        load_adapter(model, tmp_path / "quantized")
        assert torch.equal(model(*inputs()), expected)
