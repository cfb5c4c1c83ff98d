"""Prompt templates of metric models, read from a file that the user names, since they are their authors' work."""

from collections.abc import Sequence
from pathlib import Path

from asymflow.metrics.weights import MissingWeights
from asymflow.text_files import read_text


def read_template(path: str | Path, fields: Sequence[str], origin: str, once: bool = True) -> str:
    """Read a template, without its byte order mark.

    Args:
        path: The file.
        fields: Fields that must occur.
        origin: Where to take the text from, for errors.
        once: Whether each field may occur only once.

    Returns:
        The template.

    Raises:
        MissingWeights: If the file is missing, not UTF-8 text, or a field does not occur (exactly once).
    """
    contains = f" that contains {' and '.join(fields)}{' once each' if once else ''}" if fields else ""
    needed = f"needed is a text file{contains}: {origin}"
    if not path or not Path(path).is_file():
        raise MissingWeights(f"there is no template {str(path)!r}; {needed}")
    try:
        text = read_text(path)
    except ValueError as error:
        raise MissingWeights(f"{error}; {needed}") from None
    if once:
        return check_template(text, fields, needed)
    if not text.strip() or any(field not in text for field in fields):
        raise MissingWeights(f"the template {str(path)!r} is empty or lacks a field; {needed}")
    return text


def check_template(text: str, fields: Sequence[str], needed: str) -> str:
    """Check that each field occurs exactly once.

    Args:
        text: The template.
        fields: The fields.
        needed: What is needed, for errors.

    Returns:
        The same text.

    Raises:
        MissingWeights: If one does not.
    """
    wrong = [field for field in fields if text.count(field) != 1]
    if wrong:
        raise MissingWeights(f"the template does not contain {' and '.join(wrong)} exactly once; {needed}")
    return text
