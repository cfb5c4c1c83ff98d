"""The command line that all jobs share. It knows settings alone: a step is imported once its settings are sound."""

import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from pipelines.core.config import ConfigError, load_config
from pipelines.core.job_process import job_process
from pipelines.core.settings_reference import describe

if TYPE_CHECKING:
    from pipelines.core.step import Outcome, Step

DRY_RUN = "--dry-run"


@dataclass(frozen=True)
class Job:
    """A step, and what its command does before and after it."""

    step: "Step"
    prepare: Callable[[Any], Any] = lambda settings: settings
    """May change the settings that were read"""
    tell: "Callable[[Outcome], str]" = lambda outcome: ""
    """Printed above the last line"""
    conclude: "Callable[[Any, Outcome], None]" = lambda settings, outcome: None
    """Called at the end; what it raises ends the job as a failing step would"""


def print_result(result: dict[str, Any]) -> None:
    """Print a job's last line, one JSON object, after all that Ray's workers have to say."""
    from pipelines.core.step import stop_ray

    stop_ray()
    sys.stderr.flush()
    print(json.dumps(result), flush=True)


@job_process()
def main(
    settings_class: type[BaseModel],
    load: "Callable[[], Step | Job]",
    about: str | None,
    *,
    dry_run: Callable[[Any], dict[str, Any]] | None = None,
    arguments: Sequence[str] | None = None,
    usage: str = "CONFIG.yaml",
) -> None:
    """Run `python jobs/STEP.py CONFIG.yaml [dotted.key=value ...]`; see `job_process` for how it exits.

    Args:
        settings_class: the step's settings; their module imports neither torch nor Ray.
        load: imports the step. Not called for --help, a bad setting or --dry-run.
        about: shown by --help.
        dry_run: prints what would be done and returns its numbers, for --dry-run; by default the settings are checked
            and printed.
        arguments: by default the process's.
        usage: what stands before the overrides.
    """
    settings, dry = read_settings(settings_class, about, arguments, usage)
    if dry:
        print_plan(settings, dry_run)
        return
    loaded = load()
    job = loaded if isinstance(loaded, Job) else Job(loaded)
    from pipelines.core.step import run_step

    settings = job.prepare(settings)
    outcome = run_step(job.step, settings)
    if outcome.reused:
        print(f"{job.step.name}: done before, nothing to do: {outcome.artifact.uri}", file=sys.stderr)
    if told := job.tell(outcome):
        print(f"{told}\n")
    metrics = outcome.artifact.manifest["metrics"]
    print_result({"artifact": outcome.artifact.uri, "mlflow_run": outcome.mlflow_run, "metrics": metrics})
    job.conclude(settings, outcome)
    gc.freeze()  # at its end Python would look through all objects of torch and the like once more, for seconds


def read_settings(
    settings_class: type[BaseModel],
    about: str | None,
    arguments: Sequence[str] | None = None,
    usage: str = "CONFIG.yaml",
    note: str = "",
    *,
    needs_config: bool = True,
) -> tuple[Any, bool]:
    """Return a job's settings, and whether it is but a --dry-run; print help and exit where that is asked for.

    `note` is the last paragraph of the help. Without `needs_config` the file may be left out, and all settings with it.
    The others are those of `main`. Raises ConfigError.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    rest = [argument for argument in arguments if argument != DRY_RUN]
    asked = "-h" in rest or "--help" in rest
    usage = usage if needs_config else f"[{usage}]"
    if asked or (needs_config and not rest):
        print(f"usage: python {sys.argv[0]} {usage} [{DRY_RUN}] [dotted.key=value ...]\n")
        print(f"{(about or '').strip()}\n")
        print("settings and their defaults:")
        print("\n".join(describe(settings_class)))
        print(f"\n{note}" if note else "", end="\n" if note else "")
        sys.exit(0 if asked else 2)
    for option in rest:
        if option.startswith("-"):
            name = option.lstrip("-").partition("=")[0].replace("-", "_")
            raise ConfigError(f"{option}: settings are written key=value, like {name}=VALUE; --help lists them")
    has_file = needs_config or (bool(rest) and "=" not in rest[0])
    file, overrides = (rest[0], rest[1:]) if has_file else (None, rest)
    return load_config(settings_class, file, overrides), len(rest) < len(arguments)


def print_plan(settings: Any, dry_run: Callable[[Any], dict[str, Any]] | None = None) -> None:
    """Print what a --dry-run says: by default all settings, defaults too, as a configuration file would have them."""
    if dry_run is None:
        print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    numbers = dry_run(settings) if dry_run else {}
    print(json.dumps({"artifact": None, "mlflow_run": None, "metrics": numbers}))
