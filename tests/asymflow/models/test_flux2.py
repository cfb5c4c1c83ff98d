import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from lift_oracle import arguments, assert_close, latent_transformer, lifted

from asymflow.models.flux2 import LORA_TARGETS, PixelFlux2, run_transformer
from asymflow.oklab import RELEASED
from asymflow.parameterization import recover_u
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace


def test_lifted_model_gives_the_reference_velocity(reference):
    with torch.no_grad():
        assert_close(lifted(reference)(*arguments(reference)), reference["u_init"])


def test_changed_modules_give_the_reference_velocity(reference):
    model = lifted(reference)
    tuned = {k.removeprefix("tuned."): v for k, v in reference.items() if k.startswith("tuned.")}
    missing, unexpected = model.transformer.load_state_dict(tuned, strict=False)
    assert len(tuned) == 3
    assert not unexpected
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
    assert torch.equal(before, after)
    assert after.requires_grad


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


def test_lora_pattern_matches_whole_names_only():
    import re

    assert not re.fullmatch(LORA_TARGETS, "transformer_blocks.0.attn.to_out")
    assert not re.fullmatch(LORA_TARGETS, "single_transformer_blocks.0.attn.to_qkv_mlp_proj")


def test_references_are_the_stock_pipelines_tokens_and_positions(reference):
    """Two reference images after the noisy one; a row with masked text equals the same row alone."""
    transformer, (_, sigma, text) = latent_transformer(reference), arguments(reference)
    generator = torch.Generator().manual_seed(0)
    tokens, references = (torch.randn(2, *shape, 128, generator=generator) for shape in ((6,), (2, 6)))
    stock_ids = Flux2KleinPipeline._prepare_image_ids([torch.zeros(1, 128, 2, 3)] * 2)
    with torch.no_grad():
        expected = transformer(
            hidden_states=torch.cat([tokens, *references.unbind(1)], dim=1),
            encoder_hidden_states=text,
            timestep=sigma,
            img_ids=torch.cat([Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 128, 2, 3)), stock_ids], dim=1),
            txt_ids=Flux2KleinPipeline._prepare_text_ids(text[:1]),
            return_dict=False,
        )[0][:, :6]
        assert_close(run_transformer(transformer, tokens, sigma, text, (2, 3), references=references), expected)
        mask = torch.ones(text.shape[:2]).bool()
        mask[1, -1] = False
        found = run_transformer(transformer, tokens, sigma, text, (2, 3), mask, references)[1:]
        alone = (tokens[1:], sigma[1:], text[1:, :-1], (2, 3), None, references[1:])
        assert_close(found, run_transformer(transformer, *alone), 1e-4)
