"""Color statistics step: exact mean and standard deviation of Oklab pixels, from mergeable sums per shard."""

import json
from functools import partial
from typing import Any

import torch
from safetensors.torch import load, save

from asymflow.moments import ChannelHistogram, ChannelMoments
from asymflow.oklab import RELEASED, OklabSpace, srgb8_to_oklab
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.map_items import map_items
from pipelines.core.step import Context, Step
from pipelines.data.config import ColorStatsSettings
from pipelines.data.datasets import Piece, cut_into_pieces, read_images
from pipelines.viz.figures import histogram_figure

CHANNELS = ("L", "a", "b")
_STRIP = 1 << 14  # pixels per conversion to Oklab, so that the intermediates fit in a CPU's cache


class PieceColors:
    """Worker of `map_items` that writes the sums and histogram of one piece to `partial/NAME.safetensors`."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, item: str) -> dict[str, Any]:
        """Process a piece, given as JSON."""
        piece = Piece.from_json(item)
        moments, histogram = ChannelMoments(), new_histogram()
        for pictures in read_images(piece.uri, piece.groups):
            for strip in pictures.pixels.flatten(2).split(_STRIP, dim=2):
                oklab = srgb8_to_oklab(strip[..., None], torch.float64)
                moments.update(oklab)
                histogram.update(oklab)
        sums = moments.state_dict() | {"histogram": histogram.counts}
        storage.write_bytes(partial_file(self.folder, piece.name), save(sums))
        return {"name": piece.name}


def new_histogram() -> ChannelHistogram:
    """Return an empty histogram of L, a and b."""
    return ChannelHistogram(low=(0.0, -0.4, -0.4), high=(1.0, 0.4, 0.4))


def partial_file(folder: str, name: str) -> str:
    """Return the URI of a piece's sums."""
    return storage.join(folder, "partial", f"{name}.safetensors")


def build(settings: ColorStatsSettings, context: Context) -> dict[str, float]:
    """Compute `color_stats.json` over the training images; see `pipelines.core.step.Step`."""
    pieces = cut_into_pieces(context.inputs["curated"].files("train", ".parquet"))
    items = {piece.name: piece.to_json() for piece in pieces}
    total, histogram = ChannelMoments(), new_histogram()
    worker = partial(PieceColors, context.folder)
    for summary in map_items(items, worker, context.folder, settings.resources):
        sums = load(storage.read_bytes(partial_file(context.folder, summary["name"])))
        total.merge(ChannelMoments.from_state_dict(sums))
        histogram.merge(sums["histogram"])
    edges = [
        torch.linspace(low, high, histogram.bins + 1, dtype=torch.float64).tolist()
        for low, high in zip(histogram.low, histogram.high, strict=True)
    ]
    stats: dict[str, Any] = {
        "mean": total.mean.tolist(),
        "std": total.shared_std,
        "std_per_channel": total.std.tolist(),
        "pixels": int(total.count),
        "convention": "Oklab of sRGB; std is the root of the mean of the three channels' variances",
        "released": {"mean": RELEASED.mean, "std": RELEASED.std},
        "histogram": {"edges": edges, "counts": histogram.counts.tolist()},
    }
    storage.write_bytes(context.file("color_stats.json"), json.dumps(stats, indent=1).encode())
    context.tracker.log_figure("colors", histogram_figure(edges, histogram.counts, CHANNELS))
    return {
        **{f"mean_{n}": m for n, m in zip(CHANNELS, stats["mean"], strict=True)},
        "std": stats["std"],
        **{f"std_{n}": v for n, v in zip(CHANNELS, stats["std_per_channel"], strict=True)},
        "pixels": stats["pixels"],
    }


def load_space(artifact: Artifact) -> OklabSpace:
    """Load the Oklab space of a color_stats artifact: a mean per channel and one shared std."""
    stats = json.loads(storage.read_bytes(artifact.file("color_stats.json")))
    return OklabSpace(tuple(stats["mean"]), stats["std"])


STEP = Step("color_stats", ColorStatsSettings, build, inputs=ColorStatsSettings.inputs)
