"""Write new captions of the curated images with Qwen2.5-VL."""

from pipelines.core.cli import main
from pipelines.data.config import CaptionSettings


def load():
    from pipelines.data.caption import STEP

    return STEP


if __name__ == "__main__":
    main(CaptionSettings, load, __doc__)
