"""Train and evaluate the rank family from scratch, and plot the paper's Figures 5 and 6 and Table 1.

Artifacts that are up to date are reused."""

from pipelines.core.cli import print_plan, print_result, read_settings
from pipelines.core.job_process import job_process
from pipelines.experiments.config import RankSweepSettings

NOTE = "Settings of the trainings and evaluations: python jobs/pretrain.py --help, python jobs/evaluate.py --help"


def main() -> None:
    with job_process():
        settings, dry = read_settings(RankSweepSettings, __doc__, note=NOTE)
        if dry:
            return print_plan(settings)
        from pipelines.core.text_table import format_table
        from pipelines.experiments.rank_report import rank_table
        from pipelines.experiments.rank_sweep import run_rank_sweep

        folder, run_id, rows = run_rank_sweep(settings)
        print(f"\n{format_table(rank_table(rows))}\n")
        print_result({"artifact": folder, "mlflow_run": run_id, "metrics": rows[-1]["metrics"]})


if __name__ == "__main__":
    main()
