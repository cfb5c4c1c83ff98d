"""Validation prompts: captions of held-out images, their embeddings and the images themselves."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from pipelines.data.datasets import read_images, rows_by_group
from pipelines.data.embeddings import Source
from pipelines.data.tensors import read_group


@dataclass(frozen=True)
class Prompts:
    """The first held-out rows: captions, their embeddings, and the real images."""

    curated: list[str]
    text: list[str]
    """Files of the encode step with the same rows"""
    count: int

    def captions(self) -> list[str]:
        """Return the captions."""
        return list(self._column("caption"))

    def embeddings(self, source: Source) -> list[Tensor]:
        """Return the captions' embeddings, (T_i, E) float32."""
        return [embedding.float() for embedding in source.request(list(self._column(source.column)))()]

    def _column(self, name: str) -> Iterator[Any]:
        groups = ((file, group) for file in self.text for group in range(len(rows_by_group(file))))
        return islice((value for place in groups for value in read_group(*place, [name])[name]), self.count)

    def images(self) -> Iterator[Tensor]:
        """Yield batches of the real images."""
        for file in self.curated:
            for rows in read_images(file):
                yield rows.images
