"""Settings: typed, from YAML and `dotted.key=value`, refused in one readable line before anything starts."""

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

from asymflow.outside_text import read_json_object
from pipelines.core.config_files import read_config_file
from pipelines.core.credentials import has_secret
from pipelines.core.errors import ConfigError as ConfigError
from pipelines.core.settings_reference import section_models
from pipelines.core.yaml_values import annotation_at, parse_value

_SECRET = "secret"  # the type of an error whose message must not repeat the value
_PROSE = "prompt"  # names of settings end so that hold no path, whatever their value begins with


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, numbers are finite, values do not change after loading.

    Any setting may be an address or a path, so all are treated alike: none may hold a password or a token, and `~/`
    stands for the home folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_address(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        if has_secret(value) and not any(character.isspace() for character in value):
            raise PydanticCustomError(
                _SECRET, "holds a password or a token; credentials come from the environment alone"
            )
        is_path = value.startswith("~/") and not (info.field_name or "").endswith(_PROSE)
        return os.path.expanduser(value) if is_path else value


_ADDED = "added"


def added(default: Any, **options: Any) -> Any:
    """Return the field of a setting that is newer than artifacts; its default must be what was done before.

    At its default it is left out of an artifact's identity, so that the artifacts made before it keep theirs.
    """
    return Field(default, json_schema_extra={_ADDED: True}, **options)


def is_unchanged_addition(settings: BaseModel, name: str) -> bool:
    """Return whether the setting was defined with `added` and has its default."""
    field = type(settings).model_fields[name]
    extra = field.json_schema_extra
    return isinstance(extra, dict) and _ADDED in extra and getattr(settings, name) == field.default


def _uri(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    scheme, separator, rest = value.partition("://")
    if separator and (scheme != "s3" or not rest.strip("/")):
        raise ValueError("must be a local path or s3://bucket/prefix")
    return value


Uri = Annotated[str, AfterValidator(_uri)]
OptionalUri = Annotated[str, AfterValidator(lambda value: value and _uri(value))]
"""Empty: none"""

Layout = Literal["channel_first", "channel_last"]


def _rank(value: Any) -> Any:
    """One message for both kinds, which a union would give one each."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError("must be auto, or a whole number from 0")


Rank = Annotated[int | Literal["auto"], BeforeValidator(_rank)]


class RunSettings(Settings):
    """Where a run happens and is written down. Not part of an artifact's identity."""

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
    """Its name, which a configuration file says"""
    inputs: ClassVar[Mapping[str, str]] = {}
    """{setting that holds an artifact's URI: the step that makes it}"""
    run: RunSettings = RunSettings()


C = TypeVar("C", bound=BaseModel)


def load_config(model: type[C], path: str | None, overrides: list[str]) -> C:
    """Read a YAML file (see `read_config_file`), apply `dotted.key=value` overrides (see `parse_value`), validate.

    The file is one of the step that `model.step` names; without one, all settings have their defaults. Raises
    ConfigError.
    """
    tree = read_config_file(path, getattr(model, "step", "")) if path is not None else {}
    given: dict[str, str] = {}
    for override in overrides:
        key = _apply(tree, override, model)
        if lost := [text for name, text in given.items() if name == key or name.startswith(f"{key}.")]:
            raise ConfigError(f"{lost[0]!r} would be lost, for {override!r} comes after it; leave one")
        given[key] = override
    return validate(model, tree)


def validate(model: type[C], tree: dict[str, Any], section: str = "") -> C:
    """Raises ConfigError; `section` is where the tree stands in its file, for the message."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        prefix = f"{section}." if section else ""
        raise ConfigError("; ".join(prefix + _readable(e, model) for e in error.errors())) from None


def read_json_setting(file: Path, setting: str) -> dict[str, Any]:
    """Read the JSON object of a file that a setting names. Raises ConfigError, which begins with the setting."""
    try:
        return read_json_object(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}: {error}") from None


def _apply(tree: dict[str, Any], override: str, model: type[BaseModel]) -> str:
    """Set what an override says; its key."""
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
    """Set a dotted key, making sections on its way. Raises ConfigError where one of them is a value."""
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:  # absent, or a heading with nothing under it
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section")
    tree[last] = value


def _readable(error: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "settings"
    if error["type"] == "extra_forbidden":
        return f"{where}={error['input']!r}: unknown key; allowed here: {', '.join(_keys_at(model, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{where}: missing, and it has no default"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == _SECRET:
        return f"{where}: {message}"
    if not error["loc"]:  # about several settings, which it names
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
