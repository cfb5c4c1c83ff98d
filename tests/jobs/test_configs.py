"""Every configuration that is shipped can be read by its job."""

from pathlib import Path

import pytest
import yaml

from asymflow.adapters import SamplingDefaults
from pipelines.core.artifacts import hashed_settings
from pipelines.core.config import ConfigError, load_config
from pipelines.core.config_files import MOVED
from pipelines.experiments.config import SETTINGS, RankSweepSettings, SweepSettings, WorkflowSettings
from pipelines.experiments.graph import WORKFLOW, fill_all
from pipelines.experiments.rank_sweep import evaluation_of, training_of, variants_of
from pipelines.experiments.sweep import grid_of, point_settings
from pipelines.experiments.workflow import STEPS
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.export import sampling_defaults

ROOT = Path(__file__).parents[2] / "jobs/configs"
CONFIGS = sorted(ROOT.glob("*/*.yaml"))


def load(name):
    """The settings of STEP/NAME."""
    return load_config(SETTINGS[name.split("/")[0]], str(ROOT / f"{name}.yaml"), [])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_is_valid(path):
    assert yaml.safe_load(path.read_text())["step"] == path.parent.name
    found = load(f"{path.parent.name}/{path.stem}")
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

    basis, pixels = load("basis/laion"), load("finetune/klein_9b").pixels
    assert basis.space == "released"
    assert basis.patch_size == pixels.patch_size
    assert basis.layout == pixels.layout
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
    settings = load(f"pretrain/imagenet_h16_{name}")
    assert (settings.validation.guidance, settings.validation.guidance_interval) == (scale, interval)


KLEIN = sorted(ROOT.glob("finetune/klein_9b*.yaml"))


@pytest.mark.parametrize("path", KLEIN, ids=lambda path: path.stem)
def test_klein_trains_as_the_released_weights_were_trained(path):
    """5 L_VR + 1 L_P, clipped at 200 and averaged from step 101 on; visible padding, no captions dropped."""
    settings = load(f"finetune/{path.stem}")
    assert settings.loss.loss_scale == 5.0
    assert settings.loss.caption_dropout == 0.0
    if settings.loss.perceptual and settings.loss.kind == "variance_reduced":
        assert settings.loss.loss_scale * settings.loss.perceptual.weight == pytest.approx(1.0)
    assert (settings.optim.clip, settings.optim.clip_from, settings.ema.start_step) == (200.0, 101, 101)
    assert (settings.optim.warmup_steps, settings.optim.warmup_ratio) == (100, 0.001)
    assert settings.text_padding == "max_length"
    size = (1024, 1024)
    assert sampling_defaults(settings, size).text_padding == SamplingDefaults().text_padding == "max_length"


def test_the_workflow_trains_as_the_finetunes_own_file_does():
    whole = load("workflow/klein_9b")
    alone = hashed_settings(load("finetune/klein_9b"))
    (inside,) = (settings for settings in fill_all(whole).values() if isinstance(settings, FinetuneSettings))
    inside = hashed_settings(inside)
    for name in ("curated", "encoded", "basis"):
        del alone[name], inside[name]
    assert inside == alone


def test_text_padding_of_encodings_and_finetunes_agrees():
    encode = load("encode/laion")
    assert (encode.text, encode.text_padding, encode.max_text_tokens) == ("on_the_fly", "max_length", 512)


def test_a_step_and_its_settings_have_one_name():
    jobs = {path.stem for path in (ROOT.parent).glob("*.py")}
    assert {path.parent.name for path in CONFIGS} <= set(SETTINGS) == jobs
    for name, step in STEPS.items():
        assert SETTINGS[name] is step.settings
        assert name == step.name
        assert step.inputs == step.settings.inputs
    assert tuple(STEPS) == WORKFLOW


def test_an_old_name_names_the_new_path():
    moved = yaml.safe_load((ROOT / MOVED).read_text())
    assert len(moved) == 42
    assert all((ROOT / new).is_file() for new in moved.values())
    for old, new in moved.items():
        with pytest.raises(ConfigError) as caught:
            load_config(SETTINGS[new.split("/")[0]], str(ROOT / old), [])
        assert str(caught.value) == f"config file '{ROOT / old}' does not exist; it is {ROOT / new} now"
