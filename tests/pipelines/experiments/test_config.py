import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.experiments.config import (
    SETTINGS,
    WORKFLOW,
    RankSweepSettings,
    Search,
    SweepSettings,
    WorkflowSettings,
    fill_all,
    fill_section,
    sections_of,
)

SWEEP = {"metric": "trained/fid", "evaluate": {}}
RANKS = {"pretrain": {}, "evaluate": {}, "ranks": [0, 8]}


@pytest.mark.parametrize(
    ("settings", "tree", "message"),
    [
        (Search, {"scale": [3, 2]}, r"scale=\(3.0, 2.0\): must be two numbers, the lower one first"),
        (Search, {"scale": [0.5, 2]}, "scale must not be below 1, nor high above 1"),
        (SweepSettings, SWEEP, "grid, search: give one of the two"),
        (SweepSettings, {**SWEEP, "grid": {"sampling.steps": [4]}, "search": {}}, "grid, search: give one of the two"),
        (SweepSettings, {**SWEEP, "grid": {"sampling.steps": []}}, "grid.sampling.steps: has no values"),
        (RankSweepSettings, {**RANKS, "curve": {"ranks": [4]}}, r"curve.ranks=\[4\]: 4 is not among `ranks`"),
        (RankSweepSettings, {**RANKS, "floors": {"ranks": [0, 2]}}, r"floors.ranks=\[0, 2\]: 2 is not among `ranks`"),
        (RankSweepSettings, {**RANKS, "seeds": []}, "seeds=.*at least 1"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings, tree, message):
    with pytest.raises(ConfigError, match=message):
        validate(settings, tree)


def test_every_job_with_a_configuration_has_its_settings_by_name():
    assert all(settings.step == name for name, settings in SETTINGS.items()) and set(WORKFLOW) < set(SETTINGS)


@pytest.fixture
def workflow(tmp_path):
    return validate(WorkflowSettings, {"base": "/nowhere/klein", "curate": {"source": "data"}, "name": "mine"})


def test_sections_that_are_null_are_left_out(workflow):
    assert sections_of(workflow) == [step for step in WORKFLOW if step != "caption"]
    with_captions = workflow.model_copy(update={"caption": {"model": "m"}, "color_stats": None})
    assert sections_of(with_captions) == [step for step in WORKFLOW if step != "color_stats"]


def test_a_section_gets_the_run_the_base_and_what_was_made(workflow):
    made = {"curate": "c", "color_stats": "s", "encode": "e", "basis": "b"}
    finetune = fill_section("finetune", workflow, made)
    assert (finetune.curated, finetune.encoded, finetune.basis, finetune.base) == ("c", "e", "b", "/nowhere/klein")
    assert finetune.run == workflow.run


def test_a_mistake_in_a_section_is_named_with_it(workflow):
    wrong = workflow.model_copy(update={"encode": {"text": "maybe"}})
    with pytest.raises(ConfigError, match="encode.text='maybe': input should be 'stored' or 'on_the_fly'"):
        fill_all(wrong)
    assert list(fill_all(workflow)) == sections_of(workflow)
