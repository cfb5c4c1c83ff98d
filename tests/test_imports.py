"""jobs -> pipelines -> asymflow, never back; and the core loads nothing of the cluster."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEPT_OUT = ("ray", "mlflow", "deepspeed", "pydantic")
MAY_IMPORT = {"asymflow": set(), "pipelines": {"asymflow"}, "jobs": {"asymflow", "pipelines"}}
OURS = {"asymflow", "pipelines", "jobs", "tests", "benchmarks"}


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path):
    """(top-level name, line) of every import in a file, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0], node.lineno


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_direction(package):
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for _, path in modules(package)
        for name, line in imported(path)
        if name in OURS - allowed
    ]
    assert not wrong


def test_jobs_are_no_package_for_each_other():
    wrong = [str(path) for _, path in modules("jobs") if any(name == "jobs" for name, _ in imported(path))]
    assert not wrong


def test_importing_asymflow_loads_nothing_of_the_cluster():
    names = [name for name, _ in modules("asymflow")]
    assert "asymflow.models.flux2" in names
    script = (
        "import importlib, json, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    print(json.dumps([name, [m for m in {KEPT_OUT!r} if m in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert set(loaded) == set(names)
    assert not {name: found for name, found in loaded.items() if found}


def test_settings_load_without_ray():
    """A bad setting is refused before anything heavy is imported."""
    script = "import sys, pipelines.core.config; print([m for m in ('ray', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr
