"""Colour statistics: exact mean and standard deviation of Oklab pixels, from mergeable sums of every shard."""

import json
from functools import partial
from typing import Any

from safetensors.torch import load, save

from asymflow.moments import ChannelMoments
from asymflow.oklab import OklabSpace, srgb_to_oklab
from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.config import Uri
from pipelines.datasets import read_images
from pipelines.shards import Workers, by_name, map_items, shard_name
from pipelines.steps import Context, Step, StepSettings


class ColorStatsSettings(StepSettings):
    curated: Uri
    """Artifact of the curate step"""
    resources: Workers = Workers()


class ShardMoments:
    """One curated file to its ChannelMoments, written as `partial/NAME.safetensors`; see `map_items`."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, shard: str) -> dict[str, Any]:
        moments = ChannelMoments()
        for rows in read_images(shard):
            moments.update(srgb_to_oklab(rows.images))
        storage.write_bytes(partial_file(self.folder, shard), save(moments.state_dict()))
        return {}


def partial_file(folder: str, shard: str) -> str:
    return storage.join(folder, "partial", f"{shard_name(shard)}.safetensors")


def build(settings: ColorStatsSettings, context: Context) -> dict[str, float]:
    shards = context.inputs["curated"].files("train", ".parquet")
    total = ChannelMoments()
    worker = partial(ShardMoments, context.folder)
    for summary in map_items(by_name(shards), worker, context.folder, settings.resources):
        partial_sums = load(storage.read_bytes(partial_file(context.folder, summary["item"])))
        total.merge(ChannelMoments.from_state_dict(partial_sums))
    stats: dict[str, Any] = {
        "mean": total.mean.tolist(),
        "std": total.shared_std,
        "std_per_channel": total.std.tolist(),
        "pixels": int(total.count),
        "convention": "Oklab of sRGB; std is the root of the mean of the three channels' variances",
    }
    storage.write_bytes(context.file("color_stats.json"), json.dumps(stats, indent=1).encode())
    names = ("L", "a", "b")
    return {
        **{f"mean_{n}": m for n, m in zip(names, stats["mean"], strict=True)},
        "std": stats["std"],
        "pixels": stats["pixels"],
    }


def load_space(artifact: Artifact) -> OklabSpace:
    """The colour space of a color_stats artifact: mean by channel, one shared std."""
    stats = json.loads(storage.read_bytes(artifact.file("color_stats.json")))
    return OklabSpace(tuple(stats["mean"]), stats["std"])


STEP = Step("color_stats", ColorStatsSettings, build, inputs={"curated": "curate"})
