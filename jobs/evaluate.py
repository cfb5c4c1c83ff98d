"""Sample before and after training; pictures, and distances to held-out real ones."""

from pipelines.cli import main
from pipelines.evaluate import STEP

if __name__ == "__main__":
    main(STEP, __doc__)
