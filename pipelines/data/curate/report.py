"""Report of a curation: histograms of the rows read and kept, and counts by reason and by size."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipelines.viz.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40
_EDGES = {
    "aesthetic": np.linspace(0, 10, BINS + 1),
    "punsafe": np.linspace(0, 1, BINS + 1),
    "pwatermark": np.linspace(0, 1, BINS + 1),
    "similarity": np.linspace(0, 0.6, BINS + 1),
    "shorter side": np.geomspace(16, 16384, BINS + 1),
    "aspect": np.geomspace(1, 8, BINS + 1),
}


class Histograms:
    """Mergeable histograms, {"read" | "kept": {quantity: counts}}; values out of range count in the end bins."""

    def __init__(self) -> None:
        self.counts = {kind: {name: [0] * BINS for name in _EDGES} for kind in ("read", "kept")}

    def add(self, kind: str, values: Mapping[str, float]) -> None:
        """Count one row's values, {quantity: value}."""
        for name, value in values.items():
            index = int(np.searchsorted(_EDGES[name], value, side="right")) - 1
            self.counts[kind][name][min(max(index, 0), BINS - 1)] += 1

    def merge(self, counts: Mapping[str, Mapping[str, list[int]]]) -> None:
        """Add the counts of other histograms."""
        for kind, histograms in counts.items():
            for name, more in histograms.items():
                self.counts[kind][name] = [a + b for a, b in zip(self.counts[kind][name], more, strict=True)]


def report_figure(histograms: Histograms, reasons: Counter[str], buckets: Counter[str]) -> "Figure":
    """Plot the histograms, the rejected rows by reason, and the kept rows by size."""
    figure = new_figure(figsize=(12, 13), layout="constrained")
    grid = figure.add_gridspec(4, 2, height_ratios=(1, 1, 1, 1.6))
    for index, (name, edges) in enumerate(_EDGES.items()):
        axes = figure.add_subplot(grid[divmod(index, 2)])
        for kind, counts in histograms.counts.items():
            axes.stairs(counts[name], edges, label=kind, fill=kind == "kept")
        if name in ("shorter side", "aspect"):
            axes.set_xscale("log")
        axes.set(xlabel=name, ylabel="images")
        axes.legend()
    for column, (title, rows) in enumerate({"rejected": reasons, "kept, by size": buckets}.items()):
        axes = figure.add_subplot(grid[3, column])
        names = [name for name, _ in rows.most_common()][::-1]
        bars = axes.barh(names, [rows[name] for name in names])
        axes.bar_label(bars, padding=3)
        axes.set(title=title, xlabel="images")
        axes.margins(x=0.15)
    return figure
