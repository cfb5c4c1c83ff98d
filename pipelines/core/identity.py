"""Compute the ID of a step's artifact from everything that determines its content: settings, inputs, external data.

External data is identified by content, not by location: files and folders by their bytes, S3 objects and data sets of
the hub by the store's checksums, hub repositories of models by their commit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from asymflow.hub import is_repository, repository_of, resolve_commit
from pipelines.core import artifacts, hub_dataset, storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, set_at

S = TypeVar("S", bound=BaseModel)


class Identified(Protocol):
    """The fields of `pipelines.core.step.Step` that determine an artifact's ID; see there."""

    @property
    def name(self) -> str:
        """Name of the step."""
        ...

    @property
    def inputs(self) -> Mapping[str, str]:
        """Steps that make the input artifacts, by setting."""
        ...

    @property
    def contents(self) -> tuple[str, ...]:
        """Settings that name external files or folders."""
        ...

    @property
    def repositories(self) -> tuple[str, ...]:
        """Settings that may name a hub repository."""
        ...

    @property
    def hash_overrides(self) -> Callable[[Any, Mapping[str, Artifact]], Mapping[str, Any]]:
        """Function that returns further values to hash."""
        ...


def pin_repositories(step: Identified, settings: S) -> S:
    """Replace each hub repository in the settings by its commit, so that the step uses what is hashed.

    Repositories of models become OWNER/NAME@COMMIT, and data sets hf://datasets/OWNER/NAME@COMMIT.

    Raises:
        ConfigError: A repository's commit cannot be resolved.
    """
    for name in step.repositories:
        source = _value_at(settings, name)
        if source and is_repository(source) and not storage.exists(source):
            try:
                pinned = f"{repository_of(source)[0]}@{resolve_commit(source)}"
            except ValueError as error:
                where = f"no such folder in {Path.cwd()}, and as a repository"
                raise ConfigError(f"{name}={source!r}: {where}: {error}") from None
            settings = _with_value(settings, name, pinned)
    for name in step.contents:
        source = _value_at(settings, name)
        if source and hub_dataset.is_on_hub(source):
            try:
                settings = _with_value(settings, name, hub_dataset.pin(source))
            except FileNotFoundError as error:
                raise ConfigError(f"{name}={source!r}: {error.strerror}") from None
    return settings


def _value_at(settings: Any, name: str) -> Any:
    """Return the setting at a dotted key; None below a section that is not set."""
    for key in name.split("."):
        settings = getattr(settings, key, None)
    return settings


def _with_value(settings: S, name: str, value: str) -> S:
    """Return settings with another value at a dotted key."""
    key, _, rest = name.partition(".")
    return settings.model_copy(update={key: _with_value(getattr(settings, key), rest, value) if rest else value})


def identify(step: Identified, settings: BaseModel, inputs: Mapping[str, Artifact]) -> str:
    """Return the ID of the artifact that a step makes with these settings and inputs."""
    content = {k: v for k, v in artifacts.hashed_settings(settings).items() if k not in step.inputs}
    for name in step.contents:
        *sections, last = name.split(".")
        section: Any = content
        for key in sections:
            section = section.get(key) or {}
        if found := fingerprint_of(section.get(last)):
            section[last] = found
    for name, value in step.hash_overrides(settings, inputs).items():
        set_at(content, name, value)
    return artifacts.artifact_id(step.name, content, {name: a.id for name, a in inputs.items()})


def fingerprint_of(source: Any) -> str:
    """Return the fingerprint of the file, folder or object that a setting names; empty if it does not exist."""
    if not source:
        return ""
    try:
        return storage.fingerprint(source)
    except FileNotFoundError:
        return ""
