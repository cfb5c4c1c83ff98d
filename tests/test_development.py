"""What docs/development.md shows works as it is shown; and the files beside it say what is so."""

import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from ray import cloudpickle

from asymflow.models import latent
from pipelines.core import artifacts, storage
from pipelines.core.config import RunSettings
from pipelines.core.step import run_step
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter
from pipelines.data.images import encode_png
from pipelines.evaluate import scorers

ROOT = Path(__file__).parents[1]
TOY = ROOT / "models/toy_klein"
SHOWN = dict(
    re.findall(r'^```python title="(.+?)"\n(.*?)^```$', (ROOT / "docs/development.md").read_text(), re.M | re.S)
)


def run_shown(title, **names):
    """Run a file that is shown, as a module of its own."""
    module = types.ModuleType(Path(title).stem + "_of_the_docs")
    module.__dict__.update(names)
    exec(compile(SHOWN[title], title, "exec"), module.__dict__)
    return module


@pytest.mark.ray
def test_a_step_is_added_as_shown(local_ray, tmp_path, monkeypatch):
    folder = storage.absolute(str(tmp_path / "curated"))

    def write(path):
        with RowWriter(path, SCHEMA) as writer:
            for index, level in enumerate((0, 51, 102)):
                image = encode_png(Image.new("RGB", (16, 16), (level,) * 3))
                writer.add({"key": f"{index}", "image": image, "caption": "", "width": 16, "height": 16})

    storage.write_file(storage.join(folder, "train/a-16x16.parquet"), write)
    curated = artifacts.write_manifest(folder, "curate", "123", CurateSettings(source="data"), {}, {})

    config = run_shown("pipelines/data/config.py")
    monkeypatch.setattr("pipelines.data.config.BrightnessSettings", config.BrightnessSettings, raising=False)
    step = run_shown("pipelines/data/brightness.py")
    monkeypatch.setitem(sys.modules, step.__name__, step)
    cloudpickle.register_pickle_by_value(step)
    settings = config.BrightnessSettings(curated=curated.uri, run=RunSettings(storage=str(tmp_path / "runs")))
    made = run_step(step.STEP, settings)
    assert made.artifact.manifest["metrics"] == {"mean": pytest.approx(0.2), "images": 3}
    assert run_step(step.STEP, settings).reused
    cloudpickle.unregister_pickle_by_value(step)

    monkeypatch.setitem(sys.modules, "pipelines.data.brightness", step)
    assert run_shown("jobs/brightness.py").load() is step.STEP


def test_a_metric_is_added_as_shown(monkeypatch):
    metric = run_shown("asymflow/metrics/colorfulness.py")
    gray = torch.full((2, 3, 8, 8), 90, dtype=torch.uint8)
    halves = gray.clone()
    halves[1, :, :4] = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    halves[1, :, 4:] = torch.tensor([0, 255, 0], dtype=torch.uint8).view(3, 1, 1)
    # red and green by halves: red - green is 255 or -255, yellow - blue 127.5 everywhere
    wanted = [0.0, pytest.approx(255 + 0.3 * 127.5)]
    assert metric.colorfulness(gray).tolist() == [0, 0]
    assert metric.colorfulness(halves).tolist() == wanted

    monkeypatch.setitem(sys.modules, "asymflow.metrics.colorfulness", metric)
    shown = run_shown("pipelines/evaluate/scorers.py", **{k: v for k, v in vars(scorers).items() if k != "__name__"})
    score, protocol = shown.ColorfulnessScorer().load("cpu")
    assert [row["score"] for row in score(halves, [])] == wanted
    assert protocol["metric"]


def test_a_base_model_is_added_as_shown(monkeypatch, tmp_path):
    family = run_shown("asymflow/models/plain_text.py")
    monkeypatch.setitem(sys.modules, family.__name__, family)
    monkeypatch.setattr(latent, "MODULES", (*latent.MODULES, family.__name__))
    for part in (*family.FAMILY.image_parts, *family.FAMILY.text_parts):
        (tmp_path / part).symlink_to(TOY / part)
    (tmp_path / "model_index.json").write_text('{"_class_name": "PlainTextFlux2Pipeline"}')

    found = latent.family_of(tmp_path)
    assert found.read_geometry(tmp_path) == (4, 8)
    images = found.load_image_encoder(str(tmp_path), "cpu", torch.float32)
    assert images.encode(torch.zeros(1, 3, 32, 48)).shape == (1, 96, 8)
    text = found.load_text_encoder(str(tmp_path), "cpu", torch.float32, 16)
    short, long = text.encode(["sun", "a sun over a hill, " * 9])
    assert short.shape[1] == long.shape[1] == text.width
    assert len(short) < len(long) == 16
    padded = found.load_text_encoder(str(tmp_path), "cpu", torch.float32, 16, "max_length").encode(["sun"])[0]
    assert padded.shape == long.shape
    assert torch.allclose(padded[: len(short)], short, atol=1e-5)


@pytest.mark.parametrize("title", sorted(title for title in SHOWN if title.startswith("asymflow/")))
def test_the_library_is_documented_as_shown(title, tmp_path):
    """By the checks that its own files have to pass; one without a section fails them."""
    tools, file = Path(sys.executable).parent, tmp_path / Path(title).name
    arguments = re.compile(r" +Args:\n( {8,}.*\n)+\n")
    for text, documented in ((SHOWN[title], True), (arguments.sub("", SHOWN[title]), False)):
        file.write_text(text)
        command = [tools / "pydoclint", "--config", ROOT / "pyproject.toml", file]
        assert (subprocess.run(command, capture_output=True).returncode == 0) == documented
    command = [tools / "ruff", "check", "--quiet", "--stdin-filename", title, "-"]
    assert subprocess.run(command, input=SHOWN[title], cwd=ROOT, text=True).returncode == 0


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_pre_commit_runs_the_pinned_tools():
    """Tools of the environment, so that a commit is checked by the versions that CI checks it by."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert all(hook["language"] == "system" for hook in repository["hooks"])
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format", "pydoclint", "mypy"]


def test_each_module_has_a_test_file_of_its_name():
    """Jobs have none: tests/jobs runs them all."""
    modules = [path.relative_to(ROOT) for name in ("asymflow", "pipelines") for path in (ROOT / name).rglob("*.py")]
    modules = [module for module in modules if module.name != "__init__.py"]
    tests = {module: ROOT / "tests" / module.with_name(f"test_{module.name}") for module in modules}
    missing = {module.as_posix() for module, test in tests.items() if not test.is_file()}
    assert missing == set()


def test_no_module_is_named_like_a_test():
    """pytest would collect it, and a reader look for tests in it."""
    files = [path for name in ("asymflow", "pipelines", "jobs") for path in (ROOT / name).rglob("*.py")]
    assert not [path for path in files if path.stem.startswith("test_") or path.stem.endswith("_test")]


def test_what_uses_the_local_ray_is_marked_so(request):
    """Else it would start another Ray beside that of `make test-on-ray`, and be part of the inner loop."""
    using = [item for item in request.session.items if "local_ray" in item.fixturenames]
    assert not [item.nodeid for item in using if not item.get_closest_marker("ray")]
