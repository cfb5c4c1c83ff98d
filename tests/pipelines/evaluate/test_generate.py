import json

import pytest
import torch


@pytest.mark.ray
def test_a_picture_of_nan_is_an_error_that_names_it(demo, local_ray, tmp_path):
    from pipelines.evaluate.generate import Generator
    from pipelines.evaluate.subject import EvaluatedModel
    from pipelines.sample.parameters import SamplingParameters

    generator = Generator(EvaluatedModel("", "", "", None), SamplingParameters(16, 16, 1, 1.0, 1.0), "cpu")
    generator.loaded = ("trained", lambda prompts, seeds, parameters: torch.full((1, 3, 16, 16), float("nan")))
    with pytest.raises(ValueError, match="image of 'a cat', seed 3, has NaN"):
        generator(json.dumps(["trained", str(tmp_path), [[3, "a cat", "000003-x"]]]))
    assert not list(tmp_path.glob("*.png"))
