"""Train the demo's tiny DINOv2, which REPA aligns the toy models with, and write it as a transformers folder.

It resumes from its checkpoint."""

from pathlib import Path

from pipelines.core.cli import print_plan, print_result, read_settings
from pipelines.core.config import RunSettings
from pipelines.core.job_process import job_process
from pipelines.data.curate.config import CurateSettings
from pipelines.toy.config import ToyEncoderSettings


@job_process()
def main() -> None:
    settings, dry = read_settings(ToyEncoderSettings, __doc__, needs_config=False)
    if dry:
        return print_plan(settings)
    from pipelines.core.step import run_step
    from pipelines.data.curate.step import STEP
    from pipelines.toy.base import load_images
    from pipelines.toy.encoder import make_encoder

    run = RunSettings(storage=settings.work)
    curated = run_step(STEP, CurateSettings(source=settings.data, near_duplicate_bits=None, run=run)).artifact
    images, captions = load_images(curated.files("train", ".parquet"))
    print_result(make_encoder(images, captions, Path(settings.work), Path(settings.out), settings.steps))


if __name__ == "__main__":
    main()
