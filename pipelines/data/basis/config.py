"""The settings of the basis step."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from pipelines.core.base_models import PUBLISHED, read_geometry
from pipelines.core.config import ConfigError, Layout, OptionalUri, Rank, StepSettings, Uri, added
from pipelines.core.workers import ModelWorkers


class BasisSettings(StepSettings):
    """Fit the PCA and Procrustes bases, and the scale, to the curated images and their latents."""

    step: ClassVar[str] = "basis"
    inputs = {"curated": "curate", "color_stats": "color_stats", "encoded": "encode"}
    curated: Uri
    """Artifact of the curate step"""
    color_stats: OptionalUri = ""
    """Artifact of the color_stats step; empty: statistics of the same patches that the bases are fitted to"""
    space: Literal["measured", "released", "srgb"] = "measured"
    """Color space of the bases. measured: Oklab, normalized by `color_stats`; released: Oklab, normalized by the
    constants of the released weights; srgb: plain sRGB, for models trained from scratch"""
    encoded: OptionalUri = ""
    """Artifact of the encode step, for its latent tokens; empty: the images are encoded in this step"""
    base: OptionalUri = ""
    """Folder of the latent model, a diffusers pipeline; without `base` and `encoded` only the PCA basis is computed"""
    patch_size: int = Field(None, ge=1)  # type: ignore[assignment]
    """Side of a patch in pixels; empty: that of the base, or 16 without a base"""
    layout: Layout = "channel_first"
    """Order of values in a patch of `subspace` and `pca`; both are written in the other order too"""
    pca_rank: Rank = Field(None)  # type: ignore[arg-type]
    """Rank of the PCA basis (the Procrustes basis has the rank of the latent tokens); empty: that of the base, or 128
    without a base; auto: the smallest rank that captures `energy`"""
    energy: float = added(0.93, gt=0, le=1)
    """Share of the patches' energy that the recommended rank captures; the default is about what the paper's rank 8
    captures of 16x16 patches of photographs"""
    pictures: int | None = Field(None, ge=1)
    """Approximate number of images, chosen at random in whole row groups; null: all"""
    patches_per_image: PositiveInt | Literal["all"] = 256
    """Number of random patches per image, weighted so that estimates are unbiased; standard errors are reported. all:
    every patch"""
    products: Literal["float32", "float64"] = "float32"
    """Precision of products within a batch; sums are always float64"""
    resources: ModelWorkers = ModelWorkers()

    @model_validator(mode="before")
    @classmethod
    def _follow_base(cls, tree: Any) -> Any:
        """Set patch size and rank from the base if they are not given, so that hashes and manifests have the values."""
        if not isinstance(tree, Mapping) or not isinstance(base := tree.get("base") or "", str):
            return tree
        names = ("patch_size", "pca_rank")
        missing = [name for name in names if tree.get(name) is None]
        if not missing:
            return tree
        try:
            own = dict(zip(names, read_geometry(base) if base else PUBLISHED, strict=True))
        except ConfigError as error:
            raise ValueError(f"{' and '.join(missing)}: not given, and {error}") from None
        return {**tree, **{name: own[name] for name in missing}}
