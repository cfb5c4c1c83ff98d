"""Run the steps of the whole pipeline in order, reusing artifacts that are up to date, under one MLflow run."""

from pipelines.core.cli import print_plan, print_result, read_settings
from pipelines.core.job_process import job_process
from pipelines.experiments.config import WorkflowSettings, fill_all

NOTE = "A section's settings: python jobs/SECTION.py --help"


def main() -> None:
    with job_process():
        settings, dry = read_settings(WorkflowSettings, __doc__, note=NOTE)
        if dry:
            fill_all(settings)
            return print_plan(settings)
        from pipelines.core.tracking import describe_ui
        from pipelines.experiments.workflow import run_workflow, table

        run_id, outcomes = run_workflow(settings)
        last = outcomes["evaluate"].artifact
        print(f"\n{table(outcomes)}\n\nimages:    {last.file('samples.png')}")
        print(f"MLflow UI: {describe_ui(settings.run)}\n")
        print_result({"artifact": last.uri, "mlflow_run": run_id, "metrics": last.manifest["metrics"]})


if __name__ == "__main__":
    main()
