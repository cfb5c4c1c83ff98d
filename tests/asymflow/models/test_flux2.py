from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file

from asymflow.models.flux2 import (
    LORA_TARGETS,
    LatentFlux2,
    PixelFlux2,
    fused,
    pack_latents,
    run_transformer,
    unpack_latents,
)
from asymflow.oklab import RELEASED
from asymflow.parameterization import recover_u
from asymflow.patches import patchify
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace

REFERENCE = Path(__file__).parents[2] / "data" / "oracles" / "flux2_lift.safetensors"


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE)


def latent_transformer(reference: dict[str, torch.Tensor]) -> Flux2Transformer2DModel:
    model = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=32,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    prefix = "latent_model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)})
    return model


def lifted(reference: dict[str, torch.Tensor]) -> PixelFlux2:
    subspace = Subspace(reference["A"], float(reference["s"]), "channel_first", RELEASED, {})
    return PixelFlux2.from_latent(latent_transformer(reference), subspace).eval()


def arguments(reference: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return reference["x_t"], reference["t"], reference["encoder_hidden_states"]


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


def test_lifted_model_gives_the_reference_velocity(reference):
    with torch.no_grad():
        assert_close(lifted(reference)(*arguments(reference)), reference["u_init"])


def test_changed_modules_give_the_reference_velocity(reference):
    model = lifted(reference)
    tuned = {k.removeprefix("tuned."): v for k, v in reference.items() if k.startswith("tuned.")}
    missing, unexpected = model.transformer.load_state_dict(tuned, strict=False)
    assert len(tuned) == 3 and not unexpected
    with torch.no_grad():
        assert_close(model(*arguments(reference)), reference["u_tuned"])


def test_lora_starts_at_zero_on_the_modules_of_appendix_b2(reference):
    model = lifted(reference)
    model.add_lora(rank=4)
    with torch.no_grad():
        assert_close(model(*arguments(reference)), reference["u_init"])
    trained = {name.removeprefix("transformer.") for name in model.trainable()}
    lora = {name.split(".lora_")[0] for name in trained if ".lora_" in name}
    assert lora == {
        *(f"transformer_blocks.0.{ff}.linear_{io}" for ff in ("ff", "ff_context") for io in ("in", "out")),
        *(f"single_transformer_blocks.{i}.attn.to_out" for i in (0, 1)),
        *(f"time_guidance_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    }
    rest = {name for name in trained if ".lora_" not in name}
    assert rest == {"x_embedder.weight", "proj_out.weight", "norm_out.linear.weight"}


def test_paper_counts_353_5_million_trained_values():
    config = dict(
        in_channels=128,
        num_layers=8,
        num_single_layers=24,
        attention_head_dim=128,
        num_attention_heads=32,
        joint_attention_dim=12288,
        guidance_embeds=False,
    )
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**config)
    A = torch.linalg.qr(torch.randn(768, 128)).Q
    model = PixelFlux2.from_latent(transformer, Subspace(A, 1.0, "channel_first", RELEASED, {}))
    with torch.device("meta"):
        model.add_lora(rank=256)
    values = sum(p.numel() for p in model.trainable().values())
    assert values + A.numel() + 1 == 353_533_953  # the released file also holds A and s


def perturb(model: PixelFlux2) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_teacher_stays_the_latent_model_while_the_student_trains(reference):
    model = lifted(reference)
    model.add_lora(rank=4)
    perturb(model)
    x_t, sigma, text = arguments(reference)
    generator = torch.Generator().manual_seed(1)
    z_0 = torch.randn(2, 6, 128, generator=generator)
    noise = torch.randn(2, 6, 768, generator=generator)
    before = model(x_t, sigma, text)
    x_0_low_hat = model.teacher_x_0_low(z_0, noise, sigma, text, grid=(3, 2))

    tau, _ = calibrate(sigma, model.s)
    z_tau = (1 - tau)[:, None, None] * z_0 + tau[:, None, None] * (noise @ model.A)
    with torch.no_grad():
        u_z = run_transformer(latent_transformer(reference), z_tau, tau, text, (3, 2))
    expected = model.s * (z_tau - tau[:, None, None] * u_z) @ model.A.T
    assert_close(x_0_low_hat, expected)
    after = model(x_t, sigma, text)  # and looking at the teacher leaves the student as it was
    assert torch.equal(before, after) and after.requires_grad


def test_teacher_in_latent_space_equals_the_lifted_model_on_the_low_rank_sample(reference):
    """Eq. 51 through the pixel model: x_0_low_hat = x_t^L - sigma u^L."""
    model = lifted(reference)
    _, sigma, text = arguments(reference)
    z_0, noise = torch.randn(2, 6, 128), torch.randn(2, 6, 768)
    x_t_low = (1 - sigma)[:, None, None] * model.s * z_0 @ model.A.T + sigma[:, None, None] * noise
    tau, k = calibrate(sigma, model.s)
    with torch.no_grad():
        u_a = model._run(k[:, None, None] * x_t_low, tau, text, (3, 2), None)
        u_low = recover_u(u_a, x_t_low, sigma, model.A, model.s)
    expected = x_t_low - sigma[:, None, None] * u_low
    assert_close(model.teacher_x_0_low(z_0, noise, sigma, text, grid=(3, 2)), expected, 2e-5)


def test_one_copy_of_the_base_is_in_memory(reference):
    plain = latent_transformer(reference)
    base = sum(p.numel() for p in plain.parameters())
    model = lifted(reference)
    model.add_lora(rank=4)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    trained = sum(p.numel() for p in model.trainable().values())
    assert sum(storages.values()) == 4 * (base + trained)
    with model.teacher_view() as teacher:
        inside = {p.untyped_storage().data_ptr() for p in teacher.parameters()}
    assert inside <= storages.keys()


def test_a_masked_batch_equals_each_row_alone(reference):
    model = lifted(reference)
    x_t, sigma, text = arguments(reference)
    lengths = torch.tensor([2, text.shape[1]])
    mask = torch.arange(text.shape[1])[None] < lengths[:, None]
    with torch.no_grad():
        together = model(x_t, sigma, text, mask)
        for row, length in enumerate(lengths):
            alone = model(x_t[row : row + 1], sigma[row : row + 1], text[row : row + 1, :length])
            assert_close(together[row : row + 1], alone)


def test_the_subspace_stays_float32_when_the_model_is_cast(reference):
    model = lifted(reference).to(torch.bfloat16)
    assert model.A.dtype == torch.float32 and torch.equal(model.A, reference["A"].float())
    assert model.transformer.x_embedder.weight.dtype == torch.bfloat16


def test_latents_pack_as_flux2_packs_them():
    from diffusers import Flux2KleinPipeline

    latents = torch.randn(2, 32, 6, 4)
    packed = Flux2KleinPipeline._pack_latents(Flux2KleinPipeline._patchify_latents(latents))
    assert torch.equal(pack_latents(latents), packed)
    assert torch.equal(unpack_latents(packed, (3, 2)), latents)


def test_unfit_inputs_are_refused(reference):
    A = torch.linalg.qr(torch.randn(768, 64)).Q
    with pytest.raises(ValueError, match="rank 64"):
        PixelFlux2.from_latent(latent_transformer(reference), Subspace(A, 1.0, "channel_first", RELEASED, {}))
    model = lifted(reference)
    with pytest.raises(ValueError, match="grid"):
        model.teacher_x_0_low(torch.randn(1, 6, 128), torch.randn(1, 6, 768), torch.ones(1), torch.randn(1, 3, 16))
    with pytest.raises(ValueError, match="do not fill"):
        run_transformer(model.transformer, torch.randn(1, 6, 768), torch.ones(1), torch.randn(1, 3, 16), (2, 2))


def test_lora_pattern_matches_whole_names_only():
    import re

    assert not re.fullmatch(LORA_TARGETS, "transformer_blocks.0.attn.to_out")
    assert not re.fullmatch(LORA_TARGETS, "single_transformer_blocks.0.attn.to_qkv_mlp_proj")


def test_patch_layout_is_that_of_the_subspace(reference):
    x_t, sigma, text = arguments(reference)
    first = lifted(reference)
    order = patchify(torch.arange(768.0).view(1, 3, 16, 16), 16, "channel_last").flatten().long()
    subspace = Subspace(first.A[order], first.s, "channel_last", RELEASED, {})
    last = PixelFlux2.from_latent(latent_transformer(reference), subspace).eval()
    with torch.no_grad():
        assert_close(last(x_t, sigma, text), first(x_t, sigma, text))


def test_the_latent_baseline_starts_as_the_latent_model_itself(reference):
    subspace = Subspace(reference["A"], float(reference["s"]), "channel_first", RELEASED, {})
    model = LatentFlux2.from_latent(latent_transformer(reference), subspace).eval()
    model.add_lora(rank=4)
    _, sigma, text = arguments(reference)
    z_t = torch.randn(2, 6, 128)
    with torch.no_grad():
        expected = run_transformer(latent_transformer(reference), z_t, sigma, text, (2, 3))
        assert torch.equal(model(z_t, sigma, text, grid=(2, 3)), expected)
    with pytest.raises(ValueError, match="grid"):
        model(z_t, sigma, text)
    z_t = torch.randn(2, 4, 128)
    assert torch.equal(model(z_t, sigma, text), model(z_t, sigma, text, grid=(2, 2)))


def test_fused_layers_are_not_rounded_to_the_type_of_the_base():
    weight, A = torch.randn(32, 128).bfloat16(), torch.linalg.qr(torch.randn(768, 128)).Q
    layer = fused(weight, A, after=False)
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, (weight.double() @ A.double().T).float())
    assert torch.equal(fused(weight.T, A, after=True).weight, (A.double() @ weight.T.double()).float())
