"""Finetune the lifted model on real pixels. Killed, the same command goes on from the last checkpoint."""

from pipelines.cli import main
from pipelines.finetune import STEP

if __name__ == "__main__":
    main(STEP, __doc__)
