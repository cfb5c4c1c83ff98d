"""Export the moving average of a finetune as adapter files, or convert an adapter's format."""

import json

from pipelines.core.cli import print_plan, read_settings
from pipelines.core.job_process import job_process
from pipelines.train.finetune.export_config import ExportSettings

FLAGS = {"--step": "checkpoint=STEP", "--no-register": "add_to_registry=false"}


@job_process()
def main() -> None:
    settings, dry = read_settings(ExportSettings, __doc__, needs_config=False, flags=FLAGS)
    finetune = settings.load_finetune()
    if dry:
        return print_plan(settings)
    from pipelines.train.finetune.export import ERRORS, convert, export_run
    from pipelines.train.finetune.step import STEP

    with job_process(*ERRORS):
        if finetune:
            done = export_run(STEP, finetune, settings)
        else:
            how = (settings.format, settings.out, settings.base, settings.dtype, settings.gguf)
            done = {"adapter": convert(settings.adapter, *how)}
    print(json.dumps(done))


if __name__ == "__main__":
    main()
