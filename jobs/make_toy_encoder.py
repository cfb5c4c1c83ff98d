"""Train the demo's tiny DINOv2, which REPA aligns the toy models with, and write it as a transformers folder.

Killed, it goes on from its checkpoint."""

import argparse
from pathlib import Path

from pipelines.core.cli import print_result
from pipelines.core.config import RunSettings
from pipelines.core.job_process import job_process
from pipelines.data.curate.config import CurateSettings


@job_process()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", default="data/demo", help="folder written by make_demo_data.py")
    parser.add_argument("--work", default=Path("runs/toy_base"), type=Path, help="checkpoint and log")
    parser.add_argument("--out", default=Path("models/toy_dinov2"), type=Path, help="the folder to write")
    parser.add_argument("--steps", default=3000, type=int, help="optimizer steps")
    args = parser.parse_args()
    from pipelines.core.step import run_step
    from pipelines.data.curate.step import STEP
    from pipelines.toy.base import load_pictures
    from pipelines.toy.encoder import make_encoder

    run = RunSettings(storage=str(args.work))
    curated = run_step(STEP, CurateSettings(source=args.data, near_duplicate_bits=None, run=run)).artifact
    images, captions = load_pictures(curated.files("train", ".parquet"))
    print_result(make_encoder(images, captions, args.work, args.out, args.steps))


if __name__ == "__main__":
    main()
