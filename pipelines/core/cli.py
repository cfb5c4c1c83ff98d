"""The command line that all jobs share. It imports a step only after the step's settings are validated."""

import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
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
    """A step, with the callbacks that its command runs before and after it."""

    step: "Step"
    prepare: Callable[[Any], Any] = lambda settings: settings
    """Returns the settings to run with, given those that were read"""
    summarize: "Callable[[Outcome], str]" = lambda outcome: ""
    """Returns the text that is printed above the last line"""
    conclude: "Callable[[Any, Outcome], None]" = lambda settings, outcome: None
    """Called at the end; an exception fails the job as an exception of the step does"""


def print_result(result: dict[str, Any]) -> None:
    """Print a job's last line, one JSON object, after the output of Ray's workers."""
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
        settings_class: The step's settings. Their module must import neither torch nor Ray.
        load: Imports and returns the step. Not called for --help, a bad setting or --dry-run.
        about: Description that --help prints.
        dry_run: Prints the plan for --dry-run and returns its metrics. By default the validated settings are printed.
        arguments: Command-line arguments; by default those of the process.
        usage: Usage text before the overrides.
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
        print(f"{job.step.name}: up to date, nothing to do: {outcome.artifact.uri}", file=sys.stderr)
    if summary := job.summarize(outcome):
        print(f"{summary}\n")
    metrics = outcome.artifact.manifest["metrics"]
    print_result({"artifact": outcome.artifact.uri, "mlflow_run": outcome.mlflow_run, "metrics": metrics})
    job.conclude(settings, outcome)
    gc.freeze()  # else Python's collection at exit scans all objects of torch and other libraries, for seconds


def read_settings(
    settings_class: type[BaseModel],
    about: str | None,
    arguments: Sequence[str] | None = None,
    usage: str = "CONFIG.yaml",
    note: str = "",
    *,
    needs_config: bool = True,
    flags: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Any, bool]:
    """Read a job's settings from the command line; print the help and exit if it is requested.

    Args:
        settings_class: See `main`.
        about: See `main`.
        arguments: See `main`.
        usage: See `main`.
        note: Last paragraph of the help.
        needs_config: Whether the configuration file is required. If not, all settings default.
        flags: {former option: the setting to write instead}, for the error message.

    Returns:
        The settings, and whether --dry-run was given.

    Raises:
        ConfigError: A setting is unknown or not allowed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    rest = [argument for argument in arguments if argument != DRY_RUN]
    wants_help = "-h" in rest or "--help" in rest
    usage = usage if needs_config else f"[{usage}]"
    if wants_help or (needs_config and not rest):
        print(f"usage: python {sys.argv[0]} {usage} [{DRY_RUN}] [dotted.key=value ...]\n")
        print(f"{(about or '').strip()}\n")
        print("settings and their defaults:")
        print("\n".join(describe(settings_class)))
        print(f"\n{note}" if note else "", end="\n" if note else "")
        sys.exit(0 if wants_help else 2)
    for option in rest:
        if option.startswith("-"):
            name, _, value = option.partition("=")
            instead = flags.get(name, f"{name.lstrip('-').replace('-', '_')}={value or 'VALUE'}")
            raise ConfigError(f"{option}: settings are written key=value, like {instead}; --help lists them")
    has_file = needs_config or (bool(rest) and "=" not in rest[0])
    file, overrides = (rest[0], rest[1:]) if has_file else (None, rest)
    return load_config(settings_class, file, overrides), len(rest) < len(arguments)


def print_plan(settings: Any, dry_run: Callable[[Any], dict[str, Any]] | None = None) -> None:
    """Print the output of --dry-run: by default all settings, defaults included, as a configuration file."""
    if dry_run is None:
        print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    numbers = dry_run(settings) if dry_run else {}
    print(json.dumps({"artifact": None, "mlflow_run": None, "metrics": numbers}))
