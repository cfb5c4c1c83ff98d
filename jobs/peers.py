"""Train finetunes of several kinds over several seeds, and compare them at equal steps and at equal training time.

Artifacts that are up to date are reused."""

from pipelines.core.cli import print_plan, print_result, read_settings
from pipelines.core.job_process import job_process
from pipelines.experiments.config import PeersSettings

NOTE = "Settings of the trainings and evaluations: python jobs/finetune.py --help, python jobs/evaluate.py --help"


def main() -> None:
    with job_process():
        settings, dry = read_settings(PeersSettings, __doc__, note=NOTE)
        if dry:
            return print_plan(settings)
        from pipelines.core.text_table import format_table
        from pipelines.experiments.peers import peers_table, run_peers

        folder, run_id, rows = run_peers(settings)
        print(f"\n{format_table(peers_table(rows, settings.metrics))}\n")
        places = {f"{row['method']}/{row['seed']}/{row['equal']}": row["metrics"] for row in rows if row["equal"]}
        metrics = {f"{place}/{name}": value for place, numbers in places.items() for name, value in numbers.items()}
        print_result({"artifact": folder, "mlflow_run": run_id, "metrics": metrics})


if __name__ == "__main__":
    main()
