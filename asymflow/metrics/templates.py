"""Texts that a metric's model was trained with, around the prompt. They are their authors', so they are read from a
file that the user names."""

from collections.abc import Sequence
from pathlib import Path

from asymflow.metrics.weights import MissingWeights
from asymflow.outside_text import read_text


def read_template(path: str | Path, fields: Sequence[str], origin: str) -> str:
    """The text of a file, without a byte order mark, in which each of `fields` occurs once.

    Raises:
        MissingWeights: there is no such file, or a field is not there once; `origin` says where to take the text from.
    """
    needed = f"needed is a text file that holds {' and '.join(fields)} once each: {origin}"
    if not path or not Path(path).is_file():
        raise MissingWeights(f"there is no template {str(path)!r}; {needed}")
    try:
        text = read_text(path)
    except ValueError as error:
        raise MissingWeights(f"{error}; {needed}") from None
    return check_template(text, fields, needed)


def check_template(text: str, fields: Sequence[str], needed: str) -> str:
    """The text itself. Raises MissingWeights, with `needed`, where one of `fields` does not occur once."""
    wrong = [field for field in fields if text.count(field) != 1]
    if wrong:
        raise MissingWeights(f"the template holds {' and '.join(wrong)} not once; {needed}")
    return text
