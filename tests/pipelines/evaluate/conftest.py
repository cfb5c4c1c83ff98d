from pathlib import Path

import pytest

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture(scope="session")
def held_out(tmp_path_factory, make_pictures, local_ray):
    """URI of a curate artifact of small pictures: the demo suite's captions and real pictures."""
    from pipelines import curate
    from pipelines.config import validate
    from pipelines.steps import run_step
    from pipelines.toy.data import write_img2dataset

    folder = tmp_path_factory.mktemp("held_out")
    write_img2dataset(iter(make_pictures(60)), folder / "shards", 30)
    tree = {
        "run": {"storage": str(folder / "runs")}, "source": str(folder / "shards"), "buckets": [[64, 64]],
        "held_out_every": 4, "filters": {"min_side": 32},
    }  # fmt: skip
    return run_step(curate.STEP, validate(curate.STEP.settings, tree)).artifact.uri


@pytest.fixture
def demo(tmp_path, held_out):
    """Call with changes: settings of the demo suite on the shipped toy, as a tree."""

    def make(**changes):
        return {
            "run": {"storage": str(tmp_path / "runs"), "experiment": "demo"},
            "base": str(MODELS / "toy_klein"),
            "adapter": str(MODELS / "toy_asymflow"),
            "curated": held_out,
            "prompts": {"count": 5},
            "images_per_prompt": 2,
            "sampling": {"steps": 2},
            "bootstrap": {"set_resamples": 3},
            "shown": 2,
            "resources": {"workers": 1, "batch": 4},
        } | changes

    return make
