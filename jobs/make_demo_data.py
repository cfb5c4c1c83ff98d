"""Render the demo's pictures and write them as img2dataset writes LAION. `--help` for the settings."""

import argparse
import tempfile
from pathlib import Path

from pipelines.core.job_process import job_process


@job_process()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="data/demo", help="or s3:// URI (default: %(default)s)")
    parser.add_argument("--photos", default=2500, type=int, help="crops of photographs (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="default: %(default)s")
    args = parser.parse_args()
    from pipelines.core import storage
    from pipelines.toy.data import demo_pictures, write_img2dataset

    first = "00000.tar"
    if storage.exists(storage.join(args.folder, first)):
        print(f"{args.folder} stands already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = write_img2dataset(demo_pictures(args.photos, args.seed), Path(scratch) / "demo")
        storage.put_folder(Path(scratch) / "demo", args.folder, last=first)
    print(f"{rows} rows in {args.folder}")


if __name__ == "__main__":
    main()
