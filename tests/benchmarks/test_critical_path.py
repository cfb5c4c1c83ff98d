import runpy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import critical_path as benchmark  # noqa: E402


def test_the_demo_is_as_long_as_before_on_two_cores():
    settings, graph = benchmark.graph_of("demo")
    rows = dict(benchmark.rows_of(graph, benchmark.DEMO, benchmark.CLUSTERS["demo"]))
    assert rows["one step after the other"] == rows["as a graph, on 2 CPU"] == "508"
    assert rows["as a graph, on 4 CPU"] == rows["critical path: curate, encode, finetune, evaluate"] == "487"


def test_each_step_of_the_9b_workflow_has_a_duration():
    settings, graph = benchmark.graph_of("klein_9b")
    seconds = benchmark.modelled_seconds(settings, graph)
    assert list(seconds) == list(graph)
    assert min(seconds.values()) > 0
    assert seconds["curate"] == pytest.approx(3e6 / 12.5 / 256)


def test_a_finished_workflow_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "steps.json").write_text(
        '[{"name": "a", "needs": [], "state": "made", "started": 1.0, "seconds": 2.0},'
        ' {"name": "b", "needs": ["a"], "state": "made", "started": 3.0, "seconds": 4.0},'
        ' {"name": "c", "needs": ["a"], "state": "made", "started": 3.0, "seconds": 1.0}]'
    )
    monkeypatch.setattr(sys, "argv", ["critical_path.py", str(tmp_path)])
    runpy.run_path(benchmark.__file__, run_name="__main__")
    out = capsys.readouterr().out
    assert "one step after the other  7" in out
    assert "critical path: a, b       6" in out
