"""Which samples are kept: thresholds on the crawl's scores, on captions and on sizes."""

import math
import re
from decimal import Decimal
from typing import Any

from PIL import Image
from pydantic import Field

from pipelines.core.config import Settings
from pipelines.data.curate.samples import Columns

_LARGEST = 1e9  # of a believable score
_URL = re.compile(r"https?://|\bwww\.|\S+\.(?:com|net|org)(?:/|$)|^\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg)$", re.I)


class Rejected(Exception):
    """Why a row is set aside."""


class Filters(Settings):
    """Rows that fail any of these are rejected; a missing or NaN score fails too. `null` turns a threshold off."""

    min_aesthetic: float | None = 4.5
    max_punsafe: float | None = 0.5
    max_pwatermark: float | None = 0.8
    min_similarity: float | None = 0.2
    min_side: int = Field(64, ge=1)
    """Shorter side in pixels, before resizing"""
    max_aspect: float = Field(2.0, ge=1)
    """Longer side over shorter side"""
    captions: bool = True
    """Reject empty, too long and URL-like captions; turn off where the caption step writes new ones"""
    max_caption_chars: int = Field(2000, ge=1)


def check_caption(caption: str, filters: Filters) -> None:
    """Raises Rejected."""
    if not filters.captions:
        return
    if not caption:
        raise Rejected("empty caption")
    if len(caption) > filters.max_caption_chars:
        raise Rejected("caption too long")
    if _URL.search(caption):
        raise Rejected("caption is a URL or a file name")


def read_scores(record: dict[str, Any], columns: Columns) -> dict[str, float]:
    """Return the scores that are believable numbers, by our names."""
    names = ("aesthetic", "punsafe", "pwatermark", "similarity")
    found = {name: _number(record.get(getattr(columns, name))) for name in names}
    return {name: score for name, score in found.items() if score is not None and -_LARGEST < score < _LARGEST}


def _number(value: Any) -> float | None:
    """Return a number that may be stored as text or decimal; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, float | int | str | Decimal):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def read_label(record: dict[str, Any], columns: Columns) -> int:
    """Return the number of the class. Raises Rejected."""
    label = _number(record.get(columns.label))
    if label is None or not 0 <= label < 2**31 or label != int(label):
        raise Rejected("no label")
    return int(label)


def check_scores(scores: dict[str, float], filters: Filters) -> None:
    """Raises Rejected unless every score with a threshold is there and on its right side."""
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
    """Raises Rejected."""
    if min(image.size) < filters.min_side:
        raise Rejected("too small")
    if max(image.size) > filters.max_aspect * min(image.size):
        raise Rejected("too elongated")
