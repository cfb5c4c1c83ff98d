"""The settings of the basis step."""

from typing import Literal

from pydantic import Field, PositiveInt

from pipelines.core.config import Layout, OptionalUri, Uri
from pipelines.core.map_items import ModelWorkers
from pipelines.core.step import StepSettings


class BasisSettings(StepSettings):
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
    patch_size: int = Field(16, ge=1)
    layout: Layout = "channel_first"
    """Order of values in a patch of `subspace` and `pca`; both are written in the other order too"""
    pca_rank: int = Field(128, ge=1)
    """Rank of the PCA basis (Procrustes has the rank of the latent tokens)"""
    pictures: int | None = Field(None, ge=1)
    """About so many at random, whole row groups of them; null: all"""
    patches_per_image: PositiveInt | Literal["all"] = 256
    """At random, each standing for its share of the picture: unbiased, standard errors are reported; or `all`"""
    products: Literal["float32", "float64"] = "float32"
    """Precision of products within a batch; sums are float64 always"""
    resources: ModelWorkers = ModelWorkers()
