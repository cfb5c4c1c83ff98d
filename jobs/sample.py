"""Pictures from prompts and seeds, by a pixel model; run again, it goes on with what is missing."""

from pipelines.core.cli import main
from pipelines.sample.config import SampleSettings


def load():
    from pipelines.sample.step import STEP

    return STEP


if __name__ == "__main__":
    main(SampleSettings, load, __doc__)
