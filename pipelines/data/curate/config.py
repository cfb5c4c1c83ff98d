"""Settings of the curate step."""

from typing import ClassVar, Literal

from pydantic import Field

from pipelines.core.config import OptionalSourceUri, Settings, SourceUri, StepSettings, added
from pipelines.core.workers import Workers
from pipelines.data.curate.filters import Filters
from pipelines.data.curate.samples import Columns


class Encoding(Settings):
    """Encoding of the resized images."""

    format: Literal["png", "webp", "jpeg"] = "png"
    """png and webp are lossless, webp is smaller and faster to read; jpeg has a third of their size, without chroma
    subsampling"""
    quality: int = Field(95, ge=1, le=100)
    """Quality of jpeg"""
    effort: int = added(0, ge=0, le=9)
    """Of png and webp: 0 is the fastest, 9 the smallest; the pixels are the same"""
    keep_unchanged: bool = added(True)
    """With png and webp: store the source's own file where its pixels do not change, which are 8-bit RGB of the right
    size in a JPEG, PNG or WebP without EXIF data, color profile, transparency or animation. Decoders of JPEG may differ
    in the last bit of a value"""

    @property
    def keeps_sources(self) -> bool:
        """Return whether unchanged files are stored as they are. With jpeg they are encoded like all others."""
        return self.keep_unchanged and self.format != "jpeg"


class CaptionTables(Settings):
    """Tables of captions, which are joined with the images by a key, such as the image's hash.

    They are .parquet, .jsonl or .jsonl.gz; the captions have to fit into Ray's object store.
    """

    source: SourceUri
    """Table, or folder of tables, with the captions: local, s3:// or hf://datasets/"""
    keys: OptionalSourceUri = ""
    """Table, or folder of tables, with the keys of the same rows in the same order, which may be in the folder of the
    captions; empty: the tables of the captions have the keys"""
    caption: str = "caption"
    """Column of the captions"""
    key: str = "key"
    """Column of the keys; of rows with equal keys the last is used"""


class CurateSettings(StepSettings):
    """Filter, resize and deduplicate images: one's own, or img2dataset shards."""

    step: ClassVar[str] = "curate"
    source: SourceUri
    """Folder or zip of images with captions, of a Hugging Face data set, or of img2dataset's output: local, s3://, or
    hf://datasets/OWNER/NAME with an optional @REVISION and /PATH, which is read without a copy on disk"""
    columns: Columns = Columns()
    captions: CaptionTables | None = added(None)
    """Captions of the images, found by `columns.caption_key`; null: the captions of the source"""
    labels: Literal["", "column", "folder"] = ""
    """Class label of each image. column: `columns.label` of its row or JSON; folder: each folder or tar directly in the
    source is one class, numbered in the order of their names, the layout of ImageNet; empty: no labels"""
    buckets: list[tuple[int, int]] = Field([(64, 64)], min_length=1)
    """Sizes (width, height), multiples of 16; each image is resized to the one that crops it least, and of those to the
    largest that does not enlarge it"""
    filters: Filters = Filters()
    near_duplicate_bits: int | None = Field(3, ge=0, le=5)
    """Maximum number of different bits in the 64-bit perceptual hashes of duplicates; null: not compared"""
    crop: Literal["lanczos", "adm"] = "lanczos"
    """lanczos: Lanczos resize, then center crop; adm: halvings by box filter, bicubic resize, then center crop, as for
    ImageNet's reference statistics"""
    linear_light: bool = False
    """Resize in linear light instead of sRGB values, which preserves the brightness of fine detail at several times
    the cost"""
    encoding: Encoding = Encoding()
    rows_per_file: int = Field(1024, ge=1)
    """Maximum number of rows per file; the files of one size have even length"""
    held_out_every: int = Field(16, ge=2)
    """About one image in this many is held out of training"""
    horizontal_flips: bool = added(False)
    """Add a mirrored copy of each training image, with the key KEY#flipped and the same caption; for small sets without
    text and without left and right in their captions"""
    resources: Workers = Workers()
