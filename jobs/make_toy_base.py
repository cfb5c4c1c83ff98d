"""Train the demo's tiny FLUX.2 klein and write it as a diffusers folder. Killed, it goes on from its checkpoints."""

import argparse
from pathlib import Path

from pipelines.core.cli import print_result
from pipelines.core.config import RunSettings
from pipelines.core.job_process import job_process
from pipelines.data.curate.config import CurateSettings
from pipelines.toy.steps import Steps


@job_process()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", default="data/demo", help="folder written by make_demo_data.py")
    parser.add_argument("--work", default=Path("runs/toy_base"), type=Path, help="checkpoints, logs, samples")
    parser.add_argument("--out", default=Path("models/toy_klein"), type=Path, help="the pipeline folder to write")
    for part, steps in vars(Steps()).items():
        parser.add_argument(f"--{part.replace('_', '-')}-steps", default=steps, type=int, help="optimizer steps")
    args = parser.parse_args()
    from pipelines.core.step import run_step
    from pipelines.data.curate.step import STEP
    from pipelines.toy.base import make_toy_base

    run = RunSettings(storage=str(args.work))
    curate = CurateSettings(source=args.data, near_duplicate_bits=None, run=run)
    curated = run_step(STEP, curate).artifact
    steps = Steps(**{part: getattr(args, f"{part}_steps") for part in vars(Steps())})
    print_result(make_toy_base(curated, args.work, args.out, steps))


if __name__ == "__main__":
    main()
