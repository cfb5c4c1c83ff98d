"""Captions of the curated pictures, written by Qwen2.5-VL in place of those that came with them."""

from pipelines.core.cli import main
from pipelines.data.caption import STEP

if __name__ == "__main__":
    main(STEP, __doc__)
