"""Validation prompts: captions of held-out images, their embeddings, the images, and the reference images of edits."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.data.datasets import decode_batch, has_references, read_images, read_rows, rows_by_group
from pipelines.data.embeddings import Source
from pipelines.data.tensors import read_group
from pipelines.train.row_groups import list_row_groups


@dataclass(frozen=True)
class Prompts:
    """The first held-out rows: captions, their embeddings, and the real images."""

    curated: list[str]
    text: list[str]
    """Files of the encode step with the same rows"""
    count: int

    @classmethod
    def by_kind(cls, curated: list[str], text: list[str], count: int) -> list["Prompts"]:
        """Return the prompts of each kind of rows (text-to-image, one reference image, ...), `count` in all."""
        kinds: dict[int, list[tuple[str, str]]] = {}
        for group in list_row_groups(curated, [], text):
            files = kinds.setdefault(group.references, [])
            if (group.curated, group.text) not in files:
                files.append((group.curated, group.text))
        found = [kinds[references] for references in sorted(kinds)][:count]
        counts = [count * (i + 1) // len(found) - count * i // len(found) for i in range(len(found))]
        parts = zip(found, counts, strict=True)
        return [cls([name for name, _ in files], [name for _, name in files], number) for files, number in parts]

    def captions(self) -> list[str]:
        """Return the captions."""
        return list(self._column("caption"))

    def embeddings(self, source: Source) -> list[Tensor]:
        """Return the captions' embeddings, (T_i, E) float32."""
        return [embedding.float() for embedding in source.request(list(self._column(source.column)))()]

    def _column(self, name: str) -> Iterator[Any]:
        groups = ((file, group) for file in self.text for group in range(len(rows_by_group(file))))
        return islice((value for place in groups for value in read_group(*place, [name])[name]), self.count)

    def references(self) -> Tensor | None:
        """Return the reference images (B, R, 3, H, W), sRGB in [-1, 1], of edits, all of the first image's size."""
        files = [file for file in self.curated if has_references(file)]
        rows = (row for file in files for group in read_rows(file, ["references"]) for row in group["references"])
        found = [decode_batch(row) for row in islice(rows, self.count)]
        if not found:
            return None
        size = found[0].shape[-2:]
        return torch.stack([F.interpolate(images, size, mode="area") for images in found])

    def images(self) -> Iterator[Tensor]:
        """Yield batches of the real images."""
        for file in self.curated:
            for rows in read_images(file):
                yield rows.images
