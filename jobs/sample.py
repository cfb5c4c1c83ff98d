"""Pictures from prompts and seeds, by a pixel model; run again, it goes on with what is missing."""

from pipelines.core.cli import main
from pipelines.sample import STEP

if __name__ == "__main__":
    main(STEP, __doc__)
