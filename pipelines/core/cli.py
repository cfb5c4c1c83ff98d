"""The command line that all step jobs share."""

import gc
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from pipelines.core.config import ConfigError, describe, load_config
from pipelines.core.map_items import ItemsFailed
from pipelines.core.step import Outcome, Step, StepFailed, run_step
from pipelines.core.storage import StorageError

DRY_RUN = "--dry-run"


def without_dry_run(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether --dry-run is among them, and the others."""
    return DRY_RUN in arguments, [a for a in arguments if a != DRY_RUN]


def print_settings(settings: Any) -> dict[str, Any]:
    """All of them, defaults too, as a configuration file would have them."""
    print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    return {}


def tell_plan(numbers: dict[str, Any]) -> None:
    """The last line of a job that only said what it would do."""
    print(json.dumps({"artifact": None, "mlflow_run": None, "metrics": numbers}))


def main(
    step: Step,
    about: str,
    dry_run: Callable[[Any], dict[str, Any]] | None = None,
    *,
    arguments: Sequence[str] | None = None,
    usage: str = "CONFIG.yaml",
    prepare: Callable[[Any], Any] = lambda settings: settings,
    tell: Callable[[Outcome], str] = lambda outcome: "",
    conclude: Callable[[Any, Outcome], None] = lambda settings, outcome: None,
) -> None:
    """`python jobs/STEP.py CONFIG.yaml [dotted.key=value ...]`; exits 0, 2 for a bad setting, 1 otherwise.

    --dry-run starts nothing: `dry_run(settings)` prints what would be done, and returns its numbers; without one, the
    settings are checked and printed. `arguments` are by default the process's, `usage` what stands before the
    overrides. `prepare` may change the settings that were read. What `tell` makes of the outcome is printed above the
    last line. `conclude` is called with the outcome; what it raises ends the job as a failing step would.
    """
    dry, arguments = without_dry_run(sys.argv[1:] if arguments is None else arguments)
    asked = "-h" in arguments or "--help" in arguments
    if asked or not arguments:
        print(f"usage: python jobs/{step.name}.py {usage} [{DRY_RUN}] [dotted.key=value ...]\n")
        print(f"{(about or '').strip()}\n")
        print("settings and their defaults:")
        print("\n".join(describe(step.settings)))
        sys.exit(0 if asked else 2)
    try:
        settings = load_config(step.settings, arguments[0], arguments[1:])
        if dry:
            tell_plan((dry_run or print_settings)(settings))
            return
        settings = prepare(settings)
        outcome = run_step(step, settings)
        if outcome.reused:
            print(f"{step.name}: done before, nothing to do: {outcome.artifact.uri}", file=sys.stderr)
        if told := tell(outcome):
            print(f"{told}\n")
        metrics = outcome.artifact.manifest["metrics"]
        print(json.dumps({"artifact": outcome.artifact.uri, "mlflow_run": outcome.mlflow_run, "metrics": metrics}))
        sys.stdout.flush()
        conclude(settings, outcome)
        gc.freeze()  # at its end Python would look through all objects of torch and the like once more, for seconds
    except (ConfigError, ItemsFailed, StepFailed, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
