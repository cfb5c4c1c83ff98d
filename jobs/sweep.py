"""Evaluate over a grid of settings, or search for the best guidance. Finished points are reused."""

from pipelines.core.cli import print_plan, print_result, read_settings
from pipelines.core.job_process import job_process
from pipelines.experiments.config import SweepSettings

NOTE = "The evaluation's settings: python jobs/evaluate.py --help"


def main() -> None:
    with job_process():
        settings, dry = read_settings(SweepSettings, __doc__, note=NOTE)
        if dry:
            return print_plan(settings)
        from pipelines.experiments.sweep import rows_of, run_sweep, table_of

        run_id, points, best = run_sweep(settings)
        print(f"\n{table_of(rows_of(settings, points))}\n")
        metrics = best.outcome.artifact.manifest["metrics"]
        print_result({"artifact": best.outcome.artifact.uri, "mlflow_run": run_id, "metrics": metrics})


if __name__ == "__main__":
    main()
