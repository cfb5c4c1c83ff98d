import json
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipelines.core.config import ConfigError, load_config, validate
from pipelines.core.tracking import PARENT, tracking_uri
from pipelines.experiments import sweep
from pipelines.experiments.config import Search, SweepSettings
from pipelines.experiments.sweep import coarse_to_fine, rows_of, run_sweep, table_of

MODELS = Path(__file__).parents[3] / "models"


def bowl(scale, low, high):
    """Return an objective with its minimum at a scale of 2.7 within [0.1, 0.86] and a valley across the axes."""
    return (scale - 27) ** 2 + 2 * (low - 5) ** 2 + (high - 43) ** 2 + 0.5 * (scale - 27) * (high - 43)


@pytest.mark.parametrize("coarse", [1, 3, 8, 16, 100])
def test_the_search_ends_at_the_lowest_point_of_the_grid(coarse):
    asked = []

    def objective(place):
        asked.append(place)
        return bowl(*place)

    assert coarse_to_fine(objective, Search(coarse=coarse)) == (27, 5, 43)
    assert all(isinstance(value, int) for place in asked for value in place)
    assert all(10 <= s <= 40 and 0 <= low <= 20 and 30 <= high <= 50 for s, low, high in asked)
    if coarse == 8:
        assert len(set(asked)) < 200 < 31 * 21 * 21


def test_search_steps_have_no_rounding_errors():
    changes = [sweep._changes((n, n, 50)) for n in range(10, 51)]
    assert [c["sampling.guidance"] for c in changes[:4]] == [1.0, 1.1, 1.2, 1.3]
    assert changes[19 - 10]["sampling.guidance_interval"] == [0.38, 1.0]
    assert all(len(str(c["sampling.guidance_interval"][0])) <= 4 for c in changes)


def test_search_intervals_are_not_empty():
    asked = []
    coarse_to_fine(lambda place: asked.append(place) or 0.0, Search(low=(0.0, 0.8), high=(0.2, 1.0), coarse=10))
    assert all(low <= high for _, low, high in asked)


@pytest.fixture
def settings(tmp_path, held_out):
    def make(**changes):
        tree = {
            "run": {"storage": str(tmp_path / "runs"), "experiment": "sweep"},
            "metric": "trained/spectrum",
            "evaluate": {
                "base": str(MODELS / "toy_klein"), "adapter": str(MODELS / "toy_asymflow"), "curated": held_out,
                "prompts": {"count": 3}, "images_per_prompt": 1, "models": ["trained"],
                "bootstrap": {"set_resamples": 0}, "shown": 1, "resources": {"workers": 1},
            },
            "grid": {"sampling.steps": [1], "sampling.guidance": [1.0, 2.0]},
        }  # fmt: skip
        return validate(SweepSettings, tree | changes)

    return make


@pytest.mark.ray
@pytest.mark.slow
def test_a_grid_and_a_wider_one_that_finds_its_points(settings, local_ray, tmp_path, monkeypatch):
    """On cached images: sampling is tested with the evaluation."""
    folders = []
    for i, spread in enumerate((40, 80, 120)):
        folders.append(tmp_path / f"made{i}")
        folders[i].mkdir()
        for j in range(3):
            pixels = np.random.default_rng([i, j]).normal(128, spread, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folders[i] / f"{j}.png")
    made = [str(folder) for folder in folders]
    evaluation = {**settings().evaluate, "base": "", "adapter": "", "models": None}
    done = []
    once = sweep.run_independent

    def run_independent(*args):
        outcomes = once(*args)
        done.extend(outcomes.values())
        return outcomes

    monkeypatch.setattr(sweep, "run_independent", run_independent)
    first = settings(evaluate=evaluation, grid={"pictures": made[:2], "images_per_prompt": [1]})
    parent, points, best = run_sweep(first)
    assert len(points) == 2
    assert not any(outcome.reused for outcome in done)
    assert best.value == min(point.value for point in points)
    assert len({point.value for point in points}) == 2
    rows = rows_of(first, points)
    assert rows[0]["trained/spectrum"] == best.value
    assert "images_per_prompt" in table_of(rows)
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert json.loads((folder / "points.json").read_text()) == rows
    client = MlflowClient(tracking_uri(first.run))
    runs = [client.get_run(point.outcome.mlflow_run) for point in points]
    assert {run.data.tags[PARENT] for run in runs} == {parent}
    tags = client.get_run(parent).data.tags
    assert tags["best pictures"] == best.changes["pictures"]
    assert [f.path for f in client.list_artifacts(parent, "pictures")] == ["pictures/sweep.png"]

    done.clear()
    again = run_sweep(first)
    assert again[0] == parent
    assert all(outcome.reused for outcome in done)
    done.clear()
    run_sweep(settings(evaluate=evaluation, grid={"images_per_prompt": [1], "pictures": made[1:]}))
    assert [outcome.reused for outcome in done] == [True, False]


def test_a_search_is_a_sweep_too(settings, monkeypatch):
    from types import SimpleNamespace

    def evaluate(wanted):
        low, high = wanted.sampling.guidance_interval
        value = bowl(10 * wanted.sampling.guidance, 50 * low, 50 * high)
        artifact = SimpleNamespace(manifest={"metrics": {"trained/spectrum": value}}, uri="x")
        return SimpleNamespace(artifact=artifact, mlflow_run="y")

    def run_independent(step, settings, parent):
        return {name: evaluate(one) for name, one in settings.items()}

    monkeypatch.setattr(sweep, "run_independent", run_independent)
    found = settings(grid={}, search={"coarse": 10})
    _, points, best = run_sweep(found)
    assert best.changes == {"sampling.guidance": 2.7, "sampling.guidance_interval": [0.1, 0.86]}
    assert len(points) == len({json.dumps(p.changes) for p in points})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {}}, "grid, search: give one of the two"),
        ({"search": {}}, "grid, search: give one of the two"),
        ({"grid": {"sampling.steps": []}}, "grid.sampling.steps: has no values"),
        ({"grid": {}, "search": {"scale": [3, 2]}}, "search=.*scale=.*the lower one first"),
        ({"grid": {}, "search": {"scale": [0, 2]}}, "scale must not be below 1"),
    ],
)
def test_bad_sweeps(settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "trained/fid"}, "metric='trained/fid': must be one of trained/sliced_wasserstein"),
        ({"metric": "trained/high_frequency_power"}, "metric='trained/high_frequency_power': must be one of"),  # 1 is
        ({"grid": {"sampling.step": [1]}}, "evaluate.sampling.step=1: unknown key"),
        ({"grid": {"sampling.steps": [2, 0]}}, "evaluate.sampling.steps=0: .*at .'sampling.steps': 0"),
        ({"grid": {"adapter": ["./nowhere"]}}, "evaluate.adapter='./nowhere': no such folder"),
    ],
)
def test_every_point_is_checked_before_the_first_is_evaluated(settings, monkeypatch, changes, message):
    monkeypatch.setattr(sweep, "run_independent", lambda *args: pytest.fail("a point was evaluated"))
    with pytest.raises(ConfigError, match=message):
        run_sweep(settings(**changes))


def test_settings_from_a_file(tmp_path):
    config = tmp_path / "sweep.yaml"
    config.write_text("metric: trained/fid\nevaluate: {suite: coco10k}\ngrid: {sampling.steps: [8, 16]}\n")
    found = load_config(SweepSettings, str(config), ["evaluate.base=models/x"])
    assert found.grid == {"sampling.steps": [8, 16]}
    assert found.evaluate == {"suite": "coco10k", "base": "models/x"}
