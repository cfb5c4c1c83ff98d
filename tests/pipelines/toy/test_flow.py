import pytest
import torch
from diffusers import Flux2KleinPipeline

from pipelines.core.artifacts import load_artifact
from pipelines.toy.base import make_toy_base
from pipelines.toy.config import Steps
from pipelines.toy.flow import LONGEST, Captions, new_transformer


def test_the_shape_has_the_ratios_of_the_9b_model():
    config = new_transformer(8, 96).config
    width, patch_values = config.num_attention_heads * config.attention_head_dim, 3 * 4**2
    assert width / patch_values == pytest.approx(4096 / 768)
    assert config.in_channels / width == 128 / 4096
    assert config.in_channels / patch_values == 128 / 768


def test_long_captions_and_dropped_ones_are_unconditional():
    unconditional = torch.full((3, 4), 9.0)
    captions = Captions([], [], unconditional)
    embeddings = [torch.ones(5, 4), torch.ones(LONGEST + 1, 4), torch.ones(5, 4)]
    text, mask = captions.batch(embeddings, torch.tensor([False, False, True]))
    assert text.shape == (3, LONGEST, 4)
    assert mask.sum(1).tolist() == [5, 3, 3]
    assert torch.equal(text[0, :5], embeddings[0])
    assert torch.equal(text[1, :3], unconditional)
    assert torch.equal(text[2, :3], unconditional)


@pytest.mark.ray
@pytest.mark.slow
def test_all_parts_are_trained_and_written_as_a_stock_pipeline(held_out, tmp_path, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # compiling takes longer than these steps
    steps = Steps(autoencoder=2, text_encoder=1, flow_half_size=1, flow=1, backbone=1)
    out = tmp_path / "toy"
    measures = make_toy_base(load_artifact(held_out), tmp_path / "work", out, steps)
    assert measures.keys() == {"psnr_held_out"}
    assert not list(tmp_path.glob("*.partial"))
    assert {"samples.png", "reconstructions.png"} <= {path.name for path in (tmp_path / "work").iterdir()}
    toy = Flux2KleinPipeline.from_pretrained(out, torch_dtype=torch.float32)
    assert toy.vae.bn.running_var.min() > 0  # whitening was measured
    assert '"held_out"' in (tmp_path / "work" / "flow.log").read_text()
