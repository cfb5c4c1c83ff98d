"""Finetune the lifted model on real pixels. The same command resumes from the last checkpoint.

--dry-run prints the trained parameters and estimates of memory and time, without starting the training."""

from pipelines.core.cli import main
from pipelines.train.finetune.config import FinetuneSettings


def load():
    from pipelines.train.finetune.step import STEP

    return STEP


def dry_run(settings: FinetuneSettings) -> dict[str, float]:
    from pipelines.train.finetune.plan import print_plan

    return print_plan(settings)


if __name__ == "__main__":
    main(FinetuneSettings, load, __doc__, dry_run=dry_run)
