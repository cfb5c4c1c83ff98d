"""Bases: PCA and Procrustes with its scale, from one pass over the pictures and their latents (appendix A.1, A.2)."""

import json
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from pydantic import Field
from safetensors.torch import load, save

from asymflow.models.autoencoder import encode_images
from asymflow.moments import PatchMoments
from asymflow.oklab import OklabSpace
from asymflow.patches import patchify
from asymflow.subspace import Subspace, captured_energy, fit_scale, pca_basis, procrustes_basis, residual_ratio
from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.color_stats import load_space
from pipelines.config import ConfigError, Layout, Uri
from pipelines.datasets import read_images
from pipelines.figures import basis_tiles, spectrum_figure
from pipelines.models import check_base
from pipelines.shards import ModelWorkers, by_name, map_items, shard_name
from pipelines.steps import Context, Step, StepSettings


class BasisSettings(StepSettings):
    curated: Uri
    """Artifact of the curate step"""
    color_stats: Uri
    """Artifact of the color_stats step"""
    base: Uri
    """Folder of the latent model, a diffusers pipeline; its `vae` is used"""
    patch_size: int = Field(16, ge=1)
    layout: Layout = "channel_first"
    """Order of values in a patch"""
    pca_rank: int = Field(128, ge=1)
    """Rank of the PCA basis (Procrustes has the rank of the latent tokens)"""
    resources: ModelWorkers = ModelWorkers()


def check(settings: BasisSettings) -> None:
    check_base(settings.base, ("vae",))
    patch_dim = 3 * settings.patch_size**2
    if settings.pca_rank > patch_dim:
        raise ConfigError(f"pca_rank={settings.pca_rank}: must be at most the patch dimension, {patch_dim}")


class ShardMoments:
    """One curated file to its PatchMoments, written as `partial/NAME.safetensors`; see `map_items`."""

    def __init__(self, settings: BasisSettings, space: OklabSpace, folder: str):
        self.settings, self.space, self.folder = settings, space, folder
        self.device = settings.resources.device
        self.autoencoder = AutoencoderKLFlux2.from_pretrained(settings.base, subfolder="vae").to(self.device).eval()

    def __call__(self, shard: str) -> dict[str, Any]:
        patch_size = self.settings.patch_size
        moments = PatchMoments(3 * patch_size**2, 4 * self.autoencoder.config.latent_channels)
        for rows in read_images(shard):
            images = rows.images.to(self.device)
            pixels = patchify(self.space.encode(images), patch_size, self.settings.layout)
            moments.update(pixels, encode_images(self.autoencoder, images))
        storage.write_bytes(partial_file(self.folder, shard), save(moments.state_dict()))
        return {}


def partial_file(folder: str, shard: str) -> str:
    return storage.join(folder, "partial", f"{shard_name(shard)}.safetensors")


def build(settings: BasisSettings, context: Context) -> dict[str, float]:
    space = load_space(context.inputs["color_stats"])
    shards = context.inputs["curated"].files("train", ".parquet")
    make_worker = partial(ShardMoments, settings, space, context.folder)
    total: PatchMoments | None = None
    growing: list[tuple[int, torch.Tensor]] = []  # the basis after 1, 2, 4, ... shards: how it converges
    summaries = map_items(by_name(shards), make_worker, context.folder, settings.resources)
    for index, summary in enumerate(summaries, start=1):
        part = load(storage.read_bytes(partial_file(context.folder, summary["item"])))
        moments = PatchMoments.from_state_dict(part)
        total = moments if total is None else total
        if total is not moments:
            total.merge(moments)
        if index & (index - 1) == 0 and total.cross_gram is not None:
            growing.append((int(total.count), procrustes_basis(total.cross_gram)))
    assert total is not None  # curate refuses an empty result
    return report(settings, context, total, space, growing)


def report(
    settings: BasisSettings,
    context: Context,
    moments: PatchMoments,
    space: OklabSpace,
    growing: list[tuple[int, torch.Tensor]],
) -> dict[str, float]:
    """Write both bases and what is to be known of them."""
    gram, cross, norm_sq = moments.pixel_gram, moments.cross_gram, moments.latent_norm_sq
    assert cross is not None and norm_sq is not None  # every shard came with latents
    A, pca = procrustes_basis(cross), pca_basis(gram, settings.pca_rank)
    s = fit_scale(A, gram, norm_sq)
    provenance = {"patches": int(moments.count), "base": settings.base}
    save_subspace(context, "subspace", A, s, settings.layout, space, {**provenance, "method": "procrustes"})
    save_subspace(context, "pca", pca, 1.0, settings.layout, space, {**provenance, "method": "pca"})
    overlaps = [(n, float((part.mT @ A).square().sum() / A.shape[1])) for n, part in growing]
    metrics = {
        "scale": s,
        "residual": residual_ratio(A, s, gram, cross, norm_sq),
        "captured_procrustes": captured_energy(A, gram),
        "captured_pca": captured_energy(pca, gram),
        "patches": float(moments.count),
    }
    convergence = [{"patches": n, "overlap": overlap} for n, overlap in overlaps]
    content = json.dumps({**metrics, "convergence": convergence}, indent=1)
    storage.write_bytes(context.file("basis.json"), content.encode())
    for name, basis in (("procrustes", A), ("pca", pca)):
        context.tracker.log_picture(f"basis_{name}", basis_tiles(basis, settings.patch_size, settings.layout, space))
    context.tracker.log_figure("spectrum", spectrum_figure(gram, A))
    return metrics


def save_subspace(
    context: Context, name: str, A: torch.Tensor, s: float, layout: str, space: OklabSpace, provenance: dict
) -> None:
    subspace = Subspace(A.float(), s, layout, space, provenance)
    storage.write_file(context.file(f"{name}.safetensors"), subspace.save)


def load_subspace(artifact: Artifact, name: str = "subspace") -> Subspace:
    """A basis of a basis artifact: `subspace` (Procrustes) or `pca`."""
    return storage.read_file(artifact.file(f"{name}.safetensors"), Subspace.load)


STEP = Step(
    "basis",
    BasisSettings,
    build,
    inputs={"curated": "curate", "color_stats": "color_stats"},
    check=check,
    contents=("base",),
)
