"""docs/maths.md must name functions and tests that exist, and leave out no equation."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (?P<label>[^|]+) \| [^|]+ \| `(?P<function>[^`|]+)` \| `(?P<test>[^`|]+)` \|$")


GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)]*))?\)")


def anchors(path):
    """What a heading is called in an address."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_links_resolve(path):
    for file, anchor in LINK.findall(path.read_text()):
        target = path.parent / file if file else path
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_shipped_files_that_are_named_exist():
    """Commands of the guides name configurations, manifests and scripts."""
    for path in GUIDES:
        named = set(re.findall(r"(?<!tests/)(?:jobs|infra)/[\w/.-]+\.(?:py|yaml|sh|example)\b", path.read_text()))
        missing = {name for name in named if not (ROOT / name).exists() and "/mine/" not in name}
        assert missing <= {"jobs/STEP.py", "jobs/brightness.py"}, path.name  # the second is an example


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


def names_in(file):
    """Names and attributes that a Python file uses; definitions and imports are not uses."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def test_every_function_is_used_by_the_product_and_called_by_its_test():
    files = [file for folder in ("asymflow", "pipelines", "jobs") for file in (ROOT / folder).rglob("*.py")]
    used = set().union(*map(names_in, files))
    for row in maths_rows():
        name = row["function"].rpartition(".")[2]
        assert name in used, f"Eq. {row['label']}: nothing but tests uses {row['function']}"
        assert name in names_in(ROOT / row["test"].partition("::")[0]), row


def test_every_test_exists():
    for row in maths_rows():
        path, name = row["test"].split("::")
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
