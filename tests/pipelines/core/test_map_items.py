"""What becomes of a step's items: all are done once, and one that fails costs itself alone."""

import json
import os
import sys
import time
from collections import Counter
from functools import partial

import pytest
from ray import cloudpickle

from pipelines.core import map_items as shards
from pipelines.core import progress, storage
from pipelines.core.cli import main
from pipelines.core.config import StepSettings
from pipelines.core.map_items import ItemsFailed, map_items
from pipelines.core.step import Step
from pipelines.core.workers import Workers

# Workers do not find the tests' modules: torch-fidelity has a package `tests` of its own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Recorder:
    """Does what an item says, and writes down each call; works in Ray's processes, so through files."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, item):
        with open(self.folder / "calls", "a") as calls:
            calls.write(f"{item}\n")
        first = not (self.folder / "mended").exists()
        if item.startswith("fails") and first:
            raise ValueError(f"bad\npicture in {item}")
        if item.startswith("kills") and first:
            (self.folder / "mended").touch()
            os._exit(1)
        if item.startswith("always kills"):
            os._exit(1)
        time.sleep(0.05)
        return {"length": len(item)}


@pytest.fixture
def run(local_ray, tmp_path):
    """Call with items: list of summaries. `run.calls()` counts what was called."""

    def go(items, workers=1, **options):
        items = items if isinstance(items, dict) else {item: item for item in items}
        folder = str(tmp_path / "step" / "artifact")
        return list(map_items(items, partial(Recorder, tmp_path), folder, Workers(workers=workers), **options))

    def calls():
        path = tmp_path / "calls"
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    go.calls = calls
    go.mend = (tmp_path / "mended").touch
    return go


@pytest.mark.slow
@pytest.mark.ray
def test_failure_costs_its_item_alone_and_is_done_again(run, capfd):
    items = [f"good {i}" for i in range(6)]
    items[2:2] = [f"fails {i}" for i in range(5)]
    with pytest.raises(ItemsFailed) as stopped:
        run(items)
    message = str(stopped.value)
    assert message.startswith("step: 5 of 11 items failed (fails 0: ValueError: bad picture in fails 0; fails 1: ")
    assert message.count("ValueError") == 3
    assert "; and 2 more); run again to process only the missing items" in message
    assert "\n" not in message
    assert run.calls() == Counter(items)
    run.mend()
    assert run(items) == [{"item": item, "length": len(item)} for item in items]
    assert {item: count for item, count in run.calls().items() if count > 1} == {f"fails {i}": 2 for i in range(5)}
    before = run.calls()
    assert len(run(items)) == 11
    assert run.calls() == before
    time.sleep(1)  # Ray forwards what workers log
    log = "".join(capfd.readouterr())
    assert "item fails 0 failed" in log
    assert "Traceback" in log
    assert "(MapWorker(Map(step)) pid=" in log


def assert_nothing_is_held(ray):
    """Every processor is free within some seconds."""
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)


@pytest.mark.ray
def test_many_failures_stop_early_and_leave_no_actor(run, local_ray):
    items = [f"fails {i}" for i in range(20)] + [f"good {i}" for i in range(40)]
    with pytest.raises(ItemsFailed, match="stopped early: 11 of 60 items failed") as stopped:
        run(items)
    assert_nothing_is_held(local_ray)  # although the traceback, which holds the rows, still stands
    assert stopped.tb
    before = run.calls().total()
    time.sleep(2)  # long enough for twenty good ones, if it went on
    assert run.calls().total() <= before + 1 < 30


@pytest.mark.ray
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_a_step_that_is_interrupted_leaves_no_actor(run, local_ray, monkeypatch, interruption):
    def interrupt(rows, *_):
        yield next(rows)
        raise interruption

    monkeypatch.setattr(shards, "track", interrupt)
    with pytest.raises(interruption) as stopped:
        run([f"good {i}" for i in range(40)], workers=2)
    assert_nothing_is_held(local_ray)
    assert stopped.tb


@pytest.mark.ray
def test_worker_that_dies_is_restarted(run):
    assert [s["item"] for s in run(["a", "kills once", "b", "c"])] == ["a", "kills once", "b", "c"]
    assert run.calls() == {"a": 1, "kills once": 2, "b": 1, "c": 1}


@pytest.mark.slow
@pytest.mark.ray
def test_item_that_always_kills_is_given_up(run):
    with pytest.raises(ItemsFailed, match="1 of 3 items failed .always kills: its worker died each time"):
        run(["a", "always kills", "b"])
    assert run.calls() == {"a": 1, "always kills": 3, "b": 1}


@pytest.mark.ray
def test_worker_that_cannot_start(local_ray, tmp_path):
    with pytest.raises(ItemsFailed, match="step: workers died: NotADirectoryError: no model"):
        list(map_items({"a": "a"}, no_model, str(tmp_path / "step" / "artifact"), Workers(workers=1)))


def no_model():
    raise NotADirectoryError("no model")


@pytest.mark.slow
@pytest.mark.ray
def test_stages_are_apart(run, capfd, monkeypatch):
    """An item of one name in three stages is three items; the line of progress says which stage it is of."""
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.0)
    for stage in ("", "read", "write"):
        assert run({"a": f"{stage} a", "b": f"{stage} b"}, stage=stage)[0]["item"] == f"{stage} a"
        assert f"step {stage}".strip() + ":" in capfd.readouterr().err
    before = run.calls()
    for stage in ("", "read", "write"):
        assert run({"b": "", "a": ""}, stage=stage)[1]["item"] == f"{stage} a"
    assert run.calls() == before
    assert before.total() == 6


@pytest.mark.ray
def test_odd_names(run):
    names = ["a.b", "a.c", "a", "a/b", "a%2Fb", ".hidden", "..", "x.partial", "train/00000-64x64", "é ü+#?"]
    items = {name: f"item {i}" for i, name in enumerate(names)}
    assert [s["item"] for s in run(items)] == list(items.values())
    assert len(run(items)) == len(names)
    assert set(run.calls().values()) == {1}


def test_odd_names_on_s3(s3):
    for name in ("a/b.c", "%41", "é?#"):
        storage.write_bytes(shards._summary_file(f"{s3}/.done", name), b"{}")
        storage.write_bytes(shards._summary_file(f"{s3}/.done/stage", f"{name} staged"), b"{}")
    assert shards._list_finished(f"{s3}/.done") == {"a/b.c", "%41", "é?#"}


def test_summaries_are_prefetched_in_order(s3, s3_server):
    uris = [storage.join(s3, f"{i}.json") for i in range(50)]
    for i, uri in enumerate(uris):
        storage.write_bytes(uri, json.dumps({"i": i}).encode())
    s3_server.clear()
    summaries = shards._read_summaries(iter(uris))
    assert next(summaries) == {"i": 0}
    time.sleep(0.5)
    assert s3_server.count("GET") < 15
    assert [summary["i"] for summary in summaries] == list(range(1, 50))


@pytest.mark.ray
def test_failed_items_are_a_one_line_error(local_ray, tmp_path, monkeypatch, capsys):
    def build(settings, context):
        items = {"fails": "fails", "good": "good"}
        return {"n": len(list(map_items(items, partial(Recorder, tmp_path), context.folder, Workers(workers=1))))}

    (tmp_path / "config.yaml").write_text(f"run: {{storage: {tmp_path / 'runs'}}}")
    monkeypatch.setattr(sys, "argv", ["job.py", str(tmp_path / "config.yaml")])
    with pytest.raises(SystemExit) as stopped:
        main(StepSettings, lambda: Step("odd", StepSettings, build), "")
    assert stopped.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: odd: 1 of 2 items failed (fails: ValueError: bad picture in")
