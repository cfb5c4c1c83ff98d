import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from PIL import Image
from toy_pipeline import ADAPTER, BASE, largest_difference, noise, seeded

from asymflow.models.conditioned import MAX_REFERENCE_PIXELS, TextVelocity, prepare_references
from asymflow.models.pixel import AsymFlux2Transformer2DModel
from asymflow.patches import patchify
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace

PATCH = 4


def test_untrained_reference_input_is_the_latent_pipelines():
    subspace = Subspace.load(ADAPTER / "subspace.safetensors")
    transformer = Flux2Transformer2DModel.from_pretrained(BASE, subfolder="transformer")
    model = AsymFlux2Transformer2DModel.from_latent(transformer, subspace)
    x_t, reference, text = noise(), noise(seed=1, height=64, width=80)[0], torch.randn(1, 5, 96, generator=seeded())
    sigma = torch.tensor([0.4])
    with torch.no_grad():
        u = TextVelocity(model, (64, 64), list(text), [reference])(x_t, sigma)
        tau, k = calibrate(sigma, subspace.s)
        z_t = k * patchify(x_t, PATCH) @ subspace.A
        z_reference = patchify(reference[None], PATCH) @ subspace.A / subspace.s
        ids = Flux2KleinPipeline._prepare_image_ids([torch.zeros(1, 8, 16, 20)])
        u_z = transformer(
            hidden_states=torch.cat([z_t, z_reference], dim=1),
            encoder_hidden_states=text,
            timestep=tau,
            img_ids=torch.cat([stock_ids(16, 16), ids], dim=1),
            txt_ids=Flux2KleinPipeline._prepare_text_ids(text),
            return_dict=False,
        )[0][:, :256]
    x_0_low = patchify(x_t - 0.4 * u, PATCH) @ subspace.A / subspace.s
    assert largest_difference(x_0_low, z_t - tau * u_z) < 1e-4


def stock_ids(height, width):
    return Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 8, height, width))


@pytest.mark.parametrize(("size", "expected"), [((70, 90), (88, 68)), ((2048, 1024), (724, 1448))])
def test_references_are_cut_to_whole_patches_and_a_megapixel(size, expected):
    (prepared,) = prepare_references(Image.linear_gradient("L").convert("RGB").resize(size), PATCH)
    assert prepared.shape == (1, 3, *expected)
    assert expected[0] * expected[1] <= MAX_REFERENCE_PIXELS
    assert -1 <= float(prepared.min()) < -0.9 < 0.9 < float(prepared.max()) <= 1


def test_no_reference_is_an_empty_list():
    assert prepare_references(None, PATCH) == prepare_references([], PATCH) == []
