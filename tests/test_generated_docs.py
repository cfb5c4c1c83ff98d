"""docs/configuration.md and docs/schemas are what docs/generate.py makes of the settings classes."""

import json
import runpy
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipelines.experiments.config import SETTINGS

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "jobs/configs").glob("*/*.yaml"))


def validator(step):
    return Draft202012Validator(json.loads((ROOT / f"docs/schemas/{step}.json").read_text()))


def test_generated_files_are_current(tmp_path):
    runpy.run_path(str(ROOT / "docs/generate.py"))["generate"](tmp_path)
    schemas = {Path(f"schemas/{step}.json") for step in SETTINGS}
    assert {path.relative_to(ROOT / "docs") for path in (ROOT / "docs/schemas").iterdir()} == schemas
    for name in (Path("configuration.md"), *schemas):
        assert (ROOT / "docs" / name).read_text() == (tmp_path / name).read_text(), "run `make configuration`"


def test_every_setting_is_there_with_its_default():
    text = (ROOT / "docs/configuration.md").read_text()
    for line in (
        "| `optim.lr` | number, > 0 | `0.0001` |  |",
        "| `curated` | text | `(required)` | Artifact of the curate step: the images |",
        "| `repa.block` | integer, ≥ 1 | `8` | Block whose output tokens are aligned, counted from 1 |",
        "| `run.storage` | text | `'runs/default'` | Root of all artifacts: a local path or s3://bucket/prefix |",
    ):
        assert line in text
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == ["All steps", *SETTINGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configurations_fit_their_schema(path):
    validator(path.parent.name).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("step", "tree"),
    [
        ("curate", {"step": "encode"}),
        ("curate", {"sorce": "data"}),
        ("curate", {"filters": {"min_sides": 3}}),
        ("finetune", {"optim": {"lr": 0}}),
        ("finetune", {"model": "pixel"}),
        ("evaluate", {"suite": "nonsense"}),
        ("workflow", {"curate": {"sorce": "data"}}),
        ("workflow", {"caption": {"backend": "none"}}),
    ],
)
def test_schemas_reject_what_jobs_refuse(step, tree):
    assert not validator(step).is_valid(tree)


def test_a_section_may_be_left_out():
    assert validator("workflow").is_valid({"caption": None, "color_stats": None})
    assert validator("finetune").is_valid({"extends": "klein_9b.yaml", "validation": None})


def test_editors_find_the_schemas():
    connected = json.loads((ROOT / ".vscode/settings.json").read_text())["yaml.schemas"]
    assert connected == {f"./docs/schemas/{step}.json": f"jobs/configs/{step}/*.yaml" for step in SETTINGS}
