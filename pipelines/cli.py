"""The command line that all step jobs share."""

import json
import sys

from pipelines.config import ConfigError, describe, load_config
from pipelines.shards import ItemsFailed
from pipelines.steps import Step, run_step
from pipelines.storage import StorageError


def main(step: Step, about: str) -> None:
    """`python jobs/STEP.py CONFIG.yaml [dotted.key=value ...]`; exits 0, 2 for a bad setting, 1 otherwise."""
    arguments = sys.argv[1:]
    asked = "-h" in arguments or "--help" in arguments
    if asked or not arguments:
        print(f"usage: python jobs/{step.name}.py CONFIG.yaml [dotted.key=value ...]\n\n{(about or '').strip()}\n")
        print("settings and their defaults:")
        print("\n".join(describe(step.settings)))
        sys.exit(0 if asked else 2)
    try:
        settings = load_config(step.settings, arguments[0], arguments[1:])
        outcome = run_step(step, settings)
    except (ConfigError, ItemsFailed, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    metrics = outcome.artifact.manifest["metrics"]
    print(json.dumps({"artifact": outcome.artifact.uri, "mlflow_run": outcome.mlflow_run, "metrics": metrics}))
