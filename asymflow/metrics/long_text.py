"""LongText-Bench (Geng et al. 2025, X-Omni, arXiv 2507.22058): how much of a long text an image shows.

A vision-language model reads the image; its reply and the expected text are compared as multisets of words (English) or
characters (Chinese).
"""

import re
from collections import Counter
from collections.abc import Sequence

NO_TEXT = "No text recognized."
"""Reply about an image without text, which is removed"""
_LETTERS = "\u4e00-\u9fa5a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"


def split_units(text: str, chinese: bool) -> list[str]:
    """Return the units that are compared; everything except letters, digits and Chinese characters is dropped.

    Args:
        text: A text.
        chinese: Whether the units are characters, rather than words in lower case.

    Returns:
        The units, in the text's order.
    """
    if chinese:
        return re.findall(f"[{_LETTERS}]", text)
    return re.sub(rf"[^{_LETTERS}\s]", "", text).lower().split()


def count_matches(expected: Sequence[str], reply: str, chinese: bool) -> tuple[int, int]:
    """Return how many units of the expected text occur in the reply, each at most as often as there.

    Args:
        expected: The texts that the image should show.
        reply: What the model reads in the image.
        chinese: Whether the units are characters, rather than words.

    Returns:
        The number of matches, and of units in the expected text. The benchmark's score is the ratio of their sums over
        all images.

    Raises:
        ValueError: If the expected text has no units.
    """
    units = Counter(split_units(" ".join(expected), chinese))
    if not units:
        raise ValueError(f"{' '.join(expected)!r} has no letters or digits")
    found = Counter(split_units(reply.replace(NO_TEXT, ""), chinese))
    return (units & found).total(), units.total()
