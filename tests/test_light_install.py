"""`pip install asymflow` is enough to sample: the library runs where only its own dependencies can be found."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SCRIPT = """
import importlib, importlib.util, json, sys
from pathlib import Path

NEED_TORCHVISION = {"asymflow.metrics.inception", "asymflow.metrics.inception_network"}
for path in sorted(Path("asymflow").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    if name not in NEED_TORCHVISION:
        importlib.import_module(name)

from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline

pipeline = AsymFlux2KleinPipeline.from_pretrained("models/toy_klein", adapter="models/toy_asymflow")
image = pipeline("an emoji of grinning face on light blue", num_inference_steps=2).images[0]
heavy = [m for m in ("boto3", "deepspeed", "mlflow", "pyarrow", "ray", "torchvision") if importlib.util.find_spec(m)]
refused = ""
try:
    import pipelines
except ImportError as error:
    refused = str(error)
print(json.dumps({"size": image.size, "heavy": heavy, "refused": refused}))
"""


def closure(requirements):
    """All distributions that pip would install for the requirements, by the metadata of those installed here."""
    found: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in found:
                found.add((name, wanted))
                todo += [(Requirement(text), wanted) for text in distribution(name).requires or ()]
    return {name for name, _ in found}


def link(names, folder):
    """Make distributions, and no others, importable from a folder."""
    for name in names:
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(installed.locate_file(top))


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.slow
def test_it_samples_with_the_light_install(project, tmp_path):
    names = closure(project["dependencies"])
    assert {"torch", "diffusers", "peft", "accelerate"} <= names
    link(names, tmp_path)
    path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]"
    command = [sys.executable, "-I", "-S", "-c", f"{path}\n{SCRIPT}"]  # -S: no site-packages
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "size": [64, 64],
        "heavy": [],
        "refused": "pipelines needs the libraries of the cluster: pip install 'asymflow[cluster]'",
    }


def test_every_other_install_has_the_pipeline(project):
    """What people are told to install by one name works by itself."""
    extras = project["optional-dependencies"]
    assert all(any("cluster" in entry for entry in extras[name]) for name in set(extras) - {"cluster", "docs"})
    assert {Requirement(text).name for text in extras["cluster"]}.isdisjoint(
        Requirement(text).name for text in project["dependencies"]
    )
