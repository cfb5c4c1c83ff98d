"""The one pass over the pictures: the moments of their patches, of the latent tokens, and of both together."""

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
from pipelines.data.datasets import Pictures, Piece, read_images
from pipelines.data.tensors import read_group

# Sums are taken here (or in sRGB, if that is asked for), near zero mean and unit size, and brought into the space that
# is asked for afterwards.
SPACE = RELEASED
GROUPS = 16  # random sixteenths of the pieces, for standard errors and convergence
_CHUNK = 256  # patches that a processor's cache holds through the colour conversion


def partial_file(folder: str, name: str) -> str:
    return storage.join(folder, "partial", f"{name}.safetensors")


def read_partial(folder: str, name: str) -> PatchMoments:
    return PatchMoments.from_state_dict(load(storage.read_bytes(partial_file(folder, name))))


class PieceMoments:
    """One piece of a curated file to its PatchMoments, written as `partial/NAME.safetensors`; see `map_items`.

    Latent tokens come from `encoded` (URI of an encode artifact), else from the autoencoder of `settings.base`, else
    there are none.
    """

    def __init__(self, settings: BasisSettings, encoded: str, folder: str):
        self.settings, self.encoded, self.folder = settings, encoded, folder
        self.device = settings.resources.device
        self.space: Space = SrgbSpace() if settings.space == "srgb" else SPACE
        own = settings.base and not encoded
        self.encoder = load_image_encoder(settings.base, self.device) if own else None

    def __call__(self, item: str) -> dict[str, Any]:
        piece = Piece.from_json(item)
        moments: PatchMoments | None = None
        for pictures, latents in self.read(piece):
            tokens, latents, weight = self.choose(pictures, latents)
            if moments is None:
                width = None if latents is None else latents.shape[-1]
                moments = PatchMoments(tokens.shape[-1], width, getattr(torch, self.settings.products))
            moments.update(self.normalised(tokens), latents, weight)
        assert moments is not None  # no row group is empty
        storage.write_bytes(partial_file(self.folder, piece.name), save(moments.state_dict()))
        return {"name": piece.name}

    def read(self, piece: Piece) -> Iterator[tuple[Pictures, Tensor | None]]:
        """Pictures with their latent tokens (B, N, d), some at a time."""
        if self.encoded:
            yield from read_with_latents(piece, self.encoded)
            return
        for pictures in read_images(piece.uri, piece.groups):
            encode = self.encoder
            yield pictures, encode.encode(pictures.images.to(self.device)).float() if encode else None

    def choose(self, pictures: Pictures, latents: Tensor | None) -> tuple[Tensor, Tensor | None, float]:
        """(uint8 patches (B, n, D), latent tokens (B, n, d), patches that each stands for)."""
        size, wanted = self.settings.patch_size, self.settings.patches_per_image
        height, width = pictures.pixels.shape[-2:]
        patches = (height // size) * (width // size)
        if latents is not None and latents.shape[1] != patches:
            raise ValueError(f"a picture has {patches} patches but {latents.shape[1]} latent tokens: see patch_size")
        if wanted == "all" or wanted >= patches:
            return patchify(pictures.pixels, size), latents, 1
        chosen = torch.stack([choose_patches(key, patches, wanted) for key in pictures.keys])
        tokens = take_patches(pictures.pixels, chosen, size)
        if latents is not None:
            latents = latents[torch.arange(len(chosen))[:, None], chosen.to(latents.device)]
        return tokens, latents, patches / wanted

    def normalised(self, tokens: Tensor) -> Tensor:
        """uint8 patches (..., D) -> the same in normalised Oklab."""
        size = self.settings.patch_size
        patches = tokens.reshape(-1, 3, size, size).to(self.device)
        x = torch.empty(patches.shape, device=self.device)
        for i in range(0, len(patches), _CHUNK):
            x[i : i + _CHUNK] = self.space.encode8(patches[i : i + _CHUNK])
        return x.view(tokens.shape)


def read_with_latents(piece: Piece, encoded: str) -> Iterator[tuple[Pictures, Tensor]]:
    """The pictures of a piece with the latent tokens that stand at the same rows of the encoded file."""
    latents = storage.join(encoded, "latents", *piece.uri.split("/")[-2:])
    for group in piece.groups:
        codes = read_group(latents, group, ["key", "latents"])
        row = 0
        for pictures in read_images(piece.uri, range(group, group + 1)):
            part = slice(row, row := row + len(pictures.keys))
            if codes["key"][part] != pictures.keys:
                raise ValueError(f"{latents}: its rows are not those of {piece.uri}; encode the curated artifact again")
            yield pictures, codes["latents"][part]


def choose_patches(key: str, patches: int, wanted: int) -> Tensor:
    """`wanted` of the places 0 to patches - 1 at random without repetition: a pure function of the key."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    return torch.from_numpy(np.sort(generator.choice(patches, wanted, replace=False, shuffle=False)))


def in_space(moments: PatchMoments, space: OklabSpace) -> PatchMoments:
    """Moments taken in SPACE as those of another normalised Oklab space; tokens are packed channel first."""
    here, there = _affine(SPACE), _affine(space)
    each = moments.patch_dim // 3
    scale, shift = here[1] / there[1], (here[0] - there[0]) / there[1]
    return moments.affine(scale.repeat_interleave(each), shift.repeat_interleave(each))


def own_space(moments: PatchMoments) -> OklabSpace:
    """The colour space in which the pixels of these moments, taken in SPACE, have mean 0 and mean variance 1."""
    mean, std = _affine(SPACE)
    channels = moments.channels()
    shared = (std.square() * channels.variance).mean().sqrt()
    return OklabSpace(tuple((mean + std * channels.mean).tolist()), float(shared))


def _affine(space: OklabSpace) -> tuple[Tensor, Tensor]:
    return torch.tensor(space.mean, dtype=torch.float64), torch.tensor(space.std, dtype=torch.float64).expand(3)
