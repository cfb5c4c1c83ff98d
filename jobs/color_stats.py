"""Colour statistics of curated pictures: Oklab mean and standard deviation."""

from pipelines.cli import main
from pipelines.color_stats import STEP

if __name__ == "__main__":
    main(STEP, __doc__)
