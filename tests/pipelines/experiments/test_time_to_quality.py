import json
from pathlib import Path

import pytest

from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, RunSettings, validate
from pipelines.core.text_table import format_table
from pipelines.core.tracking import open_artifact_run
from pipelines.experiments.config import TimeToQualitySettings
from pipelines.experiments.time_to_quality import (
    SECONDS,
    find_finetunes,
    quality_figure,
    quality_table,
    rows_of,
    run_time_to_quality,
    steps_to_quality,
    training_minutes,
)

STEPS = [100, 200, 300, 400]


@pytest.mark.parametrize(
    ("distances", "first", "lasting"),
    [
        ([0.9, 0.7, 0.4, 0.3], 300, 300),
        ([0.4, 0.7, 0.4, 0.3], 100, 300),
        ([0.4, 0.3, 0.2, 0.6], 100, None),
        ([0.4, 0.3, 0.2, 0.1], 100, 100),
        ([0.9, 0.8, 0.7, 0.5], None, None),  # an equal distance does not pass
    ],
)
def test_first_and_lasting_step_below_a_limit(distances, first, lasting):
    assert steps_to_quality(STEPS, distances, 0.5) == (first, lasting)


def test_rows_have_steps_and_minutes():
    distances = {"a": [0.9, 0.4, 0.6, 0.2], "b": [2.0, 2.0, 2.0, 1.5]}
    found = {
        step: {f"trained/{m}": d[i] for m, d in distances.items()} | {"latent/a": 0.5, "latent/b": 1.0}
        for i, step in enumerate(STEPS)
    }
    a, b = rows_of("one", ["a", "b"], found, [1.0, 2.0, 3.5, 4.0])
    assert (a["first"], a["first_minutes"], a["lasting"], a["lasting_minutes"]) == (200, 2.0, 400, 4.0)
    assert a["trained"] == distances["a"]
    assert a["latent"] == 0.5
    assert b["first"] is b["first_minutes"] is None
    lines = format_table(quality_table([a, b])).splitlines()
    assert lines[1].split() == ["one", "a", "0.5", "0.2", "200", "2", "400", "4"]
    assert lines[2].split() == ["one", "b", "1", "1.5", "-", "-", "-", "-"]
    figure = quality_figure([a, b])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert figure.axes[0].get_xlabel() == "minutes of training"
    unknown = quality_figure(rows_of("one", ["a"], found, [None] * 4))
    assert unknown.axes[0].get_xlabel() == "optimizer step"


def test_minutes_are_those_of_the_finetunes_run(tmp_path):
    """Steps without a metric are assumed average."""
    run, folder = RunSettings(storage=str(tmp_path / "runs")), str(tmp_path / "runs/finetune/ID")
    with open_artifact_run(folder, "finetune", run, "a finetune") as tracker:
        for step in (1, 2, 4):
            tracker.log_metrics({SECONDS: 30.0}, step)
    finetuned = Artifact(folder, {"id": "ID"})
    assert training_minutes(finetuned, run, [2, 4]) == [1.0, 2.0]
    elsewhere = RunSettings(storage=str(tmp_path / "other"))
    assert training_minutes(finetuned, elsewhere, [2]) == [None]
    assert training_minutes(Artifact(str(tmp_path / "copied"), {"id": "ID"}), run, [2]) == [None]


def test_other_artifacts_than_finetunes_are_refused(tmp_path):
    tree = {"finetuned": {"mine": str(tmp_path / "absent")}, "evaluate": {}}
    with pytest.raises(ConfigError, match="finetuned.mine: no finished finetune artifact .*jobs/finetune.py"):
        find_finetunes(validate(TimeToQualitySettings, tree))
    manifest = {"step": "finetune", "id": "1", "config": {"model": "latent", "base": "b"}, "files": {}}
    (tmp_path / "latent").mkdir()
    (tmp_path / "latent/manifest.json").write_text(json.dumps(manifest))
    tree["finetuned"] = {"mine": str(tmp_path / "latent")}
    with pytest.raises(ConfigError, match="finetuned.mine: has model=latent; only model=asymflow"):
        find_finetunes(validate(TimeToQualitySettings, tree))


@pytest.mark.ray
@pytest.mark.slow
def test_every_checkpoint_of_a_finetune_is_evaluated(tiny_workflow):
    settings, _, outcomes = tiny_workflow
    tree = {
        "run": settings.run.model_dump(), "finetuned": {"tiny": outcomes["finetune"].artifact.uri},
        "metrics": ["sliced_wasserstein", "spectrum"],
        "evaluate": {
            "curated": outcomes["curate"].artifact.uri, "prompts": {"count": 4}, "images_per_prompt": 1,
            "sampling": {"steps": 2}, "bootstrap": {"set_resamples": 0}, "shown": 1, "leave_out": ["efficientnet"],
        },
    }  # fmt: skip
    folder, _, rows = run_time_to_quality(validate(TimeToQualitySettings, tree))
    assert [row["metric"] for row in rows] == ["sliced_wasserstein", "spectrum"]
    for row in rows:
        assert row["steps"] == [3, 6]
        assert len(set(row["trained"])) == 2
        assert row["latent"] > 0
        assert 0 < row["minutes"][0] < row["minutes"][1]
    assert json.loads((Path(folder) / "rows.json").read_text()) == rows
    again = run_time_to_quality(validate(TimeToQualitySettings, tree))
    assert again[2] == rows
    with pytest.raises(ConfigError, match="metrics=.*'nonsense'.*: must be distances of the suite: sliced"):
        find_finetunes(validate(TimeToQualitySettings, {**tree, "metrics": ["nonsense"]}))
