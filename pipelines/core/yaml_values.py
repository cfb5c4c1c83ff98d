"""Parse YAML strictly: duplicate keys are errors, and command-line values keep text that looks like a comment."""

import re
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from yaml.nodes import MappingNode, Node, ScalarNode

_MAX_DEPTH = 50
_BOOL, _NULL, _INT, _FLOAT, _DATE = (
    f"tag:yaml.org,2002:{name}" for name in ("bool", "null", "int", "float", "timestamp")
)
# YAML 1.1 without sexagesimal (12:30 is 750) and octal (010 is 8) numbers. Dates stay text.
_NUMBERS = {
    _INT: re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"),
    _FLOAT: re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|\.(?:inf|Inf|INF))$"
        r"|\.(?:nan|NaN|NAN)$"
    ),
}


class ValidatedAs:
    """Annotate a dict of settings that is validated later: `Annotated[dict[str, Any], ValidatedAs(Model)]`.

    Args:
        model: The settings class that the dict will be validated as.
    """

    def __init__(self, model: type[BaseModel]):
        self.model = model

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Return the schema of the model, so that editors complete its keys."""
        section: dict[str, Any] = handler(self.model.__pydantic_core_schema__)
        while schema["type"] != "nullable" and "schema" in schema:  # validators wrap the type
            schema = schema["schema"]
        return {"anyOf": [section, {"type": "null"}]} if schema["type"] == "nullable" else section


class _Loader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys and deep nesting."""

    yaml_implicit_resolvers = {
        first: [(tag, _NUMBERS.get(tag, pattern)) for tag, pattern in resolvers if tag != _DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested deeper than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            identity, line = (key.tag, key.value), key.start_mark.line + 1
            if identity in lines:
                raise yaml.YAMLError(
                    f"the key {key.value!r} appears twice, in lines {lines[identity]} and {line}; remove one"
                )
            lines[identity] = line
        return node


class _TextLoader(_Loader):
    """YAML loader that keeps every scalar as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}


def load_yaml(text: str) -> Any:
    """Parse a YAML document. Raises yaml.YAMLError, also for duplicate keys and deep nesting."""
    return _load(_Loader, text)


def parse_value(text: str, annotation: Any) -> Any:
    """Parse a command-line value by the type of its setting.

    A text setting takes the value unchanged. A list of text takes a value that is not `[...]` as its only entry.
    `[...]` and `{...}` are YAML. Any other value is a number, boolean or null if it looks like one, else text.

    Args:
        text: The value.
        annotation: Type of the setting.

    Raises:
        yaml.YAMLError: Brackets are not valid YAML, or text follows the closing one.
    """
    kinds = _kinds(annotation)
    if kinds <= {str}:
        return text
    stripped, texts = text.strip(), list in kinds and _is_text_list(annotation)
    if stripped[:1] in ("[", "{"):
        return _parse_collection(stripped, _TextLoader if texts else _Loader)
    if texts and kinds == {list}:
        return text
    loader = _Loader("")
    tag = loader.resolve(ScalarNode, stripped, (True, False))
    if not stripped or tag not in (_BOOL, _NULL, _INT, _FLOAT):
        return text
    return loader.construct_object(ScalarNode(tag, stripped))


def annotation_at(model: type[BaseModel], key: str) -> Any:
    """Return the type of the setting at a dotted key; Any if it is unknown."""
    found: Any = model
    metadata: list[Any] = []
    for part in key.split("."):
        models = [m for m in _members(found) if isinstance(m, type) and issubclass(m, BaseModel)]
        models += [mark.model for mark in metadata if isinstance(mark, ValidatedAs)]
        if models:
            field = models[0].model_fields.get(part)
            if field is None:
                return Any
            found, metadata = field.annotation, field.metadata
        else:  # a dict, whose second type argument is that of its values
            dicts = [m for m in _members(found) if get_origin(m) is dict]
            found, metadata = (get_args(dicts[0])[1] if dicts else Any), []
    return found


def _load(loader_class: type[yaml.SafeLoader], text: str) -> Any:
    loader = loader_class(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _parse_collection(text: str, loader_class: type[yaml.SafeLoader]) -> Any:
    node = yaml.compose(text, loader_class)
    if node is not None and node.end_mark.index != len(text):
        raise yaml.YAMLError(f"{text[node.end_mark.index :].strip()!r} follows its last bracket")
    return _load(loader_class, text)


def _members(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _kinds(annotation: Any) -> set[Any]:
    found: set[Any] = set()
    for member in _members(annotation):
        literal = get_origin(member) is Literal
        found |= {type(value) for value in get_args(member)} if literal else {get_origin(member) or member}
    return found


def _is_text_list(annotation: Any) -> bool:
    lists = [get_args(member) for member in _members(annotation) if get_origin(member) is list]
    return all(arguments and _kinds(arguments[0]) <= {str} for arguments in lists)
