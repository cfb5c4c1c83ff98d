"""Render the demo's pictures and write them as img2dataset writes LAION. `--help` for the settings."""

import argparse
from pathlib import Path

from pipelines.toy.data import demo_pictures, write_img2dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="data/demo", type=Path, help="default: %(default)s")
    parser.add_argument("--photos", default=2500, type=int, help="crops of photographs (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="default: %(default)s")
    args = parser.parse_args()
    if (args.folder / "00000.tar").exists():
        print(f"{args.folder} stands already")
        return
    rows = write_img2dataset(demo_pictures(args.photos, args.seed), args.folder)
    print(f"{rows} rows in {args.folder}")


if __name__ == "__main__":
    main()
