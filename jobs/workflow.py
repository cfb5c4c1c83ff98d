"""Run the whole pipeline: whatever has no artifact yet, in order, under one MLflow run."""

import json
import sys

from pipelines.core.cli import DRY_RUN, print_settings, tell_plan, without_dry_run
from pipelines.core.config import ConfigError, describe, load_config
from pipelines.core.map_items import ItemsFailed
from pipelines.core.step import StepFailed
from pipelines.core.storage import StorageError
from pipelines.core.tracking import how_to_look
from pipelines.experiments.workflow import STEPS, WorkflowSettings, fill_all, run_workflow, table


def main() -> None:
    dry, arguments = without_dry_run(sys.argv[1:])
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python jobs/workflow.py CONFIG.yaml [{DRY_RUN}] [dotted.key=value ...]\n\n{__doc__}\n")
        print("\n".join(describe(WorkflowSettings)))
        print(f"\nA section's settings: python jobs/STEP.py --help, STEP one of {', '.join(STEPS)}")
        sys.exit(0 if arguments else 2)
    try:
        settings = load_config(WorkflowSettings, arguments[0], arguments[1:])
        if dry:
            fill_all(settings)
            return tell_plan(print_settings(settings))
        run_id, outcomes = run_workflow(settings)
    except (ConfigError, ItemsFailed, StepFailed, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    last = outcomes["evaluate"].artifact
    print(f"\n{table(outcomes)}\n\npicture:   {last.file('samples.png')}")
    print(f"MLflow UI: {how_to_look(settings.run)}\n")
    print(json.dumps({"artifact": last.uri, "mlflow_run": run_id, "metrics": last.manifest["metrics"]}))


if __name__ == "__main__":
    main()
