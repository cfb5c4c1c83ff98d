"""Render the demo's images and write them in the format of img2dataset."""

import tempfile
from pathlib import Path

from pipelines.core.cli import print_plan, read_settings
from pipelines.core.job_process import job_process
from pipelines.toy.config import DemoDataSettings


@job_process()
def main() -> None:
    settings, dry = read_settings(DemoDataSettings, __doc__, needs_config=False)
    if dry:
        return print_plan(settings)
    from pipelines.core import storage
    from pipelines.toy.data import demo_images, write_img2dataset

    first = "00000.tar"
    if storage.exists(storage.join(settings.folder, first)):
        print(f"{settings.folder} exists already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = write_img2dataset(demo_images(settings.photos, settings.seed, settings.edits), Path(scratch) / "demo")
        storage.put_folder(Path(scratch) / "demo", settings.folder, last=first)
    print(f"{rows} rows in {settings.folder}")


if __name__ == "__main__":
    main()
