import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipelines.core import storage
from pipelines.core.config import ConfigError, validate
from pipelines.core.tracking import PARENT, tracking_uri
from pipelines.experiments.config import WorkflowSettings
from pipelines.experiments.timeline import read_timeline
from pipelines.experiments.workflow import STEPS, run_workflow, step_settings, table

pytestmark = pytest.mark.ray


def test_every_step_made_an_artifact_under_one_parent_run(tiny_workflow):
    settings, parent, outcomes = tiny_workflow
    assert list(outcomes) == [name for name in STEPS if name != "caption"]  # which has no section
    assert not any(o.reused for o in outcomes.values())
    client = MlflowClient(tracking_uri(settings.run))
    for outcome in outcomes.values():
        run = client.get_run(outcome.mlflow_run)
        assert run.data.tags[PARENT] == parent
        assert run.info.status == "FINISHED"
        made_from = {i.dataset.digest for i in run.inputs.dataset_inputs if i.dataset.name in STEPS}
        assert made_from == set(outcome.artifact.manifest["inputs"].values())
        assert run.info.run_name.startswith(run.data.tags["step"])
        assert run.info.run_name.endswith(outcome.artifact.id[:6])
    (shards,) = client.get_run(outcomes["curate"].mlflow_run).inputs.dataset_inputs
    assert shards.dataset.name == "source"
    assert json.loads(shards.dataset.source)["uri"] == settings.curate["source"]
    finetune = outcomes["finetune"].mlflow_run
    assert [m.step for m in client.get_metric_history(finetune, "train/lambda")] == [1, 2, 3, 4, 5, 6]
    assert client.get_metric_history(finetune, "train/speed/images_per_second")[-1].value > 0
    pictures = [f.path for f in client.list_artifacts(finetune, "images")]
    steps = sorted(path.split("+step+")[1].split("+")[0] for path in pictures if path.endswith(".png"))
    assert steps == ["0", "3", "6"]
    sections = {name.rpartition("/")[0] for name in client.get_run(finetune).data.metrics}
    assert sections == {"train", "train/by_sigma", "train/end", "train/speed"}
    version = client.get_model_version_by_alias(settings.run.experiment, "newest")
    assert version.run_id == finetune
    assert version.tags["step"] == "6"


def test_a_second_run_is_cached_and_keeps_the_parent(tiny_workflow):
    settings, parent, outcomes = tiny_workflow
    again, second = run_workflow(settings)
    assert again == parent
    assert all(o.reused for o in second.values())
    assert "cached" in table(second)
    assert {o.artifact.id for o in second.values()} == {o.artifact.id for o in outcomes.values()}


def test_the_image_and_the_distances_are_there(tiny_workflow):
    artifact = tiny_workflow[2]["evaluate"].artifact
    picture = storage.read_file(artifact.file("samples.png"), Image.open)
    assert picture.width > 4 * 256
    rows = json.loads(storage.read_bytes(artifact.file("table.json")))
    assert list(dict.fromkeys(row["model"] for row in rows)) == ["latent", "lifted", "trained"]
    assert all(row["value"] > 0 for row in rows)


def test_basis_and_encoding_log_their_settings(tiny_workflow):
    outcomes = tiny_workflow[2]
    basis = json.loads(storage.read_bytes(outcomes["basis"].artifact.file("basis.json")))
    assert 0 < basis["captured_procrustes"] <= basis["captured_pca"] <= 1
    assert 0.3 < basis["convergence"][-1]["subspace"] <= 1 + 1e-9
    assert outcomes["encode"].artifact.manifest["metrics"]["pictures"] == 120


def test_a_failed_branch_leaves_the_others_and_is_named(tiny_workflow):
    """An evaluation whose prompts are too few fails; one that is the workflow's own again is cached."""
    settings, _, outcomes = tiny_workflow
    more = {"same": settings.evaluate, "large": {**settings.evaluate, "prompts": {"count": 10_000}}}
    wanted = validate(WorkflowSettings, settings.model_dump() | {"evaluations": more, "name": "more"})
    with pytest.raises(ConfigError, match=r"^evaluations\.large\.prompts\.count=10000: there are only \d+"):
        run_workflow(wanted)
    folders = [path.parent for path in Path(settings.run.storage).glob(".workflows/*/steps.json")]
    (timeline,) = [found for found in map(read_timeline, map(str, folders)) if len(found) > len(outcomes)]
    states = {entry.name: entry.state for entry in timeline}
    assert states == {**dict.fromkeys([*outcomes, "evaluations.same"], "cached"), "evaluations.large": "failed"}
    (found,) = [entry for entry in timeline if entry.name == "evaluations.same"]
    assert found.run == outcomes["evaluate"].mlflow_run
    assert found.needs == ["curate", "basis", "finetune"]


def test_the_times_of_the_first_run_are_kept(tiny_workflow):
    settings, parent, outcomes = tiny_workflow
    run_workflow(settings)
    folder = MlflowClient(tracking_uri(settings.run)).get_run(parent).data.tags["artifact"]
    timeline = read_timeline(folder)
    assert [entry.name for entry in timeline] == list(outcomes)
    assert {entry.state for entry in timeline} == {"cached"}
    ends = {entry.name: entry.started + entry.seconds for entry in timeline}
    assert all(ends[need] <= entry.started for entry in timeline for need in entry.needs)


@pytest.mark.parametrize("rank", [0, 769])
def test_a_bad_section_is_refused_before_the_first_step(tiny_workflow, tmp_path, rank):
    tree = tiny_workflow[0].model_dump() | {"run": {"storage": str(tmp_path / "none")}, "basis": {"pca_rank": rank}}
    with pytest.raises(ConfigError, match=f"basis.pca_rank={rank}"):
        run_workflow(validate(WorkflowSettings, tree))
    assert not (tmp_path / "none" / "curate").exists()


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        ("basis", {"pca_rank": 769}, "pca_rank=769.*768"),
        ("finetune", {"pixels": {"layout": "channel_last"}}, "patches are channel_first"),
        ("finetune", {"pixels": {"mean": [0.56, 0.0, 0.01]}}, "Oklab mean"),
        ("finetune", {"pixels": {"std": 0.16}}, "Oklab std"),
        ("finetune", {"pixels": {"patch_size": 8}}, "patch_size=8 needs 192"),
        ("finetune", {"base": "nowhere"}, "no such folder"),
        ("finetune", {"basis": "nowhere"}, "jobs/basis.py"),
        ("evaluate", {"prompts": {"count": 10_000}}, "prompts.count=10000: there are only"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_ray(tiny_workflow, step, changes, message):
    from pipelines.core.step import find_inputs

    settings, _, outcomes = tiny_workflow
    made = {name: outcome.artifact.uri for name, outcome in outcomes.items()}
    with pytest.raises(ConfigError, match=message):
        step_config = step_settings(STEPS[step], settings, made)
        changed = validate(STEPS[step].settings, step_config.model_dump() | changes)
        STEPS[step].check(changed)
        STEPS[step].check_inputs(changed, find_inputs(STEPS[step], changed))
