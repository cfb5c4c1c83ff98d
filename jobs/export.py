"""Export the moving average of a finetune as adapter files, or convert an adapter's format.

CONFIG and overrides of a finetune are those of its training; a running one is exported from its newest checkpoint."""

import argparse
import json
from typing import get_args

from pipelines.core.config import load_config
from pipelines.core.job_process import job_process
from pipelines.train.finetune.config import ExportDtype, ExportFormat, FinetuneSettings


@job_process()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", metavar="CONFIG.yaml|ADAPTER", help="a finetune's settings, or an adapter's folder")
    parser.add_argument("settings", metavar="dotted.key=value", nargs="*")
    parser.add_argument("--step", type=int, help="step of the checkpoint to export (default: the last)")
    parser.add_argument("--format", choices=get_args(ExportFormat), default="released", help="(default: released)")
    parser.add_argument("--out", default="", help="folder or s3:// URI (default: with the run, in its storage)")
    parser.add_argument("--base", default="", help="folder of the latent model to merge an ADAPTER with")
    parser.add_argument("--dtype", choices=get_args(ExportDtype), default="", help="of a merged model (default: base)")
    parser.add_argument("--no-register", action="store_true", help="write the files without registering them")
    args = parser.parse_intermixed_args()
    is_run = args.source.endswith((".yaml", ".yml"))
    settings = load_config(FinetuneSettings, args.source, args.settings) if is_run else None
    from pipelines.train.finetune.export import ERRORS, convert, export_run
    from pipelines.train.finetune.step import STEP

    with job_process(*ERRORS):
        if settings:
            done = export_run(STEP, settings, args.step, args.out, not args.no_register, args.format, args.dtype)
        else:
            done = {"adapter": convert(args.source, args.format, args.out, args.base, args.dtype)}
    print(json.dumps(done))


if __name__ == "__main__":
    main()
