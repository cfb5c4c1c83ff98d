"""Typed settings from YAML and `dotted.key=value`, validated with one-line errors before anything starts."""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from asymflow.text_files import read_json_object
from pipelines.core import hub_dataset
from pipelines.core.config_files import read_config_file
from pipelines.core.credentials import has_secret
from pipelines.core.errors import ConfigError as ConfigError
from pipelines.core.settings_reference import section_models
from pipelines.core.yaml_values import annotation_at, parse_value

_SECRET = "secret"  # type of an error whose message must not repeat the value
_PROMPT_SUFFIX = "prompt"  # a setting whose name ends so is text, even if its value begins with `~/`


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, numbers are finite, values are frozen.

    Any setting may be a URI or a path, so each is checked for a password or a token, and a leading `~/` is expanded to
    the home folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_address(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        if has_secret(value) and not any(character.isspace() for character in value):
            raise PydanticCustomError(
                _SECRET, "holds a password or a token; pass credentials in environment variables only"
            )
        is_path = value.startswith("~/") and not (info.field_name or "").endswith(_PROMPT_SUFFIX)
        return os.path.expanduser(value) if is_path else value


_ADDED = "added"


def added(default: Any, **options: Any) -> Any:
    """Return the field of a setting that was added after artifacts existed; its default must be the old behavior.

    A field at its default is not hashed into an artifact's ID, so existing artifacts keep their IDs.
    """
    return Field(default, json_schema_extra={_ADDED: True}, **options)


def is_unchanged_addition(settings: BaseModel, name: str) -> bool:
    """Return whether the setting was defined with `added` and has its default."""
    field = type(settings).model_fields[name]
    extra = field.json_schema_extra
    return isinstance(extra, dict) and _ADDED in extra and getattr(settings, name) == field.default


def _check_uri(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    scheme, separator, rest = value.partition("://")
    if separator and (scheme != "s3" or not rest.strip("/")):
        raise ValueError("must be a local path or s3://bucket/prefix")
    return value


def _check_source_uri(value: str) -> str:
    if not hub_dataset.is_on_hub(value):
        return _check_uri(value)
    hub_dataset.split_uri(value)
    return value


Uri = Annotated[str, AfterValidator(_check_uri)]
OptionalUri = Annotated[str, AfterValidator(lambda value: value and _check_uri(value))]
"""A URI, or an empty string for none"""
SourceUri = Annotated[str, AfterValidator(_check_source_uri)]
"""A URI of data that is only read, also hf://datasets/OWNER/NAME@REVISION/PATH"""
OptionalSourceUri = Annotated[str, AfterValidator(lambda value: value and _check_source_uri(value))]

Layout = Literal["channel_first", "channel_last"]


def _check_rank(value: Any) -> Any:
    """Check a rank, with a single error message instead of one per member of the union."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError("must be auto, or a whole number from 0")


Rank = Annotated[int | Literal["auto"], BeforeValidator(_check_rank)]


class RunSettings(Settings):
    """Where a run executes, stores its artifacts and is logged. Not part of an artifact's ID."""

    storage: Uri = "runs/default"
    """Root of all artifacts: a local path or s3://bucket/prefix"""
    tracking_uri: str = ""
    """MLflow server or database; empty: a SQLite file in the storage, or MLFLOW_TRACKING_URI where set"""
    experiment: str = "asymflow"
    ray_address: str = ""
    """Ray cluster to join; empty: RAY_ADDRESS where set, else a local Ray"""


class StepSettings(Settings):
    """Base of every step's settings."""

    step: ClassVar[str]
    """The step's name, which configuration files state"""
    inputs: ClassVar[Mapping[str, str]] = {}
    """{name of a setting that holds an artifact's URI: step that makes this artifact}"""
    run: RunSettings = RunSettings()


C = TypeVar("C", bound=BaseModel)


def load_config(model: type[C], path: str | None, overrides: list[str]) -> C:
    """Load settings from a YAML file and `dotted.key=value` overrides, and validate them.

    Args:
        model: Settings class. If it has a `step`, the file must be a configuration of that step.
        path: The file, see `read_config_file`; None for the defaults of all settings.
        overrides: Applied in order, see `parse_value`.

    Raises:
        ConfigError: A setting is unknown, missing or not allowed, or an override replaces an earlier one.
    """
    tree = read_config_file(path, getattr(model, "step", "")) if path is not None else {}
    given: dict[str, str] = {}
    for override in overrides:
        key = _apply(tree, override, model)
        if lost := [text for name, text in given.items() if name == key or name.startswith(f"{key}.")]:
            raise ConfigError(f"{lost[0]!r} would be lost, because {override!r} replaces it; remove one of them")
        given[key] = override
    return validate(model, tree)


def validate(model: type[C], tree: dict[str, Any], section: str = "") -> C:
    """Validate a tree of settings.

    Args:
        model: Settings class.
        tree: Settings as nested mappings.
        section: Dotted key of the tree in its file, for the error message.

    Raises:
        ConfigError: A setting is unknown, missing or not allowed.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        prefix = f"{section}." if section else ""
        raise ConfigError("; ".join(prefix + _format_error(e, model) for e in error.errors())) from None


def read_json_setting(file: Path, setting: str) -> dict[str, Any]:
    """Read the JSON object in a file that a setting names. Raises ConfigError, which begins with the setting."""
    try:
        return read_json_object(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}: {error}") from None


def _apply(tree: dict[str, Any], override: str, model: type[BaseModel]) -> str:
    """Apply an override to the tree; return its key."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form dotted.key=value")
    try:
        value = parse_value(text, annotation_at(model, key))
    except (yaml.YAMLError, ValueError) as error:
        shown = textwrap.shorten(repr(text), 100, placeholder="...")
        raise ConfigError(f"{key}={shown} is not a YAML value: {' '.join(str(error).split())}") from None
    set_at(tree, key, value)
    return key


def set_at(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, creating missing sections. Raises ConfigError if a parent is a value, not a section."""
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:  # absent, or an empty section
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section")
    tree[last] = value


def _format_error(error: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "settings"
    if error["type"] == "extra_forbidden":
        return f"{where}={error['input']!r}: unknown key; allowed here: {', '.join(_keys_at(model, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{where}: missing; it has no default, so set it"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == _SECRET:
        return f"{where}: {message}"
    if not error["loc"]:  # the message names several settings
        return message
    return f"{where}={error['input']!r}: {message[:1].lower()}{message[1:]}"


def _keys_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        found = section_models(field.annotation) if field else []
        if not found:
            return ["?"]
        model = found[0]
    return sorted(model.model_fields)
