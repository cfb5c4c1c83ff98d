"""Sampler of a latent base alone, without an adapter: for corpora of its own images."""

from functools import cached_property, partial

import torch

from asymflow.adapters import SamplingDefaults
from asymflow.models.latent import family_of
from asymflow.sampling import latent_velocity
from pipelines.sample.sampler import LatentSampler, load_decoder, load_encode, load_transformer

SHIFT = 7.0
"""Default shift of a latent base at one megapixel, as the finetune's `validation.latent_shift`"""


class BaseSampler:
    """Samples a latent base. A token's noise is the first values of its patch's pixel noise.

    `base` is a local folder. On a GPU all weights are bfloat16.
    """

    adapter_sha256 = ""

    def __init__(self, base: str, text_padding: str, device: str = "cpu"):
        self.base, self.device = base, device
        self.defaults = SamplingDefaults(shift=SHIFT, text_padding=text_padding)
        self.patch_size, self.width = family_of(base).read_geometry(base)

    @cached_property
    def latent(self) -> LatentSampler:
        """Return the sampler, loaded on first use."""
        transformer = load_transformer(self.base, self.device)
        encode = load_encode(self.base, self.defaults.text_padding, self.device)
        A = torch.eye(3 * self.patch_size**2, self.width, device=self.device)
        decoder = load_decoder(self.base, self.device)
        return LatentSampler(partial(latent_velocity, transformer), decoder, encode, A, 1.0, self.patch_size)
