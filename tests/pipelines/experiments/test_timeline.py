import json

from pipelines.core.artifacts import Artifact
from pipelines.core.config import RunSettings
from pipelines.core.step import Outcome
from pipelines.core.tracking import open_run
from pipelines.experiments.graph import Node
from pipelines.experiments.graph_runner import GraphResult
from pipelines.experiments.timeline import log_timeline, read_timeline, timeline_figure, timeline_of

GRAPH = {
    "curate": Node("curate", "curate"),
    "encode": Node("encode", "encode", {"curated": "curate"}),
    "basis": Node("basis", "basis", {"curated": "curate"}),
    "finetune": Node("finetune", "finetune", {"encoded": "encode", "basis": "basis"}),
}


def outcome(name, reused, run="r"):
    return Outcome(Artifact(f"/{name}", {"id": name, "metrics": {}}), f"{run} {name}", 0.1, reused)


def first():
    made = {name: outcome(name, False) for name in ("curate", "encode")}
    times = {"curate": (100.0, 110.0), "encode": (110.0, 140.0), "basis": (110.0, 115.0)}
    return GraphResult(made, {"basis": ValueError("no\nroom")}, {"finetune": ["basis"]}, times)


def test_how_each_step_ended():
    entries = {entry.name: entry for entry in timeline_of(GRAPH, first())}
    assert {name: (e.state, e.started, e.seconds) for name, e in entries.items()} == {
        "curate": ("made", 100.0, 10.0),
        "encode": ("made", 110.0, 30.0),
        "basis": ("failed", 110.0, 5.0),
        "finetune": ("skipped", None, 0.0),
    }
    assert entries["basis"].reason == "no room"
    assert entries["finetune"].needs == ["encode", "basis"]


def test_cached_steps_keep_the_times_at_which_this_workflow_made_them():
    outcomes = {"curate": outcome("curate", True), "encode": outcome("encode", True, "of another workflow")}
    again = {e.name: e for e in timeline_of(GRAPH, GraphResult(outcomes), timeline_of(GRAPH, first()))}
    assert (again["curate"].state, again["curate"].started, again["curate"].seconds) == ("cached", 100.0, 10.0)
    assert (again["encode"].state, again["encode"].started) == ("cached", None)


def test_the_timeline_is_stored_and_shown_in_mlflow(tmp_path):
    timeline = timeline_of(GRAPH, first())
    run, folder = RunSettings(storage=str(tmp_path)), str(tmp_path / ".workflows/a")
    with open_run(run, "workflow") as tracker:
        assert read_timeline(folder) == []
        log_timeline(timeline, GRAPH, folder, tracker)
        assert read_timeline(folder) == timeline
        found = tracker.client.get_run(tracker.run_id)
        rows = found.data.tags["mlflow.note.content"].splitlines()
        assert rows[2:] == [
            "| curate |  | made | 10 |",
            "| encode | curate | made | 30 |",
            "| basis | curate | failed | 5 |",
            "| finetune | encode, basis | skipped |  |",
        ]
        (page,) = [f.path for f in tracker.client.list_artifacts(tracker.run_id) if f.path == "workflow.md"]
        text = open(tracker.client.download_artifacts(tracker.run_id, page, str(tmp_path))).read()
        assert 'encode["encode<br/>made, 30 s"]' in text
        assert "curate --> basis" in text


def test_the_figure_has_a_bar_per_step():
    axes = timeline_figure(timeline_of(GRAPH, first())).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(GRAPH)
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 10), (10, 30), (10, 5), (0, 0)]
    assert json.dumps([text.get_text() for text in axes.texts]).count("skipped") == 1
