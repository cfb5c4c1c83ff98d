"""Nightly evaluation of the registry's newest model by the job itself, as a scheduler runs it."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from pipelines.core.config import ConfigError
from pipelines.core.tracking import tracking_uri
from pipelines.evaluate.registry import fetch, pin_version

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.ray


@pytest.fixture
def nightly(tiny_workflow, tmp_path, monkeypatch, capsys, tiny_base):
    """Run jobs/evaluate.py demo CONFIG --latest-registered. Returns (exit status, last line, stderr)."""
    settings, _, outcomes = tiny_workflow
    tree = {
        "run": settings.run.model_dump(), "base": os.path.relpath(tiny_base), "models": ["trained"],
        "curated": outcomes["curate"].artifact.uri, "prompts": {"count": 3}, "images_per_prompt": 1,
        "sampling": {"steps": 2}, "bootstrap": {"set_resamples": 0}, "shown": 1,
    }  # fmt: skip
    config = tmp_path / "nightly.yaml"
    config.write_text(yaml.safe_dump(tree))

    def run(*overrides):
        arguments = ["jobs/evaluate.py", "demo", str(config), "--latest-registered", *overrides]
        monkeypatch.setattr(sys, "argv", arguments)
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(ROOT / "jobs/evaluate.py"), run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code
        out, err = capsys.readouterr()
        return status, out.splitlines()[-1] if out else "", err

    return run


@pytest.mark.slow
def test_every_night(nightly, tiny_workflow, tmp_path):
    settings, _, outcomes = tiny_workflow
    status, line, err = nightly()
    assert status == 0
    assert "nothing to do" not in err
    found = json.loads(line)
    client = MlflowClient(tracking_uri(settings.run))
    version = client.get_model_version_by_alias(settings.run.experiment, "newest")
    run = client.get_run(found["mlflow_run"])
    finetune = outcomes["finetune"]
    assert run.data.tags["registered"] == f"{version.name}/{version.version}"
    assert run.data.tags["adapter_run"] == finetune.mlflow_run
    assert run.data.tags["adapter_artifact"] == finetune.artifact.uri
    assert run.data.tags["adapter_step"] == "6"
    assert [model.model_id for model in run.inputs.model_inputs] == [version.tags["model_id"]]
    tags = {k: float(v) for k, v in version.tags.items() if k.startswith("demo/")}
    assert tags == pytest.approx({f"demo/{k}": v for k, v in found["metrics"].items()}, rel=1e-5)
    made = {p: p.stat().st_mtime_ns for p in Path(settings.run.storage, "pictures").rglob("*.png")}

    status, again, err = nightly()  # no new version
    assert status == 0
    assert json.loads(again) == found
    assert "up to date, nothing to do" in err

    status, line, err = nightly("floors={trained/high_frequency_power: 99}")
    assert status == 1
    assert json.loads(line) == found
    assert err.splitlines()[-1].startswith("error: demo: trained/high_frequency_power is ")
    status, line, err = nightly("floors={trained/fid: 1}")
    assert status == 2
    assert line == ""
    assert "floors.trained/fid: no such score" in err

    # The alias moves to another version with the same content: it is evaluated from cached images.
    client.create_model_version(version.name, version.source, version.run_id, dict(version.tags))
    client.set_registered_model_alias(version.name, "newest", str(int(version.version) + 1))
    status, line, err = nightly()
    client.set_registered_model_alias(version.name, "newest", version.version)
    assert status == 0
    assert json.loads(line)["artifact"] != found["artifact"]
    assert json.loads(line)["metrics"] == found["metrics"]
    assert {p: p.stat().st_mtime_ns for p in made} == made


def test_a_finetunes_artifact_is_linked_to_its_run_and_its_version(tiny_workflow):
    """As the workflow evaluates it, without naming the registry."""
    settings, _, outcomes = tiny_workflow
    client = MlflowClient(tracking_uri(settings.run))
    tags = client.get_run(outcomes["evaluate"].mlflow_run).data.tags
    finetune = outcomes["finetune"]
    assert tags["adapter_run"] == finetune.mlflow_run
    assert tags["adapter_artifact"] == finetune.artifact.uri
    name, number = tags["registered"].rsplit("/", 1)
    assert client.get_model_version(name, number).run_id == finetune.mlflow_run


def test_a_name_that_is_not_registered(nightly, tiny_workflow):
    settings = tiny_workflow[0]
    for name in ("nobody@newest", "nobody/3", f"{settings.run.experiment}@best"):
        with pytest.raises(ConfigError, match=f"registered='{name}': .*give NAME@ALIAS"):
            pin_version(name, settings.run)
    status, line, err = nightly("registered=nobody@newest")
    assert status == 2
    assert line == ""
    assert err.count("\n") == 1


def test_the_files_are_those_that_were_registered(tiny_workflow):
    settings, _, outcomes = tiny_workflow
    folder, lineage = fetch(pin_version(f"{settings.run.experiment}@newest", settings.run), settings.run)
    adapter = Path(outcomes["finetune"].artifact.file("adapter"))
    assert {p.name for p in Path(folder).iterdir()} == {p.name for p in adapter.iterdir()}
    assert all((Path(folder) / p.name).read_bytes() == p.read_bytes() for p in adapter.iterdir())
    assert lineage["adapter_kind"] == "asymflow"
