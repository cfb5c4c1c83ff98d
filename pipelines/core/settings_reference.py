"""List the settings of a step: for --help, for docs/configuration.md, and as a JSON schema for editors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipelines.core.config_files import EXTENDS, STEP

REQUIRED = "(required)"
_TYPES = {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "null", Any: "anything"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "multiple_of": "multiple of"}
_IN_YAML = {"None": "null", "True": "true", "False": "false"}
_LEFT_OUT = ("title", "required", "added")  # a required setting may be in the file that is extended


@dataclass(frozen=True)
class Setting:
    """One setting of a step."""

    key: str
    """Dotted key"""
    allowed: str
    """Type and bounds, in words"""
    words: tuple[str, ...]
    """Allowed strings; empty if others are allowed too"""
    default: str
    about: str


def list_settings(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Yield all settings of a model and of its sections, in order.

    An optional section that is null by default is yielded as a setting too.
    """
    for name, field in model.model_fields.items():
        key, sections = f"{prefix}{name}", section_models(field.annotation)
        default = field.get_default(call_default_factory=True)
        if not sections or default is None or default is PydanticUndefined or isinstance(default, str | Mapping):
            shown = REQUIRED if default is PydanticUndefined else _IN_YAML.get(str(default), repr(default))
            about = " ".join((field.description or "").split())
            words = tuple(allowed_words(field.annotation))
            yield Setting(key, _allowed(field), words, shown, about)
        for section in sections[:1]:
            yield from list_settings(section, f"{key}.")


def describe(model: type[BaseModel]) -> list[str]:
    """Return one line per setting, `dotted.key = default  # description`, for --help."""
    lines = []
    for setting in list_settings(model):
        note = "; ".join(filter(None, [" | ".join(word or "''" for word in setting.words), setting.about]))
        lines.append(f"  {setting.key} = {setting.default}{f'  # {note}' if note else ''}")
    return lines


def section_models(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in section_models(part)]


def allowed_words(annotation: Any) -> list[str]:
    """Return the strings that a Literal in a type annotation allows; empty without one."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    return [word for part in get_args(annotation) for word in allowed_words(part)]


def json_schema(model: type[BaseModel], step: str) -> dict[str, Any]:
    """Return the JSON schema of a step's configuration files, for completion and checks in editors.

    No key is required, because a file may extend another and inputs may be given on the command line.
    """
    schema = _clean(model.model_json_schema())
    own = {
        STEP: {"const": step, "description": "The step that this file configures"},
        EXTENDS: {"type": "string", "description": "Another file, by its path from this one's folder, to start from"},
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Configuration of {step}"}
    return {**head, **schema, "properties": {**own, **schema["properties"]}}


def _clean(schema: Any) -> Any:
    """Remove from a schema what is of no use in an editor."""
    if isinstance(schema, list):
        return [_clean(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            cleaned[key] = {name: _clean(part) for name, part in value.items()}
        elif key == "description":
            cleaned[key] = " ".join(value.split())
        elif key not in _LEFT_OUT and not (key == "default" and isinstance(value, dict)):
            cleaned[key] = value if key in ("default", "enum", "const") else _clean(value)
    return cleaned


def _allowed(field: FieldInfo) -> str:
    bounds = []
    for constraint in field.metadata:
        for name, sign in _BOUNDS.items():
            if (bound := getattr(constraint, name, None)) is not None:
                bounds.append(f"{sign} {bound:g}" if isinstance(bound, float) else f"{sign} {bound}")
    return ", ".join([_type_in_words(field.annotation), *bounds])


def _type_in_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _TYPES:
        return _TYPES[annotation]
    if origin is Annotated:
        return _type_in_words(arguments[0])
    if origin is Literal:
        return ", ".join(str(value) or "''" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_in_words(part) for part in arguments)
    if origin is list:
        return f"list of {_type_in_words(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(_type_in_words(part) for part in arguments)}]"
    if origin is dict:
        return f"{{{_type_in_words(arguments[0])}: {_type_in_words(arguments[1])}}}"
    return "section" if section_models(annotation) else str(annotation)
