"""Serve a web page to try a pixel model, by default the toy model. Stop it with Ctrl-C."""

import threading
from contextlib import suppress

from pipelines.core.cli import print_plan, read_settings
from pipelines.core.job_process import job_process
from pipelines.sample.config import DemoPageSettings


@job_process()
def main() -> None:
    settings, dry = read_settings(DemoPageSettings, __doc__, needs_config=False)
    if dry:
        return print_plan(settings)
    from pipelines.sample.demo_page import open_page

    with suppress(KeyboardInterrupt):
        with open_page(**{name: getattr(settings, name) for name in DemoPageSettings.model_fields}) as url:
            print(f"{url} (stop with Ctrl-C)", flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    main()
