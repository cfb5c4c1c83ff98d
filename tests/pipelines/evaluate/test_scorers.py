import json

import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.scorers import Scorers
from pipelines.evaluate.step import check


# spectrum has no model, and efficientnet's comes with a package: test_step.py
@pytest.mark.parametrize("name", sorted(set(Scorers.model_fields) - {"spectrum", "efficientnet"}))
def test_a_scorer_is_known_by_its_models_and_settings_without_loading_them(name, scorers, tmp_path):
    scorer = getattr(validate(Scorers, scorers), name)
    identity = json.loads(json.dumps(scorer.identity()))
    assert identity["model"].startswith("local:") and "resources" not in identity
    other = type(scorer).model_validate({**scorers[name], "resources": {"batch": 3}})
    assert other.identity() == scorer.identity()
    assert type(scorer).model_validate({**scorers[name], "model": str(tmp_path)}) != scorer
    with pytest.raises(ConfigError, match=rf"scorers.{name}.model: .*needed is .*leave_out: \[{name}\]"):
        suites = {"geneval": "geneval", "dpg": "dpg", "inception_as_is": "imagenet50k", "squeeze": "classes"}
        suite = suites.get(name, "coco10k")
        tree = {"suite": suite, "pictures": "x", "scorers": {**scorers, name: {**scorers[name], "model": "./none"}}}
        check(validate(EvaluateSettings, tree))
