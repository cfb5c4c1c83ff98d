from typing import get_args

import pytest

from pipelines.core.config import validate
from pipelines.evaluate.config import SuiteName
from pipelines.evaluate.scorers import Scorers
from pipelines.evaluate.suites import SUITES
from pipelines.sample.parameters import SamplingParameterSettings


def test_the_setting_allows_every_suite():
    assert get_args(SuiteName) == tuple(SUITES)


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_measures_read_scorers_of_their_suite(suite):
    assert {measure.scorer for measure in suite.measures} - {""} == set(suite.scorers)
    assert set(suite.scorers) <= Scorers.model_fields.keys()


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_each_metric_has_one_measure(suite):
    names = [name for measure in suite.measures for name in measure.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_sampling_parameters_are_settings(suite):
    validate(SamplingParameterSettings, dict(suite.sampling))
