"""Imports point one way, in no circle, as import-linter's contracts say; and the core loads nothing of the cluster."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("asymflow", "pipelines", "jobs")
KEPT_OUT = ("ray", "mlflow", "deepspeed", "pydantic")


def lint(folder):
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    # jobs/ is no package: a PYTHONPATH with this folder would add its files to those of another
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_imports_keep_the_contracts():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kept, 0 broken" in done.stdout


def test_broken_contracts_are_found(tmp_path):
    only_code = shutil.ignore_patterns("configs", "__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=only_code)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    faults = {
        "asymflow/patches.py": "import pipelines.core.config",
        "asymflow/oklab.py": "def late():\n    import mlflow",
        "pipelines/core/provenance.py": "from pipelines.core.tracking import Tracker",
        "pipelines/data/images.py": "from pipelines.train import loop",
        "pipelines/sample/config.py": "from pipelines.toy import flow",
        "pipelines/viz/figures.py": "import tests.conftest",
        "jobs/sample.py": "import jobs.encode",
    }
    for file, line in faults.items():
        with (tmp_path / file).open("a") as out:
            out.write(f"\n\n{line}\n")
    (tmp_path / "pipelines/new_module.py").write_text("")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "0 kept, 6 broken" in done.stdout
    for found in (
        "asymflow.patches -> pipelines.core.config",
        "asymflow.oklab -> mlflow",
        "No cycles are allowed in pipelines.core",
        "pipelines.data.images -> pipelines.train.loop",
        "pipelines.sample.config -> pipelines.toy.flow",
        "pipelines.viz.figures -> tests",
        "jobs.sample -> jobs.encode",
        "new_module",
    ):
        assert found in done.stdout, found


@pytest.mark.slow
def test_importing_asymflow_loads_nothing_of_the_cluster():
    files = (path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "asymflow").rglob("*.py")))
    names = [".".join(file.parts).removesuffix(".__init__") for file in files]
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


def test_finding_cached_artifacts_loads_no_model_library():
    """`make demo` again, or any other step whose artifact is up to date, would wait for them in vain."""
    script = (
        "import sys, pipelines.experiments.workflow, pipelines.sample.step\n"
        "from pipelines.core.config import validate\n"
        "from pipelines.train.finetune import step\n"
        "tree = dict(curated='c', encoded='e', basis='b', base='models/toy_klein', loss={'perceptual': None})\n"
        "step.check(validate(step.STEP.settings, tree))\n"
        "print([m for m in ('diffusers', 'transformers', 'peft', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "[]\n", done.stdout + done.stderr


# job -> step -> task -> loss -> equation: each file names the next one
HOPS = [
    (
        "jobs/finetune.py",
        "pipelines/train/finetune/step.py",
        "pipelines/train/finetune/task.py",
        "asymflow/objectives/finetune.py",
        "asymflow/losses.py",
    ),
    (
        "jobs/pretrain.py",
        "pipelines/train/pretrain/step.py",
        "pipelines/train/pretrain/task.py",
        "asymflow/objectives/pretrain.py",
        "asymflow/losses.py",
    ),
]


def modules_imported(path):
    """Full names of the modules that a file takes names from."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("hops", HOPS, ids=["vr_loss", "asymmetric_loss"])
def test_a_job_reaches_its_loss_within_five_files(hops):
    assert len(hops) == 5
    for here, there in zip(hops, hops[1:], strict=False):
        module = there.removesuffix(".py").replace("/", ".")
        assert module in set(modules_imported(here)), f"{here} does not name {module}"
