"""Every configuration that is shipped can be read by its job."""

from pathlib import Path

import pytest

from pipelines.core.config import load_config
from pipelines.evaluate.config import EvaluateSettings
from pipelines.experiments.rank_sweep import RankSweepSettings, evaluation_of, training_of, variants_of
from pipelines.experiments.sweep import SweepSettings, grid_of, point_settings
from pipelines.experiments.workflow import STEPS, WorkflowSettings, fill_all
from pipelines.sample.config import SampleSettings
from pipelines.train.pretrain.config import PretrainSettings

CONFIGS = sorted((Path(__file__).parents[2] / "jobs/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid(path):
    kind = path.stem.split("_")[0]
    step = "finetune" if "klein" in path.stem else path.stem.removeprefix("laion_").removeprefix("imagenet_")
    named = {
        "sample": SampleSettings, "evaluate": EvaluateSettings, "sweep": SweepSettings, "demo": WorkflowSettings,
        "workflow": WorkflowSettings, "rank": RankSweepSettings,
    }  # fmt: skip
    settings = PretrainSettings if "_h16_" in path.stem or "_jit_" in path.stem else named.get(kind)
    found = load_config(settings or STEPS[step.removesuffix("_labels")].settings, str(path), [])
    if isinstance(found, RankSweepSettings):  # which holds a training's and an evaluation's
        for variant in variants_of(found):
            training_of(found, variant, 0)
            evaluation_of(found, variant, "runs/pretrain/ID", None, {})
    if isinstance(found, WorkflowSettings):
        fill_all(found)
    if isinstance(found, SweepSettings):  # which holds an evaluation's
        for changes in grid_of(found) if found.grid else [{}]:
            point_settings(found, changes)


def test_finetune_of_the_released_space_fits_its_basis():
    from asymflow.oklab import RELEASED

    configs = {path.stem: path for path in CONFIGS}
    basis = load_config(STEPS["basis"].settings, str(configs["laion_basis"]), [])
    pixels = load_config(STEPS["finetune"].settings, str(configs["klein_9b"]), []).pixels
    assert basis.space == "released" and basis.patch_size == pixels.patch_size and basis.layout == pixels.layout
    assert (tuple(pixels.mean), pixels.std) == (RELEASED.mean, RELEASED.std)
