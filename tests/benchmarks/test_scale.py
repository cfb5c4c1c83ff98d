import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import scale as benchmark  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs/scale.md").read_text()


def test_published_figures_stand_beside_those_of_the_model():
    header, finetune, scratch, memory = benchmark.published_rows()
    assert finetune[1:3] == ("1,100", "803")
    assert scratch[1:3] == ("1,750", "775")
    assert float(memory[2]) < 13  # below the least that a trainer states for its whole process
    for row in (finetune, scratch, memory):
        assert f"| {' | '.join(row)} |" in PAGE


@pytest.mark.parametrize("rows", [benchmark.zero_rows, lambda: benchmark.finetune_rows(few())])
def test_the_page_shows_the_tables(rows):
    assert all(f"| {' | '.join(row)} |" in PAGE for row in rows())


def few():
    """The fastest settings of one base on 8 GPUs."""
    from scale_model import Accelerators, choices

    return {"9B": {8: choices(benchmark.BASES["9B"], Accelerators(8))[0]}}


def test_the_page_states_the_measured_overhead():
    assert f"| driver per task | {1e6 * benchmark.TASK_SECONDS:.0f} µs" in PAGE


def test_more_nodes_cost_more_and_never_less_than_the_work():
    few_nodes, many = benchmark.cost(3e6, 1), benchmark.cost(3e6, 100)
    assert 400 < few_nodes < many


def test_the_figures_have_every_curve():
    axes = benchmark.finetune_figure(few()).axes
    assert [line.get_label() for line in axes[1].lines] == ["9B", "9B, the paper's 1,100"]
