"""Evaluate over a grid of settings, or search for the best guidance; points that stand are not evaluated again."""

import json
import sys

from pipelines.core.cli import DRY_RUN, print_settings, tell_plan, without_dry_run
from pipelines.core.config import ConfigError, describe, load_config
from pipelines.core.map_items import ItemsFailed
from pipelines.core.step import StepFailed
from pipelines.core.storage import StorageError
from pipelines.experiments.sweep import SweepSettings, rows_of, run_sweep, table_of


def main() -> None:
    dry, arguments = without_dry_run(sys.argv[1:])
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"usage: python jobs/sweep.py CONFIG.yaml [{DRY_RUN}] [dotted.key=value ...]\n\n{__doc__}\n")
        print("settings and their defaults:")
        print("\n".join(describe(SweepSettings)))
        print("\nThe evaluation's settings: python jobs/evaluate.py --help")
        sys.exit(0 if arguments else 2)
    try:
        settings = load_config(SweepSettings, arguments[0], arguments[1:])
        if dry:
            return tell_plan(print_settings(settings))
        run_id, points, best = run_sweep(settings)
    except (ConfigError, ItemsFailed, StepFailed, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    print(f"\n{table_of(rows_of(settings, points))}\n")
    metrics = best.outcome.artifact.manifest["metrics"]
    print(json.dumps({"artifact": best.outcome.artifact.uri, "mlflow_run": run_id, "metrics": metrics}))


if __name__ == "__main__":
    main()
