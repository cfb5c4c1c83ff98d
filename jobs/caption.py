"""Captions of the curated pictures, written by Qwen2.5-VL in place of those that came with them."""

from pipelines.core.cli import main
from pipelines.data.config import CaptionSettings


def load():
    from pipelines.data.caption import STEP

    return STEP


if __name__ == "__main__":
    main(CaptionSettings, load, __doc__)
