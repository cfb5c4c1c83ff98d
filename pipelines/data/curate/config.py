"""The settings of curation."""

from typing import ClassVar, Literal

from pydantic import Field

from pipelines.core.config import Settings, StepSettings, Uri
from pipelines.core.workers import Workers
from pipelines.data.curate.filters import Filters
from pipelines.data.curate.samples import Columns


class Encoding(Settings):
    """How the resized pictures are stored."""

    format: Literal["png", "webp", "jpeg"] = "png"
    """png and webp are lossless, webp smaller and faster to read; jpeg is a third of them, without subsampled colour"""
    quality: int = Field(95, ge=1, le=100)
    """Of jpeg"""


class CurateSettings(StepSettings):
    step: ClassVar[str] = "curate"
    source: Uri
    """Folder of img2dataset shards, tars or parquet with the image bytes, local or s3://"""
    columns: Columns = Columns()
    labels: Literal["", "column", "folder"] = ""
    """Class of each picture: column: `columns.label` of its row or json; folder: every folder of the source, or tar in
    it, holds the pictures of one class, numbered in the order of their names, as ImageNet is shared; empty: none"""
    buckets: list[tuple[int, int]] = Field([(64, 64)], min_length=1)
    """Sizes (width, height), multiples of 16; each picture goes to the one that crops it least"""
    filters: Filters = Filters()
    near_duplicate_bits: int | None = Field(3, ge=0, le=5)
    """Pictures whose 64-bit perceptual hashes differ in at most so many bits are duplicates; null: not compared"""
    crop: Literal["lanczos", "adm"] = "lanczos"
    """adm: halved while it is twice too large, then bicubic, then the centre, as for ImageNet's reference statistics"""
    linear_light: bool = False
    """Resize light rather than sRGB values: fine bright detail keeps its brightness, at several times the cost"""
    encoding: Encoding = Encoding()
    rows_per_file: int = Field(1024, ge=1)
    """At most; the files of one size are of even length"""
    held_out_every: int = Field(16, ge=2)
    """One picture in this many is kept out of training"""
    resources: Workers = Workers()
