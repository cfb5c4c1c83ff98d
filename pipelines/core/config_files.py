"""Read YAML configuration files, which may state their step and extend another file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from asymflow.text_files import read_text
from pipelines.core.errors import ConfigError
from pipelines.core.yaml_values import load_yaml

STEP, EXTENDS = "step", "extends"
MOVED = "moved.yaml"
"""Index of moved files in a folder: {old name of a configuration: new path below the folder}"""


def read_config_file(path: str, step: str = "") -> dict[str, Any]:
    """Read the settings of a file, merged over those of the file that it extends.

    Args:
        path: File with a YAML mapping. Its key `extends` names another file by a path relative to this one: mappings
            are merged key by key, everything else (lists too) is replaced. Its key `step` names the configured step.
        step: The step that the settings must be for. If empty, `step` is an ordinary setting.

    Returns:
        The settings, without `step` and `extends`.

    Raises:
        ConfigError: The file does not exist, has no mapping, is for another step, or extends itself through others.
    """
    return _read(Path(path), step, ())


def _read(file: Path, step: str, above: tuple[Path, ...]) -> dict[str, Any]:
    chain = (*above, file)
    if file.resolve() in [other.resolve() for other in above]:
        raise ConfigError(f"{' extends '.join(map(str, chain))}: a circle; remove one `{EXTENDS}`")
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
        raise ConfigError(f"config file '{file}'{by} does not exist{_describe_move(file)}")
    try:
        tree = load_yaml(read_text(file))
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold settings (key: value), but it holds a {type(tree).__name__}")
    return tree


def _describe_move(file: Path) -> str:
    """Return the end of an error message that names a moved file's new path, or an empty string."""
    index = file.parent / MOVED
    moved = load_yaml(read_text(index)) if index.is_file() else {}
    return f"; it is {file.parent / moved[file.name]} now" if file.name in moved else ""


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated by `changes`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
