"""Compare evaluations on one self-contained HTML page, with the paper's Tables 3 and 4."""

from pipelines.core.cli import print_plan, read_settings
from pipelines.core.job_process import job_process
from pipelines.experiments.config import ReportSettings


@job_process()
def main() -> None:
    settings, dry = read_settings(ReportSettings, __doc__, needs_config=False)
    if dry:
        return print_plan(settings)
    from pipelines.core import storage
    from pipelines.experiments.report import read_evaluation, read_workflow, render

    found = [read_evaluation(label, uri, settings.tracking_uri) for label, uri in settings.evaluations.items()]
    timeline = read_workflow(settings.workflow, settings.tracking_uri) if settings.workflow else []
    storage.write_bytes(settings.out, render(found, timeline).encode())
    print(settings.out)


if __name__ == "__main__":
    main()
