from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2

from asymflow.models.autoencoder import decode_latents, encode_images
from pipelines.data.images import decode_image, fit_to_size, to_array
from pipelines.toy.autoencoder import new_autoencoder, psnr, set_whitening, to_unit
from pipelines.toy.data import render_emoji

FOLDER = Path(__file__).parents[3] / "models" / "toy_klein"


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2.from_pretrained(FOLDER, subfolder="vae", torch_dtype=torch.float32)


def test_the_autoencoder_reconstructs_emoji_on_grounds_it_may_not_have_seen(autoencoder):
    stems = ["1F600", "1F431", "1F680", "1F33B", "1F3E0", "1F697", "2764", "1F34E"]
    pictures = [fit_to_size(decode_image(render_emoji(s, g)), 64, 64) for s in stems for g in ("green", "black")]
    images = to_unit(torch.stack([torch.from_numpy(to_array(p).copy()).permute(2, 0, 1) for p in pictures]))
    decoded = decode_latents(autoencoder, encode_images(autoencoder, images), (16, 16))
    assert psnr(decoded, images) > 26


def test_whitening_gives_latents_mean_0_and_variance_1():
    images = torch.randint(0, 256, (300, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    autoencoder = new_autoencoder().eval()
    set_whitening(autoencoder, images)
    tokens = encode_images(autoencoder, to_unit(images)).flatten(0, 1)
    assert tokens.mean(0).abs().max() < 1e-3
    # the variance that is added for stability is that of the config
    torch.testing.assert_close(
        tokens.var(0, correction=0) * (autoencoder.bn.running_var + autoencoder.config.batch_norm_eps),
        autoencoder.bn.running_var, rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 3, 4, 4)
    assert psnr(a, a + 0.2) == pytest.approx(20)  # a tenth of the range of 2
