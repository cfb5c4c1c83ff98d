"""docs/maths.md must name functions and tests that exist, and leave out no equation."""

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (?P<label>[^|]+) \| [^|]+ \| `(?P<function>[^`|]+)` \| `(?P<test>[^`|]+)` \|$")


def maths_rows():
    lines = (ROOT / "docs/maths.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")][2:]  # after the header and its rule
    matches = [ROW.match(line) for line in table]
    assert all(matches), [line for line, match in zip(table, matches, strict=True) if not match]
    return [match.groupdict() for match in matches]


def resolve(dotted):
    """Import the longest prefix that is a module, then follow attributes."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


def test_every_equation_is_covered_once():
    labels = [row["label"].strip() for row in maths_rows()]
    assert sorted(int(label) for label in labels if label.isdigit()) == list(range(1, 53))
    assert [label for label in labels if not label.isdigit()] == ["Theorem 1"]


def test_every_function_exists():
    for row in maths_rows():
        assert callable(resolve(row["function"])), row


def test_every_test_exists():
    for row in maths_rows():
        path, name = row["test"].split("::")
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
