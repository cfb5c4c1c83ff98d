from pathlib import Path

import torch

from pipelines.sample.base_sampler import BaseSampler
from pipelines.sample.parameters import SamplingParameters

BASE = str(Path(__file__).parents[3] / "models" / "toy_klein")
PROMPTS = ["an emoji of strawberry on white", "a photo of a red flower, wide view"]


def test_a_bases_images_have_the_noise_of_their_seed_alone():
    sampler = BaseSampler(BASE, "none")
    parameters = SamplingParameters(32, 48, steps=2, guidance=2.0, shift=1.5)
    both = sampler.latent(PROMPTS, [3, 4], parameters)
    assert both.shape == (2, 3, 32, 48)
    assert (both[0] - both[1]).abs().max() > 0.1
    torch.testing.assert_close(sampler.latent(PROMPTS[1:], [4], parameters)[0], both[1], rtol=0, atol=1e-3)
    assert sampler.patch_size == 4
    assert sampler.defaults.shift == 7.0
