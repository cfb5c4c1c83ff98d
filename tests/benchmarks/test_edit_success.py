"""Tasks and known answers of the benchmark of edits, and one run of a pixel and of a latent model."""

import sys
from pathlib import Path

import pytest
import torch
from toy_pipeline import ADAPTER, BASE

from asymflow.metrics.ground_edit import COLOR_LIMIT, OBJECT_LIMIT

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import edit_success as benchmark  # noqa: E402

TASK = benchmark.Task("1F431", "white", "pink")


def test_known_answers():
    """The source has the object and not the ground; the answer has both, within the JPEG that made it."""
    source, answer = (TASK.measure(TASK.image(ground)) for ground in ("white", "pink"))
    assert source.object_error == 0
    assert source.color_distance > 0.1
    assert not source.is_success
    assert answer.color_distance < COLOR_LIMIT / 5
    assert answer.object_error < OBJECT_LIMIT / 2
    assert answer.is_success


def test_masks_leave_the_edge_out():
    ground, object = TASK.masks()
    assert ground.sum() > 500 < object.sum()
    assert not (ground & object).any()
    assert (ground | object).float().mean() < 0.95


def test_edits_of_the_data_are_left_out():
    stems, seen = ["1F431", "1F98A"], 50
    tasks = benchmark.make_tasks(stems, seen, 0, 100)
    pairs = {(t.stem, t.before, t.asked) for t in tasks}
    assert len(pairs) == len(tasks) == 2 * 6
    assert not pairs & {(stem, *pair) for stem in stems for pair in benchmark.ground_pairs(stem, 0)[:seen]}
    assert len(benchmark.make_tasks(stems, seen, 0, 5)) == 5
    assert tasks == benchmark.make_tasks(stems, seen, 0, 100)


@pytest.mark.slow
def test_the_command_prints_a_row_per_model_and_set(monkeypatch, capsys, tmp_path):
    arguments = ["base=", f"pixel={ADAPTER}", "--count", "2", "--steps", "2", "--grid", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", ["edit_success.py", *arguments, "--base", str(BASE)])
    torch.manual_seed(0)
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    for name in ("(source)", "(answer)", "(answer, autoencoder)", "base", "pixel"):
        rows = [line for line in lines if line.startswith(f"{name} ")]
        assert len(rows) == 2
        assert all(row.endswith("%") for row in rows)
    assert sum(line.startswith("(source)") and " 0.0 +- 0.0" in line for line in lines) == 2
    assert {file.name for file in tmp_path.iterdir()} == {"a_0.png", "a_1.png"}


def test_a_folder_that_is_no_adapter_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["edit_success.py", "mine=nowhere"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "'mine=nowhere': expected NAME=ADAPTER with an adapter's folder" in capsys.readouterr().err
