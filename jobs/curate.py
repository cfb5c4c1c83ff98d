"""Curate img2dataset shards: filter, resize, one size a file; what is rejected is kept with its reason."""

from pipelines.cli import main
from pipelines.curate import STEP

if __name__ == "__main__":
    main(STEP, __doc__)
