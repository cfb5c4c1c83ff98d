"""Filter samples by thresholds on the crawl's scores, on captions and on image sizes."""

import math
import re
from decimal import Decimal
from typing import Any

from PIL import Image
from pydantic import Field

from pipelines.core.config import Settings
from pipelines.data.curate.samples import Columns

_LARGEST = 1e9  # larger scores are invalid
_URL = re.compile(r"https?://|\bwww\.|\S+\.(?:com|net|org)(?:/|$)|^\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg)$", re.I)


class Rejected(Exception):
    """Raised for a row that fails a filter; the message is the reason written to `rejected/`."""


class Filters(Settings):
    """Thresholds; a row that fails one is rejected, also for a missing or NaN score. `null` disables a threshold.

    In a source without tars, scores and img2dataset's metadata, that is one's own images, the thresholds of scores,
    min_side and max_aspect apply only if they are given.
    """

    min_aesthetic: float | None = 4.5
    max_punsafe: float | None = 0.5
    max_pwatermark: float | None = 0.8
    min_similarity: float | None = 0.2
    min_side: int = Field(64, ge=1)
    """Shorter side in pixels, before resizing"""
    max_aspect: float = Field(2.0, ge=1)
    """Ratio of longer to shorter side"""
    captions: bool = True
    """Reject empty, too long and URL-like captions; disable it if the caption step writes new ones"""
    max_caption_chars: int = Field(2000, ge=1)

    def for_own_images(self) -> "Filters":
        """Return the filters of one's own images: without the thresholds that were not given."""
        return self.model_copy(update={name: v for name, v in _OPEN.items() if name not in self.model_fields_set})


_OPEN = {
    "min_aesthetic": None, "max_punsafe": None, "max_pwatermark": None, "min_similarity": None, "min_side": 1,
    "max_aspect": 1e6,
}  # fmt: skip


def check_caption(caption: str, filters: Filters) -> None:
    """Raise Rejected if a caption is empty, too long or URL-like."""
    if not filters.captions:
        return
    if not caption:
        raise Rejected("empty caption")
    if len(caption) > filters.max_caption_chars:
        raise Rejected("caption too long")
    if _URL.search(caption):
        raise Rejected("caption is a URL or a file name")


def read_scores(record: dict[str, Any], columns: Columns) -> dict[str, float]:
    """Return the valid scores of a record, by the names of the thresholds."""
    names = ("aesthetic", "punsafe", "pwatermark", "similarity")
    found = {name: _number(record.get(getattr(columns, name))) for name in names}
    return {name: score for name, score in found.items() if score is not None and -_LARGEST < score < _LARGEST}


def _number(value: Any) -> float | None:
    """Convert a number that may be stored as text or decimal; return None for anything else."""
    if isinstance(value, bool) or not isinstance(value, float | int | str | Decimal):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def read_label(record: dict[str, Any], columns: Columns) -> int:
    """Return the class label of a record. Raises Rejected if it is not a whole number from 0 to 2**31 - 1."""
    label = _number(record.get(columns.label))
    if label is None or not 0 <= label < 2**31 or label != int(label):
        raise Rejected("no label")
    return int(label)


def check_scores(scores: dict[str, float], filters: Filters) -> None:
    """Raise Rejected unless every score with a threshold exists and passes."""
    limits = {
        "aesthetic": (filters.min_aesthetic, math.inf),
        "punsafe": (-math.inf, filters.max_punsafe),
        "pwatermark": (-math.inf, filters.max_pwatermark),
        "similarity": (filters.min_similarity, math.inf),
    }
    for name, (low, high) in limits.items():
        if low is None or high is None:
            continue
        if name not in scores:
            raise Rejected(f"no {name} score")
        if not low <= scores[name] <= high:
            raise Rejected(f"{name} {'below' if scores[name] < low else 'above'} the threshold")


def check_dimensions(image: Image.Image, filters: Filters) -> None:
    """Raise Rejected if an image is too small or too elongated."""
    if min(image.size) < filters.min_side:
        raise Rejected("too small")
    if max(image.size) > filters.max_aspect * min(image.size):
        raise Rejected("too elongated")
