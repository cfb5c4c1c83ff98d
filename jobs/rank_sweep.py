"""Train and evaluate the rank family from scratch; what stands is not made again. Draws the paper's Figures 5 and 6 and
its Table 1."""

import json
import sys

from pipelines.core.cli import DRY_RUN, print_settings, tell_plan, without_dry_run
from pipelines.core.config import ConfigError, describe, load_config
from pipelines.core.map_items import ItemsFailed
from pipelines.core.step import StepFailed
from pipelines.core.storage import StorageError
from pipelines.core.text_table import aligned
from pipelines.experiments.rank_report import family_table
from pipelines.experiments.rank_sweep import RankSweepSettings, run_rank_sweep


def main() -> None:
    dry, arguments = without_dry_run(sys.argv[1:])
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"usage: python jobs/rank_sweep.py CONFIG.yaml [{DRY_RUN}] [dotted.key=value ...]\n\n{__doc__}\n")
        print("settings and their defaults:")
        print("\n".join(describe(RankSweepSettings)))
        print("\nSettings of its parts: python jobs/pretrain.py --help, python jobs/evaluate.py --help")
        sys.exit(0 if arguments else 2)
    try:
        settings = load_config(RankSweepSettings, arguments[0], arguments[1:])
        if dry:
            return tell_plan(print_settings(settings))
        folder, run_id, rows = run_rank_sweep(settings)
    except (ConfigError, ItemsFailed, StepFailed, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    print(f"\n{aligned(family_table(rows))}\n")
    print(json.dumps({"artifact": folder, "mlflow_run": run_id, "metrics": rows[-1]["metrics"]}))


if __name__ == "__main__":
    main()
