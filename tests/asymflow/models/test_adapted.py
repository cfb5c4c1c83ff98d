"""What holds for the pixel model and for both baselines."""

import re
from functools import partial

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

from asymflow.models.adapted import AdaptedModel
from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import LatentFlux2, PixelFlux2, image_positions, run_transformer
from asymflow.oklab import RELEASED
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace, project

GRID = (2, 3)
KINDS = {
    "pixel": PixelFlux2.from_latent,
    "latent": LatentFlux2.from_latent,
    "ddt": partial(DdtFlux2.from_latent, blocks=2, heads=2, head_width=16, mlp_ratio=1.0),
}
LORA = (
    r"transformer\.(transformer_blocks\.0\.(ff|ff_context)\.linear_(in|out)"
    r"|time_guidance_embed\.timestep_embedder\.linear_[12]"
    r"|single_transformer_blocks\.0\.attn\.to_out)\.lora_[AB]\.default\.weight"
)
KLEIN = {
    "in_channels": 128,
    "num_layers": 8,
    "num_single_layers": 24,
    "attention_head_dim": 128,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
    "guidance_embeds": False,
}


def subspace() -> Subspace:
    A = torch.linalg.qr(torch.randn(768, 128, generator=torch.Generator().manual_seed(0))).Q
    return Subspace(A, 1.7, "channel_first", RELEASED, {})


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def make(tiny_transformer, kind):
    """Call for a model of the kind with LoRA on it, each time the same; all that is trained is off its start."""

    def make_model(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> AdaptedModel:
        model = KINDS[kind](tiny_transformer(8).to(dtype), subspace())
        model.add_lora(rank=2, dropout=dropout)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return model

    return make_model


def velocity(model: AdaptedModel, grid: tuple[int, int] = GRID, text: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    sigma, embeddings = torch.tensor([0.3, 0.9]), torch.randn(2, text, 8, generator=generator)
    mask = torch.ones(2, text, dtype=torch.bool)
    mask[1, 2:] = False
    if isinstance(model, LatentFlux2):
        z_t = torch.randn(2, grid[0] * grid[1], 128, generator=generator)
        return model(z_t, sigma, embeddings, mask, grid)
    return model(torch.randn(2, 3, 16 * grid[0], 16 * grid[1], generator=generator), sigma, embeddings, mask)


def teacher(model: AdaptedModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    z_0, noise = torch.randn(2, 6, 128, generator=generator), torch.randn(2, 6, 768, generator=generator)
    text = torch.randn(2, 5, 8, generator=generator)
    return model.teacher_x_0_low(z_0, noise, torch.tensor([0.3, 0.9]), text, grid=GRID)


def gradients(model: AdaptedModel) -> dict[str, Tensor]:
    """The teacher answers between the forward and the backward pass, as it does in training."""
    torch.manual_seed(4)  # dropout
    u = velocity(model)
    loss = (u.square() * (1 + teacher(model).square().mean())).mean()
    return dict(zip(model.trainable(), torch.autograd.grad(loss, list(model.trainable().values())), strict=True))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_trained_are_the_parts_that_the_paper_names(make, kind):
    model = make()
    trained = model.trainable()
    rest = {name: tuple(p.shape) for name, p in trained.items() if not re.fullmatch(LORA, name)}
    assert len(trained) - len(rest) == 2 * 7
    head = {name: shape for name, shape in rest.items() if name.startswith("head.")}
    patch = 128 if kind == "latent" else 768
    outer = {"transformer.x_embedder.weight": (32, patch), "transformer.norm_out.linear.weight": (64, 32)}
    if kind != "ddt":
        outer["transformer.proj_out.weight"] = (patch, 32)
    assert rest == head | outer
    assert head.keys() == ({f"head.{name}" for name, _ in model.head.named_parameters()} if kind == "ddt" else set())


def test_teacher_is_the_latent_model_exactly(make, tiny_transformer):
    model = make().eval()
    before = velocity(model)
    z_t, sigma, text = torch.randn(2, 6, 128), torch.tensor([0.3, 0.9]), torch.randn(2, 5, 8)
    with model.teacher_view() as transformer:
        assert torch.equal(
            run_transformer(transformer, z_t, sigma, text, GRID),
            run_transformer(tiny_transformer(8), z_t, sigma, text, GRID),
        )
    assert torch.equal(velocity(model), before)
    assert before.requires_grad


def test_teacher_prediction_is_eq_51(make, tiny_transformer):
    model = make()
    z_0, noise, text = torch.randn(2, 6, 128), torch.randn(2, 6, 768), torch.randn(2, 5, 8)
    sigma = torch.tensor([0.3, 0.9])
    tau = calibrate(sigma, model.s)[0][:, None, None]
    z_tau = (1 - tau) * z_0 + tau * noise @ model.A
    with torch.no_grad():
        z_0_hat = z_tau - tau * run_transformer(tiny_transformer(8), z_tau, tau.flatten(), text, GRID)
    actual = model.teacher_x_0_low(z_0, noise, sigma, text, grid=GRID)
    assert_near(actual, model.s * z_0_hat @ model.A.T)


def test_teacher_depends_on_the_noise_inside_the_subspace_alone(make):
    """Eq. 52: samples that differ outside the subspace have one latent input."""
    model = make()
    z_0, noise, text = torch.randn(2, 6, 128), torch.randn(2, 6, 768), torch.randn(2, 5, 8)
    sigma, other = torch.tensor([0.3, 0.9]), torch.randn(2, 6, 768)
    expected = model.teacher_x_0_low(z_0, noise, sigma, text, grid=GRID)
    assert_near(model.teacher_x_0_low(z_0, noise + other - project(other, model.A), sigma, text, grid=GRID), expected)
    assert (model.teacher_x_0_low(z_0, noise + other, sigma, text, grid=GRID) - expected).abs().max() > 0.1


def test_masters_are_float32_around_a_bf16_base(make):
    model = make()
    trained = {name: p.detach().clone() for name, p in model.trainable().items()}
    model.set_precision(torch.bfloat16)
    kept = model.trainable()
    assert all(kept[name].dtype == torch.float32 and torch.equal(kept[name], p) for name, p in trained.items())
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert model.A.dtype == torch.float32
    assert model.dtype == torch.bfloat16
    u = velocity(model)
    assert u.dtype == torch.float32
    # rounding is 2^-8 of a number; the recovery divides by sigma
    assert (u - velocity(make())).square().mean().sqrt() < 0.05 * u.square().mean().sqrt()


def test_all_layers_compute_in_bf16(make):
    model = make(dropout=0.1)
    model.set_precision(torch.bfloat16)
    types = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.RMSNorm | nn.LayerNorm | nn.Dropout):
            module.register_forward_hook(lambda _, x, y, name=name: types.update({name: (x[0].dtype, y.dtype)}))
    velocity(model)
    assert set(types.values()) == {(torch.bfloat16, torch.bfloat16)}
    assert {name.removesuffix(".weight") for name in model.trainable() if "lora" in name} < types.keys()


def test_gradients_of_masters_are_float32(make):
    model = make()
    model.set_precision(torch.bfloat16)
    full = gradients(make())
    rounded = gradients(model)
    assert {g.dtype for g in rounded.values()} == {torch.float32}
    cosine = torch.cosine_similarity(*(torch.cat([g.flatten() for g in x.values()]) for x in (full, rounded)), dim=0)
    assert cosine > 0.99


def test_an_update_below_bf16_resolution_is_kept(make):
    model = make()
    model.set_precision(torch.bfloat16)
    weight = model.transformer.x_embedder.weight
    before, step = weight.detach().clone(), 2.0**-13 * weight.detach().abs()
    assert torch.equal(before.bfloat16() - step.bfloat16(), before.bfloat16())  # lost without a master
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for _ in range(4):
        weight.grad = step
        optimizer.step()
    assert_near(before - weight, 4 * step, 1e-3)


def test_float32_precision_changes_nothing(make):
    model = make().eval()
    before = velocity(model)
    model.set_precision(torch.float32)
    assert torch.equal(velocity(model), before)


def test_a_transformer_loaded_in_bf16_has_float32_masters_at_once(make):
    model = make(dtype=torch.bfloat16)
    assert {p.dtype for p in model.trainable().values()} == {torch.float32}
    velocity(model).sum().backward()
    assert all(p.grad is not None for p in model.trainable().values())


def test_checkpointing_gives_the_same_gradients_under_dropout(make):
    model = make(dropout=0.3)
    expected = gradients(model)
    model.enable_gradient_checkpointing()
    calls = []
    head = model.head.blocks if isinstance(model, DdtFlux2) else []
    for block in (*model.transformer.transformer_blocks, *model.transformer.single_transformer_blocks, *head):
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    actual = gradients(model)
    assert len(calls) == 2 * 3 + len(head) * 2  # the student twice, the teacher once
    for name, gradient in expected.items():
        assert_near(actual[name], gradient)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_give_the_same_answers_and_gradients(make, checkpointing):
    model = make()
    sizes = [(GRID, 5), ((3, 4), 7)]
    with torch.no_grad():
        velocities = [velocity(model, *size) for size in sizes]
    low, expected = teacher(model), gradients(model)
    model.compile_blocks(fullgraph=True)
    if checkpointing:
        model.enable_gradient_checkpointing()
    with torch.no_grad():
        for size, before in zip(sizes, velocities, strict=True):
            assert_near(velocity(model, *size), before, 5e-5)
    assert_near(teacher(model), low, 5e-5)
    for name, gradient in gradients(model).items():
        assert_near(gradient, expected[name], 5e-5)


@pytest.mark.slow
def test_compiled_dropout_is_the_same_when_recomputed(make):
    model = make(dropout=0.3)
    model.compile_blocks()
    expected = gradients(model)
    model.enable_gradient_checkpointing()
    for name, gradient in gradients(model).items():
        assert_near(gradient, expected[name])


@pytest.mark.parametrize("kind", ["pixel", "latent", "ddt"])
def test_the_9b_model_is_wrapped_without_a_weight(kind):
    build = {**KINDS, "ddt": DdtFlux2.from_latent}[kind]
    space = subspace()
    object.__setattr__(space, "A", space.A.to("meta"))
    with torch.device("meta"):
        model = build(Flux2Transformer2DModel(**KLEIN), space)
        model.add_lora(rank=256)
    model.set_precision(torch.bfloat16)
    assert {p.device.type for p in (*model.parameters(), model.A)} == {"meta"}
    lora = 353_435_648 - 4096 * 768 * 2 - 8192 * 4096
    values = {
        "pixel": 353_435_648,  # table of the released adapter, without A and s
        "latent": lora + 4096 * 128 * 2 + 8192 * 4096,
        "ddt": lora + 4096 * 768 + 8192 * 4096 + 1_318_123_008,
    }
    assert sum(p.numel() for p in model.trainable().values()) == values[kind]


def test_positions_go_row_by_row():
    assert image_positions((2, 3)).tolist() == [[0, row, column, 0] for row in range(2) for column in range(3)]
