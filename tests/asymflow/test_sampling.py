import pytest
import torch

from asymflow.guidance import Guidance
from asymflow.models.flux2 import run_transformer
from asymflow.samplers import noise_for
from asymflow.sampling import latent_noise, latent_velocity, pixel_noise, sample_latents, text_guided

GRID, WIDTH = (2, 3), 4
EMPTY = torch.zeros(1, 2)


def test_noise_of_a_sample_is_the_same_in_any_batch():
    both = pixel_noise(7, [3, 5], 4, 6)
    assert both.shape == (2, 3, 4, 6)
    assert torch.equal(both[1:], pixel_noise(7, [5], 4, 6))
    tokens = latent_noise(7, [3, 5], GRID, WIDTH)
    assert tokens.shape == (2, 6, WIDTH)
    assert torch.equal(tokens[0], noise_for(7, 3, (6, WIDTH)))


def test_each_prompt_meets_the_empty_one_padded_and_masked():
    seen = []

    def predict(x_t, sigma, text, mask):
        seen.append((text, mask))
        return (text * mask[..., None]).sum((1, 2))[:, None, None].expand_as(x_t)

    text = [torch.full((1, 2), 2.0), torch.full((3, 2), 2.0)]
    velocity = text_guided(predict, text, EMPTY, Guidance(3.0, orthogonal=False))
    u = velocity(torch.zeros(2, 6, WIDTH), torch.tensor([0.5, 0.5]))
    assert u[:, 0, 0].tolist() == [3 * 4, 3 * 12]  # scale times the velocity of the prompt, plus none of the empty one
    assert seen[0][1].tolist() == [[True, False, False], [True, True, True]]
    assert seen[1][0].shape == (2, 1, 2)


@pytest.mark.parametrize("steps", [1, 4])
def test_samples_of_a_straight_path_are_its_data(steps):
    x_0, noise = torch.randn(2, 6, WIDTH).double(), latent_noise(0, [0, 1], GRID, WIDTH).double()
    found = sample_latents(
        lambda x_t, sigma, text, mask: noise - x_0, noise, [EMPTY] * 2, EMPTY, Guidance(1.0), steps, shift=3.0
    )
    torch.testing.assert_close(found, x_0, rtol=0, atol=1e-3)  # UniPC starts at sigma = 1 - 1e-4


def test_a_latent_model_computes_in_its_own_type_and_returns_float32(tiny_transformer):
    transformer, sigma = tiny_transformer(8).to(torch.bfloat16), torch.tensor([0.3])
    z_t, text, mask = torch.randn(1, 6, 128), torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        u = latent_velocity(transformer, GRID)(z_t, sigma, text, mask)
        expected = run_transformer(transformer, z_t.bfloat16(), sigma, text.bfloat16(), GRID, mask)
    assert u.dtype == torch.float32
    assert torch.equal(u, expected.float())
