"""Every configuration that is shipped can be read by its job."""

from pathlib import Path

import pytest

from pipelines.config import load_config
from pipelines.sample.config import SampleSettings
from pipelines.workflow import STEPS, WorkflowSettings

CONFIGS = sorted((Path(__file__).parents[2] / "jobs/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid(path):
    sampling = path.stem.startswith("sample_")
    step = "finetune" if "klein" in path.stem else path.stem.removeprefix("laion_")
    model = SampleSettings if sampling else WorkflowSettings if step == "demo" else STEPS[step].settings
    load_config(model, str(path), [])


def test_finetune_of_the_released_space_fits_its_basis():
    from asymflow.oklab import RELEASED

    configs = {path.stem: path for path in CONFIGS}
    basis = load_config(STEPS["basis"].settings, str(configs["laion_basis"]), [])
    pixels = load_config(STEPS["finetune"].settings, str(configs["klein_9b"]), []).pixels
    assert basis.space == "released" and basis.patch_size == pixels.patch_size and basis.layout == pixels.layout
    assert (tuple(pixels.mean), pixels.std) == (RELEASED.mean, RELEASED.std)
