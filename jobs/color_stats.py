"""Compute the Oklab mean and standard deviation of the curated images."""

from pipelines.core.cli import main
from pipelines.data.config import ColorStatsSettings


def load():
    from pipelines.data.color_stats import STEP

    return STEP


if __name__ == "__main__":
    main(ColorStatsSettings, load, __doc__)
