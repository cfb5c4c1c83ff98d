"""The history of a training: each step's loss and terms, and the same by noise level. And the names of its files."""

import json

import torch
from torch import Tensor

TRAINABLE, AVERAGE, RECORD = "trainable.safetensors", "average.safetensors", "record.json"
BINS = 10


class Record:
    """Means of every term by step, and over the whole run by tenth of sigma."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.curves: dict[str, list[float]] = {}
        self.by_sigma: dict[str, list[float]] = {}
        self.counts = [0] * BINS
        self.key_sums: list[int] = []
        """By step the sum of the CRC-32 of its pictures' keys: what was trained on, to be compared"""
        self.skipped: list[int] = []
        """Steps whose loss or gradient was not finite; they have no place in the curves' means by noise level"""

    def add(self, step: int, terms: dict[str, Tensor], skipped: bool = False) -> None:
        """`terms` are (B,) over the global batch, `sigma`, `weight` and `key_sums` among them; those of weight 0 only
        fill the batch."""
        real = terms["weight"] > 0
        values = {name: v[real].double() for name, v in terms.items() if name not in ("weight", "key_sums")}
        self.steps.append(step)
        self.key_sums.append(int(terms["key_sums"].sum()))
        for name, of_pictures in values.items():
            self.curves.setdefault(name, []).append(float(of_pictures.mean()))
        if skipped:
            self.skipped.append(step)
            return
        bins = (values["sigma"] * BINS).long().clamp(0, BINS - 1)
        counts = torch.bincount(bins, minlength=BINS)
        self.counts = [a + b for a, b in zip(self.counts, counts.tolist(), strict=True)]
        for name, of_pictures in values.items():
            sums = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, of_pictures).tolist()
            self.by_sigma[name] = [a + b for a, b in zip(self.by_sigma.get(name, [0.0] * BINS), sums, strict=True)]

    def last(self) -> dict[str, float]:
        return {name: values[-1] for name, values in self.curves.items()}

    def means_by_sigma(self, name: str) -> tuple[list[float], list[float]]:
        """Centres of the noise-level bins that were seen, and the term's mean in each."""
        seen = [i for i in range(BINS) if self.counts[i]]
        return [(i + 0.5) / BINS for i in seen], [self.by_sigma[name][i] / self.counts[i] for i in seen]

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> "Record":
        record = cls()
        vars(record).update(json.loads(text))
        return record
