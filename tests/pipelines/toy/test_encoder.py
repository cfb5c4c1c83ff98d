from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from asymflow.models.dinov2 import DinoFeatures
from pipelines.data.images import decode_image, fit_to_size, to_array
from pipelines.toy.autoencoder import to_unit
from pipelines.toy.data import render_emoji
from pipelines.toy.encoder import GRID, make_encoder

FOLDER = Path(__file__).parents[3] / "models" / "toy_dinov2"


def drawn(stems: list[str], ground: str) -> torch.Tensor:
    pictures = [fit_to_size(decode_image(render_emoji(stem, ground)), 64, 64) for stem in stems]
    return torch.stack([torch.from_numpy(to_array(p).copy()).permute(2, 0, 1) for p in pictures])


def test_shipped_encoder_separates_content_better_than_position():
    assert sum(f.stat().st_size for f in FOLDER.rglob("*")) < 3_000_000
    features = DinoFeatures(str(FOLDER))
    cats = ["1F431", "1F63A", "1F638", "1F63C"]  # "cat face" in all their names
    clocks = ["1F550", "1F551", "1F552", "1F553"]
    tokens = features(to_unit(torch.cat([drawn(cats, "green"), drawn(clocks, "green")])), GRID)
    assert tokens.shape == (8, 16, 128)
    assert features.width == 128
    mean = F.normalize(tokens.mean(1) - tokens.mean((0, 1)), dim=-1)
    alike = mean @ mean.T
    same = alike[:4, :4].sum() + alike[4:, 4:].sum() - 8
    assert same / 24 > alike[:4, 4:].mean() + 0.5


@pytest.mark.slow
def test_training_resumes_and_writes_a_transformers_model(tmp_path):
    images = drawn(["1F431", "1F550"], "green")
    captions = ["a cat", "a clock"]
    work, out = tmp_path / "work", tmp_path / "made"
    first = make_encoder(images, captions, work, out, 40)
    again = make_encoder(images, captions, work, out, 80)
    assert again["cross_entropy"] < first["cross_entropy"] < 0.7
    assert make_encoder(images, captions, work, out, 80) == again  # nothing was left to train
    tokens = DinoFeatures(str(out))(to_unit(images), GRID)
    assert tokens.shape == (2, 16, 128)
    assert tokens.isfinite().all()
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".partial")] == []
