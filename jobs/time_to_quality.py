"""Find the step and time from which a finetune's images are closer to real ones than its latent model's.

It evaluates the finetune's checkpoints. Evaluations that are up to date are reused."""

from pipelines.core.cli import print_plan, print_result, read_settings
from pipelines.core.job_process import job_process
from pipelines.experiments.config import TimeToQualitySettings

NOTE = "The evaluations' settings: python jobs/evaluate.py --help"


def main() -> None:
    with job_process():
        settings, dry = read_settings(TimeToQualitySettings, __doc__, note=NOTE)
        if dry:
            return print_plan(settings)
        from pipelines.core.text_table import format_table
        from pipelines.experiments.time_to_quality import quality_table, run_time_to_quality

        folder, run_id, rows = run_time_to_quality(settings)
        print(f"\n{format_table(quality_table(rows))}\n")
        names = ("first", "lasting")
        metrics = {f"{row['finetune']}/{row['metric']}/{name}": row[name] for row in rows for name in names}
        print_result({"artifact": folder, "mlflow_run": run_id, "metrics": metrics})


if __name__ == "__main__":
    main()
