"""Texts that a metric's model was trained with, around the prompt. They are their authors', so they are read from a
file that the user names."""

import hashlib
from pathlib import Path
from typing import Any

from asymflow.metrics.weights import MissingWeights


class Template:
    """A text with places to fill in. MissingWeights where there is no such file, or a place is not in it just once."""

    def __init__(self, path: str, places: tuple[str, ...], origin: str):
        needed = f"a text file with {' and '.join(places)} in it, {origin}"
        if not path:
            raise MissingWeights(f"no template was named: needed is {needed}")
        if not Path(path).is_file():
            raise MissingWeights(f"the template {path} does not exist: needed is {needed}")
        self.text = Path(path).read_text("utf-8")
        for place in places:
            if self.text.count(place) != 1:
                count = self.text.count(place)
                raise MissingWeights(f"the template {path} has {place} {count} times: needed is {needed}")
        self.protocol: dict[str, Any] = {"template_sha256": hashlib.sha256(self.text.encode()).hexdigest()[:16]}

    def fill(self, place: str, value: str) -> str:
        """Other braces mean nothing."""
        return self.text.replace(place, value)
