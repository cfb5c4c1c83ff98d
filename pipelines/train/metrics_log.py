"""Metrics log of a training: each step's loss and terms, and their means by noise level."""

import json
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

TRAINABLE, AVERAGE, METRICS_LOG = "trainable.safetensors", "average.safetensors", "record.json"
BINS = 10
CHUNK = 10_000
"""Steps per file of the history"""


class MetricsLog:
    """Means of every term by step, and over the whole run by tenth of sigma."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.curves: dict[str, list[float]] = {}
        self.by_sigma: dict[str, list[float]] = {}
        self.counts = [0] * BINS
        self.key_sums: list[int] = []
        """By step the sum of the CRC-32 of its images' keys, to compare which samples were trained on"""
        self.skipped: list[int] = []
        """Steps whose loss or gradient was not finite; left out of the means by noise level"""
        self.skipped_keys: dict[str, list[str]] = {}
        """Keys of the samples by skipped step"""

    def add(self, step: int, terms: dict[str, Tensor], skipped: bool = False) -> None:
        """Add a step.

        Args:
            step: optimizer step.
            terms: (B,) over the global batch, including `sigma`, `weight` and `key_sums`; weight 0 is padding.
            skipped: whether the step was skipped.
        """
        real = terms["weight"] > 0
        values = {name: v[real].double() for name, v in terms.items() if name not in ("weight", "key_sums")}
        self.steps.append(step)
        self.key_sums.append(int(terms["key_sums"].sum()))
        for name, term in values.items():
            self.curves.setdefault(name, []).append(float(term.mean()))
        if skipped:
            self.skipped.append(step)
            return
        bins = (values["sigma"] * BINS).long().clamp(0, BINS - 1)
        counts = torch.bincount(bins, minlength=BINS)
        self.counts = [a + b for a, b in zip(self.counts, counts.tolist(), strict=True)]
        for name, term in values.items():
            sums = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, term).tolist()
            self.by_sigma[name] = [a + b for a, b in zip(self.by_sigma.get(name, [0.0] * BINS), sums, strict=True)]

    def last(self) -> dict[str, float]:
        """Return the last step's terms."""
        return {name: values[-1] for name, values in self.curves.items()}

    def means_by_sigma(self, name: str) -> tuple[list[float], list[float]]:
        """Return the centers of the non-empty noise-level bins, and the term's mean in each."""
        seen = [i for i in range(BINS) if self.counts[i]]
        return [(i + 0.5) / BINS for i in seen], [self.by_sigma[name][i] / self.counts[i] for i in seen]

    def summary(self) -> dict[str, Any]:
        """Return the part that does not grow with the steps, for a checkpoint's state."""
        return {"by_sigma": dict(self.by_sigma), "counts": list(self.counts), "skipped": list(self.skipped)}

    def chunks(self, known: Collection[int] = ()) -> dict[int, dict[str, Any]]:
        """Return the history in chunks of CHUNK steps, {number: columns}, except the `known` ones."""
        found = {}
        start = 0
        while start < len(self.steps):
            number = (self.steps[start] - 1) // CHUNK
            end = min(start + CHUNK, len(self.steps))
            while (self.steps[end - 1] - 1) // CHUNK != number:  # steps are missing: their file was damaged
                end -= 1
            if number not in known:
                found[number] = self._rows(start, end)
            start = end
        return found

    def _rows(self, start: int, end: int) -> dict[str, Any]:
        steps = self.steps[start:end]
        return {
            "steps": steps,
            "curves": {name: values[start:end] for name, values in self.curves.items()},
            "key_sums": self.key_sums[start:end],
            "skipped_keys": {k: v for k, v in self.skipped_keys.items() if steps[0] <= int(k) <= steps[-1]},
        }

    @classmethod
    def from_parts(cls, summary: dict[str, Any], chunks: Iterable[dict[str, Any]]) -> "MetricsLog":
        """Return the log of a checkpoint from its `summary` and its `chunks` in order."""
        metrics_log = cls()
        vars(metrics_log).update(summary)
        for chunk in chunks:
            metrics_log.steps += chunk["steps"]
            metrics_log.key_sums += chunk["key_sums"]
            metrics_log.skipped_keys |= chunk["skipped_keys"]
            for name, values in chunk["curves"].items():
                metrics_log.curves.setdefault(name, []).extend(values)
        return metrics_log

    def to_json(self) -> str:
        """Return the log as JSON."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> "MetricsLog":
        """Return the log that `to_json` wrote."""
        metrics_log = cls()
        vars(metrics_log).update(json.loads(text))
        return metrics_log
