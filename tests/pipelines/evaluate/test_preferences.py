import pytest
import torch

from pipelines.evaluate.prompts import Prompt
from pipelines.evaluate.scorers import Scorers


@pytest.mark.parametrize("name", ["pick_score", "aesthetic", "image_reward"])
def test_each_image_has_a_score_and_the_protocol_names_the_models(name, scorers):
    images = torch.randint(0, 256, (3, 3, 40, 40), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    score, protocol = getattr(Scorers.model_validate(scorers), name).load("cpu")
    rows = score(images, [Prompt(str(i), text) for i, text in enumerate(("a cat", "two dogs", "cat a"))])
    assert len({row["score"] for row in rows}) == 3
    assert protocol["metric"] == name
    assert protocol["model"].count("local:") == 2
