from pathlib import Path

import pytest

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture
def demo(tmp_path, held_out):
    """Return a function of changes: settings of the demo suite on the shipped toy, as a tree."""

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
            "leave_out": [] if "suite" in changes else ["efficientnet"],
            "resources": {"workers": 1, "batch": 4},
        } | changes

    return make
