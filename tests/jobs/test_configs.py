"""Every configuration that is shipped can be read by its job."""

from pathlib import Path

import pytest

from asymflow.adapters import SamplingDefaults
from pipelines.core.artifacts import settings_of
from pipelines.core.config import load_config
from pipelines.evaluate.config import EvaluateSettings
from pipelines.experiments.config import RankSweepSettings, SweepSettings, WorkflowSettings
from pipelines.experiments.rank_sweep import evaluation_of, training_of, variants_of
from pipelines.experiments.sweep import grid_of, point_settings
from pipelines.experiments.workflow import STEPS, fill_all
from pipelines.sample.config import SampleSettings
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.export import sampling_defaults
from pipelines.train.pretrain.config import PretrainSettings

ROOT = Path(__file__).parents[2] / "jobs/configs"
CONFIGS = sorted(ROOT.glob("*.yaml"))


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


@pytest.mark.parametrize(
    ("name", "scale", "interval"),
    [
        ("r0", 2.7, (0.0, 0.82)),  # Table 5
        ("random", 2.8, (0.0, 0.82)),
        ("r8", 2.3, (0.0, 0.88)),  # the final models of Tables 1 and 2
        ("r8_repa", 2.2, (0.0, 0.88)),
    ],
)
def test_imagenet_validates_with_the_papers_guidance(name, scale, interval):
    settings = load_config(PretrainSettings, str(ROOT / f"imagenet_h16_{name}.yaml"), [])
    assert (settings.validation.guidance, settings.validation.guidance_interval) == (scale, interval)


KLEIN = sorted(path for path in CONFIGS if path.stem.startswith("klein_9b"))


@pytest.mark.parametrize("path", KLEIN, ids=lambda path: path.stem)
def test_klein_trains_as_the_released_weights_were_trained(path):
    """5 L_VR + 1 L_P, clipped at 200 and averaged from step 101 on; visible padding, no captions dropped."""
    settings = load_config(FinetuneSettings, str(path), [])
    assert settings.loss.loss_scale == 5.0 and settings.loss.caption_dropout == 0.0
    if settings.loss.perceptual and settings.loss.kind == "variance_reduced":
        assert settings.loss.loss_scale * settings.loss.perceptual.weight == pytest.approx(1.0)
    assert (settings.optim.clip, settings.optim.clip_from, settings.ema.start_step) == (200.0, 101, 101)
    assert (settings.optim.warmup_steps, settings.optim.warmup_ratio) == (100, 0.001)
    assert settings.text_padding == "max_length"
    size = (1024, 1024)
    assert sampling_defaults(settings, size).text_padding == SamplingDefaults().text_padding == "max_length"


def test_the_workflow_trains_as_the_finetunes_own_file_does():
    whole = load_config(WorkflowSettings, str(ROOT / "workflow_klein_9b.yaml"), [])
    alone = settings_of(load_config(FinetuneSettings, str(ROOT / "klein_9b.yaml"), []))
    (inside,) = (settings for settings in fill_all(whole).values() if isinstance(settings, FinetuneSettings))
    inside = settings_of(inside)
    for name in ("curated", "encoded", "basis"):
        del alone[name], inside[name]
    assert inside == alone


def test_the_encodings_are_padded_as_the_finetunes_of_them_ask():
    encode = load_config(STEPS["encode"].settings, str(ROOT / "laion_encode.yaml"), [])
    assert (encode.text, encode.text_padding, encode.max_text_tokens) == ("on_the_fly", "max_length", 512)
