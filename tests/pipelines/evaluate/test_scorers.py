import json

import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.scorers import Scorers
from pipelines.evaluate.step import check
from pipelines.evaluate.suites import SUITES


# spectrum has no model, and efficientnet's comes with a package: test_step.py
@pytest.mark.parametrize("name", sorted(set(Scorers.model_fields) - {"spectrum", "efficientnet"}))
def test_a_scorer_is_known_by_its_models_and_settings_without_loading_them(name, scorers, tmp_path):
    scorer = getattr(validate(Scorers, scorers), name)
    identity = json.loads(json.dumps(scorer.identity()))
    assert identity["model"].startswith("local:")
    assert "resources" not in identity
    other = type(scorer).model_validate({**scorers[name], "resources": {"batch": 3}})
    assert other.identity() == scorer.identity()
    assert type(scorer).model_validate({**scorers[name], "model": str(tmp_path)}) != scorer
    with pytest.raises(ConfigError, match=rf"scorers.{name}.model: .*needed is .*leave_out: \[{name}\]"):
        suite = next(suite for suite, found in SUITES.items() if name in found.scorers)
        tree = {"suite": suite, "pictures": "x", "scorers": {**scorers, name: {**scorers[name], "model": "./none"}}}
        check(validate(EvaluateSettings, tree))
