"""Sample images from prompts and seeds with a pixel model. A rerun samples only the missing images."""

from pipelines.core.cli import main
from pipelines.sample.config import SampleSettings


def load():
    from pipelines.sample.step import STEP

    return STEP


if __name__ == "__main__":
    main(SampleSettings, load, __doc__)
