"""Train the demo's tiny FLUX.2 klein and write it as a diffusers folder. It resumes from its checkpoints."""

from pathlib import Path

from pipelines.core.cli import print_plan, print_result, read_settings
from pipelines.core.config import RunSettings
from pipelines.core.job_process import job_process
from pipelines.data.curate.config import CurateSettings
from pipelines.toy.config import ToyBaseSettings


@job_process()
def main() -> None:
    settings, dry = read_settings(ToyBaseSettings, __doc__, needs_config=False)
    if dry:
        return print_plan(settings)
    from pipelines.core.step import run_step
    from pipelines.data.curate.step import STEP
    from pipelines.toy.base import make_toy_base

    run = RunSettings(storage=settings.work)
    curated = run_step(STEP, CurateSettings(source=settings.data, near_duplicate_bits=None, run=run)).artifact
    print_result(make_toy_base(curated, Path(settings.work), Path(settings.out), settings.steps))


if __name__ == "__main__":
    main()
