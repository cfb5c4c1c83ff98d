"""Train a class-conditional pixel model from scratch. Killed, the same command goes on from the last checkpoint;
--dry-run prints what would be trained, the memory and the time it takes, and starts nothing."""

from pipelines.core.cli import main
from pipelines.train.pretrain import STEP
from pipelines.train.pretrain.plan import print_plan

if __name__ == "__main__":
    main(STEP, __doc__, dry_run=print_plan)
