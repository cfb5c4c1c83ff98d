import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.experiments.config import (
    SETTINGS,
    RankSweepSettings,
    Search,
    SweepSettings,
    WorkflowSettings,
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
    assert all(settings.step == name for name, settings in SETTINGS.items())


def test_names_of_evaluations_are_words():
    with pytest.raises(ConfigError, match="evaluations.*string should match pattern"):
        validate(WorkflowSettings, {"base": "b", "evaluations": {"a.b": {}}})
