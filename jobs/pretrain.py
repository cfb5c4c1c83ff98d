"""Train a class-conditional pixel model from scratch. The same command resumes from the last checkpoint.

--dry-run prints the trained parameters and estimates of memory and time, without starting the training."""

from pipelines.core.cli import main
from pipelines.train.pretrain.config import PretrainSettings


def load():
    from pipelines.train.pretrain.step import STEP

    return STEP


def dry_run(settings: PretrainSettings) -> dict[str, float]:
    from pipelines.train.pretrain.plan import print_plan

    return print_plan(settings)


if __name__ == "__main__":
    main(PretrainSettings, load, __doc__, dry_run=dry_run)
