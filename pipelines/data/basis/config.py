"""The settings of the basis step."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from pipelines.core.base_models import PUBLISHED, read_geometry
from pipelines.core.config import ConfigError, Layout, OptionalUri, Rank, StepSettings, Uri, added
from pipelines.core.workers import ModelWorkers


class BasisSettings(StepSettings):
    step: ClassVar[str] = "basis"
    inputs = {"curated": "curate", "color_stats": "color_stats", "encoded": "encode"}
    curated: Uri
    """Artifact of the curate step"""
    color_stats: OptionalUri = ""
    """Artifact of the color_stats step; empty: the statistics of the same pass over the same patches"""
    space: Literal["measured", "released", "srgb"] = "measured"
    """Colour space of the bases: Oklab by those statistics, or by the constants inside the released weights; or sRGB as
    it is, for models trained from scratch"""
    encoded: OptionalUri = ""
    """Artifact of the encode step, for its latent tokens; empty: the pictures are encoded here"""
    base: OptionalUri = ""
    """Folder of the latent model, a diffusers pipeline; without it and without `encoded` only the PCA is made"""
    patch_size: int = Field(None, ge=1)  # type: ignore[assignment]
    """Empty, here and for the rank: the base's own; without a base 16, and a rank of 128"""
    layout: Layout = "channel_first"
    """Order of values in a patch of `subspace` and `pca`; both are written in the other order too"""
    pca_rank: Rank = Field(None)  # type: ignore[arg-type]
    """Rank of the PCA basis (Procrustes has the latent tokens'). auto: the smallest that captures `energy`"""
    energy: float = added(0.93, gt=0, le=1)
    """Share of the patches' energy for which a rank is recommended; the default is about what the paper's rank 8
    captures of 16x16 patches of photographs"""
    pictures: int | None = Field(None, ge=1)
    """About so many at random, whole row groups of them; null: all"""
    patches_per_image: PositiveInt | Literal["all"] = 256
    """At random, each standing for its share of the picture: unbiased, standard errors are reported; or `all`"""
    products: Literal["float32", "float64"] = "float32"
    """Precision of products within a batch; sums are float64 always"""
    resources: ModelWorkers = ModelWorkers()

    @model_validator(mode="before")
    @classmethod
    def _follow_base(cls, tree: Any) -> Any:
        """Set what is left to the base: identities and manifests hold the numbers."""
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
