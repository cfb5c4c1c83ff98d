import json

import pytest
import torch
from tiny_clip import CONFIG, NAME, write_tiny_clip

from asymflow.metrics.clip_score import ClipScore
from asymflow.metrics.weights import MissingWeights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


def test_files_that_do_not_fit(tmp_path, weights):
    with pytest.raises(MissingWeights, match="open_clip_model.safetensors of CLIP"):
        ClipScore.load("", architecture=NAME)
    with pytest.raises(MissingWeights, match="has no architecture 'no-such'"):
        ClipScore.load(str(weights), architecture="no-such")
    wide = {**CONFIG, "embed_dim": 24}
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    with pytest.raises(MissingWeights, match="does not contain wide"):
        ClipScore.load(str(weights), architecture=str(tmp_path / "wide.json"))
    bad = tmp_path / "weights.pt"
    torch.save({"state_dict": {"x": torch.zeros(1)}, "code": Evil()}, bad)
    with pytest.raises(MissingWeights, match="cannot be read as weights: Weights only load failed"):
        ClipScore.load(str(bad), architecture=NAME)
    bad.write_bytes(b"no weights")
    with pytest.raises(MissingWeights, match="cannot be read as weights"):
        ClipScore.load(str(bad), architecture=NAME)
    torch.save([1, 2], bad)
    with pytest.raises(MissingWeights, match="is a list; expected weights by name"):
        ClipScore.load(str(bad), architecture=NAME)


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))
