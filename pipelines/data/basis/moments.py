"""Accumulate the moments of image patches and latent tokens, and their cross moments, in one pass over the images."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from asymflow.moments import PatchMoments
from asymflow.oklab import RELEASED, OklabSpace
from asymflow.patches import patchify, take_patches
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Space
from pipelines.core import storage
from pipelines.core.base_models import load_image_encoder
from pipelines.data.basis.config import BasisSettings
from pipelines.data.datasets import ImageBatch, Piece, read_images
from pipelines.data.tensors import read_group

# Sums are accumulated in this space (or in sRGB), where values have about zero mean and unit variance, and transformed
# to the configured space afterwards.
SPACE = RELEASED
GROUPS = 16  # random groups of pieces, for standard errors and convergence
_CHUNK = 256  # patches per color conversion, so that the intermediates fit in a CPU's cache


def partial_file(folder: str, name: str) -> str:
    """Return the URI of a piece's moments."""
    return storage.join(folder, "partial", f"{name}.safetensors")


def read_partial(folder: str, name: str) -> PatchMoments:
    """Read a piece's moments."""
    return PatchMoments.from_state_dict(load(storage.read_bytes(partial_file(folder, name))))


class PieceMoments:
    """Worker of `map_items` that writes the PatchMoments of one piece to `partial/NAME.safetensors`.

    Latent tokens are read from the encode artifact at `encoded`, or encoded by the autoencoder of `settings.base`.
    Without both, there are none.
    """

    def __init__(self, settings: BasisSettings, encoded: str, folder: str):
        self.settings, self.encoded, self.folder = settings, encoded, folder
        self.device = settings.resources.device
        self.space: Space = SrgbSpace() if settings.space == "srgb" else SPACE
        own = settings.base and not encoded
        self.encoder = load_image_encoder(settings.base, self.device) if own else None

    def __call__(self, item: str) -> dict[str, Any]:
        """Process a piece, given as JSON."""
        piece = Piece.from_json(item)
        moments: PatchMoments | None = None
        for batch, latents in self.read(piece):
            tokens, latents, weight = self.choose(batch, latents)
            if moments is None:
                width = None if latents is None else latents.shape[-1]
                moments = PatchMoments(tokens.shape[-1], width, getattr(torch, self.settings.products))
            moments.update(self.normalised(tokens), latents, weight)
        assert moments is not None  # no row group is empty
        storage.write_bytes(partial_file(self.folder, piece.name), save(moments.state_dict()))
        return {"name": piece.name}

    def read(self, piece: Piece) -> Iterator[tuple[ImageBatch, Tensor | None]]:
        """Yield batches of images with their latent tokens (B, N, d), if any."""
        if self.encoded:
            yield from read_with_latents(piece, self.encoded)
            return
        for batch in read_images(piece.uri, piece.groups):
            encoder = self.encoder
            yield batch, encoder.encode(batch.images.to(self.device)).float() if encoder else None

    def choose(self, batch: ImageBatch, latents: Tensor | None) -> tuple[Tensor, Tensor | None, float]:
        """Choose the patches to use.

        Args:
            batch: A batch of B images with N patches each.
            latents: Latent tokens (B, N, d).

        Returns:
            uint8 patches (B, n, D), their latent tokens (B, n, d), and the weight N / n of a patch.

        Raises:
            ValueError: An image has another number of patches than of latent tokens.
        """
        size, count = self.settings.patch_size, self.settings.patches_per_image
        height, width = batch.pixels.shape[-2:]
        patches = (height // size) * (width // size)
        if latents is not None and latents.shape[1] != patches:
            raise ValueError(f"an image has {patches} patches but {latents.shape[1]} latent tokens; check patch_size")
        if count == "all" or count >= patches:
            return patchify(batch.pixels, size), latents, 1
        chosen = torch.stack([choose_patches(key, patches, count) for key in batch.keys])
        tokens = take_patches(batch.pixels, chosen, size)
        if latents is not None:
            latents = latents[torch.arange(len(chosen))[:, None], chosen.to(latents.device)]
        return tokens, latents, patches / count

    def normalised(self, tokens: Tensor) -> Tensor:
        """Convert uint8 patches (..., D) to the normalized color space of the sums, float32."""
        size = self.settings.patch_size
        patches = tokens.reshape(-1, 3, size, size).to(self.device)
        x = torch.empty(patches.shape, device=self.device)
        for i in range(0, len(patches), _CHUNK):
            x[i : i + _CHUNK] = self.space.encode8(patches[i : i + _CHUNK])
        return x.view(tokens.shape)


def read_with_latents(piece: Piece, encoded: str) -> Iterator[tuple[ImageBatch, Tensor]]:
    """Yield the images of a piece with their latent tokens, from the same rows of the encoded file.

    Raises:
        ValueError: The encoded file has other rows.
    """
    latents = storage.join(encoded, "latents", *piece.uri.split("/")[-2:])
    for group in piece.groups:
        codes = read_group(latents, group, ["key", "latents"])
        row = 0
        for batch in read_images(piece.uri, range(group, group + 1)):
            part = slice(row, row := row + len(batch.keys))
            if codes["key"][part] != batch.keys:
                raise ValueError(f"{latents}: its rows are not those of {piece.uri}; encode the curated artifact again")
            yield batch, codes["latents"][part]


def choose_patches(key: str, patches: int, count: int) -> Tensor:
    """Sample `count` of `patches` indices without replacement, sorted; a pure function of the image's key."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    return torch.from_numpy(np.sort(generator.choice(patches, count, replace=False, shuffle=False)))


def in_space(moments: PatchMoments, space: OklabSpace) -> PatchMoments:
    """Transform moments from SPACE to another normalized Oklab space; tokens are channel first."""
    (mean, std), (new_mean, new_std) = _affine(SPACE), _affine(space)
    pixels = moments.patch_dim // 3
    scale, shift = std / new_std, (mean - new_mean) / new_std
    return moments.affine(scale.repeat_interleave(pixels), shift.repeat_interleave(pixels))


def own_space(moments: PatchMoments) -> OklabSpace:
    """Return the Oklab space in which the pixels of moments in SPACE have mean 0 and mean variance 1."""
    mean, std = _affine(SPACE)
    channels = moments.channels()
    shared = (std.square() * channels.variance).mean().sqrt()
    return OklabSpace(tuple((mean + std * channels.mean).tolist()), float(shared))


def _affine(space: OklabSpace) -> tuple[Tensor, Tensor]:
    """Return a space's mean and std per channel, float64."""
    return torch.tensor(space.mean, dtype=torch.float64), torch.tensor(space.std, dtype=torch.float64).expand(3)
