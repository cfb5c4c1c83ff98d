"""Name a step's artifact by all that decides what is in it: settings, inputs, and what lies outside.

Where something lies does not matter, what it is does: files and folders go in by content, objects by the store's
checksums, repositories by their commit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from asymflow.hub import is_repository, repository_of, resolve_commit
from pipelines.core import artifacts, storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, set_at

S = TypeVar("S", bound=BaseModel)


class Identified(Protocol):
    """The part of `pipelines.core.step.Step` that says what decides its artifact."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, str]: ...
    @property
    def contents(self) -> tuple[str, ...]: ...
    @property
    def repositories(self) -> tuple[str, ...]: ...
    @property
    def decides(self) -> Callable[[Any, Mapping[str, Artifact]], Mapping[str, Any]]: ...


def pin_repositories(step: Identified, settings: S) -> S:
    """Replace each repository that the settings name by OWNER/NAME@COMMIT, so that what is identified is what is used.

    Raises:
        ConfigError: the commit cannot be told.
    """
    pinned = {}
    for name in step.repositories:
        source = getattr(settings, name)
        if source and is_repository(source) and not storage.exists(source):
            try:
                pinned[name] = f"{repository_of(source)[0]}@{resolve_commit(source)}"
            except ValueError as error:
                where = f"no such folder in {Path.cwd()}, and as a repository"
                raise ConfigError(f"{name}={source!r}: {where}: {error}") from None
    return settings.model_copy(update=pinned)


def identify(step: Identified, settings: BaseModel, inputs: Mapping[str, Artifact]) -> str:
    """Return the artifact's ID."""
    content = {k: v for k, v in artifacts.settings_of(settings).items() if k not in step.inputs}
    for name in step.contents:
        *sections, last = name.split(".")
        section: Any = content
        for key in sections:
            section = section.get(key) or {}
        if found := fingerprint_of(section.get(last)):
            section[last] = found
    for name, value in step.decides(settings, inputs).items():
        set_at(content, name, value)
    return artifacts.artifact_id(step.name, content, {name: a.id for name, a in inputs.items()})


def fingerprint_of(source: Any) -> str:
    """Return the fingerprint of what a setting names; empty where it names no file, folder or object that exists."""
    if not source:
        return ""
    try:
        return storage.fingerprint(source)
    except FileNotFoundError:
        return ""
