import pytest
import torch
from diffusers import Flux2Transformer2DModel
from lift_oracle import arguments, assert_close, latent_transformer, lifted
from toy_pipeline import ADAPTER, BASE, noise, seeded

from asymflow.models.conditioned import TextVelocity
from asymflow.models.flux2 import LatentFlux2, PixelFlux2, fused, run_transformer
from asymflow.models.pixel import AsymFlux2Transformer2DModel
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace


def test_the_subspace_stays_float32_when_the_model_is_cast(reference):
    model = lifted(reference).to(torch.bfloat16)
    assert model.A.dtype == torch.float32
    assert torch.equal(model.A, reference["A"].float())
    assert model.transformer.x_embedder.weight.dtype == torch.bfloat16


def test_unfit_inputs_are_refused(reference):
    A = torch.linalg.qr(torch.randn(768, 64)).Q
    with pytest.raises(ValueError, match="rank 64"):
        PixelFlux2.from_latent(latent_transformer(reference), Subspace(A, 1.0, "channel_first", RELEASED, {}))
    model = lifted(reference)
    with pytest.raises(ValueError, match="grid"):
        model.teacher_x_0_low(torch.randn(1, 6, 128), torch.randn(1, 6, 768), torch.ones(1), torch.randn(1, 3, 16))
    with pytest.raises(ValueError, match="do not fill"):
        run_transformer(model.transformer, torch.randn(1, 6, 768), torch.ones(1), torch.randn(1, 3, 16), (2, 2))


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


def test_references_of_a_model_in_training_are_those_of_the_pipelines():
    subspace = Subspace.load(ADAPTER / "subspace.safetensors")

    def transformer() -> Flux2Transformer2DModel:
        return Flux2Transformer2DModel.from_pretrained(BASE, subfolder="transformer")

    x_t, references = noise(2), torch.stack([noise(2, seed=1), noise(2, seed=2)], dim=1)
    text, sigma = torch.randn(2, 5, 96, generator=seeded()), torch.tensor([0.4, 0.4])
    finished = AsymFlux2Transformer2DModel.from_latent(transformer(), subspace)
    model = PixelFlux2.from_latent(transformer(), subspace).eval()
    with torch.no_grad():
        u = model(x_t, sigma, text, references=references)
        for row in range(2):
            alone = TextVelocity(finished, (64, 64), [text[row]], list(references[row]))
            assert_close(u[row : row + 1], alone(x_t[row : row + 1], sigma[row : row + 1]), 1e-4)
        assert (u - model(x_t, sigma, text)).abs().max() > 1e-2 * u.abs().max()


def test_the_teacher_takes_references(reference):
    model = lifted(reference)
    _, sigma, text = arguments(reference)
    generator = torch.Generator().manual_seed(0)
    z_0, noise_tokens, references = (
        torch.randn(2, *shape, generator=generator) for shape in ((6, 128), (6, 768), (1, 6, 128))
    )
    x_0_low_hat = model.teacher_x_0_low(z_0, noise_tokens, sigma, text, (2, 3), references=references)
    tau, _ = calibrate(sigma, model.s)
    z_tau = (1 - tau[:, None, None]) * z_0 + tau[:, None, None] * (noise_tokens @ model.A)
    with torch.no_grad():
        u = run_transformer(latent_transformer(reference), z_tau, tau, text, (2, 3), references=references)
    assert_close(x_0_low_hat, model.s * (z_tau - tau[:, None, None] * u) @ model.A.mT, 1e-4)
