"""Read configuration files: YAML that may say its step and start from another file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from asymflow.outside_text import read_text
from pipelines.core.errors import ConfigError
from pipelines.core.yaml_values import load_yaml

STEP, EXTENDS = "step", "extends"
MOVED = "moved.yaml"
"""In a folder: {old name of a configuration: new place below the folder}"""


def read_config_file(path: str, step: str = "") -> dict[str, Any]:
    """Read the settings of a file, merged into those of the file that it extends.

    Args:
        path: a YAML mapping. `extends` names another file, by a path from this one: its mappings are merged key by key,
            and anything else (lists too) is replaced. `step` says which step the settings are of.
        step: the step that the settings are wanted for; empty: `step` is a key like any other.

    Returns:
        The settings, without `step` and `extends`.

    Raises:
        ConfigError: no such file, no mapping, a file of another step, or files that extend each other in a circle.
    """
    return _read(Path(path), step, ())


def _read(file: Path, step: str, above: tuple[Path, ...]) -> dict[str, Any]:
    chain = (*above, file)
    if file.resolve() in [other.resolve() for other in above]:
        raise ConfigError(f"{' extends '.join(map(str, chain))}: a circle; leave one `{EXTENDS}` out")
    tree = _load(file, above)
    if step:
        found = tree.pop(STEP, step)
        if found != step:
            raise ConfigError(f"{file} is a configuration of step {found!r}, not of {step!r}; use jobs/{found}.py")
    base = tree.pop(EXTENDS, None)
    if base is None:
        return tree
    if not isinstance(base, str) or not base.strip():
        raise ConfigError(f"{file}: {EXTENDS}={base!r}: must be the path of a file, from this one's folder")
    return merge(_read(file.parent / base, step, chain), tree)


def _load(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if not file.is_file():
        by = f", which {above[-1]} extends," if above else ""
        raise ConfigError(f"config file '{file}'{by} does not exist{_where_now(file)}")
    try:
        tree = load_yaml(read_text(file))
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold settings (key: value), it holds a {type(tree).__name__}")
    return tree


def _where_now(file: Path) -> str:
    """In words, where a file that was moved is."""
    index = file.parent / MOVED
    moved = load_yaml(read_text(index)) if index.is_file() else {}
    return f"; it is {file.parent / moved[file.name]} now" if file.name in moved else ""


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`: mappings are merged key by key, and anything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
