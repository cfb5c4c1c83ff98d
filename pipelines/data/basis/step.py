"""Basis step: PCA and Procrustes bases, from one pass over the images and their latents (appendix A.1, A.2)."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asymflow.moments import PatchMoments
from asymflow.oklab import RELEASED, OklabSpace
from asymflow.patches import LAYOUTS, layout_order
from asymflow.srgb import SrgbSpace
from asymflow.subspace import RECOMMENDED, Space, Subspace, captured_by_rank, smallest_rank
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.base_models import check_base, read_geometry
from pipelines.core.config import ConfigError
from pipelines.core.map_items import map_items
from pipelines.core.step import Context, Step
from pipelines.data.basis.config import BasisSettings
from pipelines.data.basis.moments import GROUPS, PieceMoments, in_space, own_space, read_partial
from pipelines.data.basis.report import bases_of, convergence, measure, merged, standard_errors
from pipelines.data.color_stats import load_space
from pipelines.data.datasets import cut_into_pieces
from pipelines.data.embeddings import are_latents_stored
from pipelines.viz.figures import basis_tiles, convergence_figure, spectrum_figure


def check(settings: BasisSettings) -> None:
    """Check that the settings are consistent with each other and with the base. Raises ConfigError."""
    if settings.space == "released" and settings.color_stats:
        raise ConfigError("space='released': its constants are fixed; remove color_stats, or set space=measured")
    if settings.base:
        check_base(settings.base, images=True)
        check_patch_size(settings, settings.base)
    if settings.space == "srgb" and (settings.color_stats or settings.encoded or settings.base):
        raise ConfigError("space='srgb': allows only the PCA basis; remove color_stats, encoded and base")
    patch_dim = 3 * settings.patch_size**2
    if settings.pca_rank == 0:
        raise ConfigError("pca_rank=0: must be auto, or at least 1")
    if settings.pca_rank != "auto" and settings.pca_rank > patch_dim:
        raise ConfigError(f"pca_rank={settings.pca_rank}: must be at most the patch dimension, {patch_dim}")


def check_patch_size(settings: BasisSettings, base: str) -> None:
    """Raise ConfigError unless a patch has the pixels of one latent token of the base."""
    own = read_geometry(base).pixels_per_token
    if settings.patch_size != own:
        raise ConfigError(
            f"patch_size={settings.patch_size}: latent tokens of {base} represent {own}x{own} pixels; set {own}"
        )


def check_inputs(settings: BasisSettings, inputs: Mapping[str, Artifact]) -> None:
    """Check that the encoded latents are stored, of the curated images and of the patch size. Raises ConfigError."""
    if "encoded" in inputs and inputs["encoded"].manifest["inputs"]["curated"] != inputs["curated"].id:
        raise ConfigError("encoded: made from another curated artifact than `curated`; run the encode step on it")
    if "encoded" in inputs and not are_latents_stored(inputs["encoded"]):
        raise ConfigError(
            "encoded: it stores no latents (latents=on_the_fly); remove it and set `base`, so that this step encodes "
            "the images"
        )
    if "encoded" in inputs and Path(base := inputs["encoded"].manifest["config"]["base"]).is_dir():
        check_patch_size(settings, base)


def build(settings: BasisSettings, context: Context) -> dict[str, float]:
    """Compute and write the bases; see `pipelines.core.step.Step`."""
    groups, images = compute_moments(settings, context)
    if settings.space == "srgb":
        return write_bases(settings, context, groups, SrgbSpace(), images)
    space = space_for(settings, context.inputs.get("color_stats"), groups)
    return write_bases(settings, context, [in_space(group, space) for group in groups], space, images)


def space_for(settings: BasisSettings, stats: Artifact | None, groups: list[PatchMoments]) -> OklabSpace:
    """Return the Oklab space of the bases: released, from the color_stats artifact, or measured on the patches."""
    if settings.space == "released":
        return RELEASED
    return load_space(stats) if stats else own_space(merged(groups))


def compute_moments(settings: BasisSettings, context: Context) -> tuple[list[PatchMoments], int]:
    """Return the moments of GROUPS random parts of the images (fewer for little data), and the number of images."""
    pieces = cut_into_pieces(context.inputs["curated"].files("train", ".parquet"), GROUPS)
    if settings.pictures is not None:
        rows = torch.tensor([piece.rows for piece in pieces]).cumsum(0)
        pieces = pieces[: int((rows < settings.pictures).sum()) + 1]
    encoded = context.inputs["encoded"].uri if "encoded" in context.inputs else ""
    make_worker = partial(PieceMoments, settings, encoded, context.folder)
    items = {piece.name: piece.to_json() for piece in pieces}
    groups: list[PatchMoments] = []
    for number, summary in enumerate(map_items(items, make_worker, context.folder, settings.resources)):
        part = read_partial(context.folder, summary["name"])
        if number < GROUPS:
            groups.append(part)
        else:
            groups[number % GROUPS].merge(part)
    return groups, sum(piece.rows for piece in pieces)


def write_bases(
    settings: BasisSettings, context: Context, groups: list[PatchMoments], space: Space, images: int
) -> dict[str, float]:
    """Write the bases in both layouts, and `basis.json` with their metrics; return the metrics."""
    total = merged(groups)
    captured = captured_by_rank(total.pixel_gram)
    recommended = smallest_rank(captured, settings.energy)
    rank = recommended if settings.pca_rank == "auto" else settings.pca_rank
    bases = bases_of(total, rank)
    metrics = {**measure(total, rank), "patches": total.count, "pictures": images}
    metrics |= {f"captured_at_{r}": float(captured[r]) for r in powers_of_two(len(captured) - 1)}
    metrics["recommended_rank"] = recommended
    errors = standard_errors(groups, lambda moments: measure(moments, rank))
    converging = convergence(groups, bases)
    provenance = {"pictures": images, "patches": round(total.count), "base": settings.base}
    for layout in LAYOUTS:
        suffix = "" if layout == settings.layout else f"_{layout}"
        order = layout_order(settings.patch_size, "channel_first", layout)
        for name, (A, s) in bases.items():
            origin = {**provenance, "method": "procrustes"}
            if name == "pca":
                origin |= {"method": "pca", "energy": settings.energy, RECOMMENDED: recommended}
            subspace = Subspace(A[order].float(), s, layout, space, origin)
            storage.write_file(context.file(f"{name}{suffix}.safetensors"), subspace.save)
    content = {
        **metrics,
        "standard_errors": errors,
        "convergence": converging,
        "captured_by_rank": captured.tolist(),
        "space": asdict(space),
    }
    storage.write_bytes(context.file("basis.json"), json.dumps(content, indent=1).encode())
    log_figures(settings, context, total, bases, converging, space)
    return metrics | {f"{name}_error": error for name, error in errors.items()}


def log_figures(
    settings: BasisSettings,
    context: Context,
    moments: PatchMoments,
    bases: dict[str, tuple[torch.Tensor, float]],
    converging: list[dict[str, Any]],
    space: Space,
) -> None:
    """Log the images of the bases, and the figures of spectrum and convergence."""
    tracker = context.tracker
    for name, (A, _) in bases.items():
        tracker.log_image(f"basis_{name}", basis_tiles(A, settings.patch_size, "channel_first", space))
    vectors = {name: A for name, (A, _) in bases.items()}
    tracker.log_figure("spectrum", spectrum_figure(moments.pixel_gram, vectors, settings.energy))
    if converging:
        tracker.log_figure("convergence", convergence_figure(converging, list(bases)))


def powers_of_two(most: int) -> list[int]:
    """Return 1, 2, 4, ... and `most` itself."""
    found = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*found, most]


def load_subspace(artifact: Artifact, name: str = "subspace") -> Subspace:
    """Load a basis of a basis artifact: `subspace` (Procrustes) or `pca`."""
    return storage.read_file(artifact.file(f"{name}.safetensors"), Subspace.load)


def hash_overrides(settings: BasisSettings, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Return the precision of the encoder, if this step encodes the images; see `pipelines.core.step.Step`."""
    encodes = settings.base and "encoded" not in inputs
    return {"resources.precision": settings.resources.precision} if encodes else {}


STEP = Step(
    "basis",
    BasisSettings,
    build,
    BasisSettings.inputs,
    check=check,
    check_inputs=check_inputs,
    contents=("base",),
    hash_overrides=hash_overrides,
)
