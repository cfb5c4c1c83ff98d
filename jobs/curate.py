"""Curate img2dataset shards: filter, resize, deduplicate; rejected rows are listed with a reason."""

from pipelines.core.cli import main
from pipelines.data.curate.config import CurateSettings


def load():
    from pipelines.data.curate.step import STEP

    return STEP


if __name__ == "__main__":
    main(CurateSettings, load, __doc__)
