"""Colour statistics of curated pictures: Oklab mean and standard deviation."""

from pipelines.core.cli import main
from pipelines.data.color_stats import STEP

if __name__ == "__main__":
    main(STEP, __doc__)
