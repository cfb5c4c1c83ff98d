"""Curate img2dataset shards: filter, resize, one size a file; what is rejected is kept with its reason."""

from pipelines.core.cli import main
from pipelines.data.curate import STEP

if __name__ == "__main__":
    main(STEP, __doc__)
