import json

import pytest
import torch

from asymflow.models.shifted_latents import pack, read_token_geometry, unpack


def test_tokens_are_cells_of_pixels_channel_last():
    latents = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    assert pack(latents, 2)[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]  # rows, columns, channels


@pytest.mark.parametrize("side", [1, 2, 4])
def test_unpacking_undoes_packing(side):
    latents = torch.randn(2, 5, 2 * side, 3 * side)
    assert torch.equal(unpack(pack(latents, side), (2, 3), side), latents)


def test_the_geometry_needs_the_settings_of_the_autoencoder(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(json.dumps({"latent_channels": 16}))
    with pytest.raises(ValueError, match="its vae/config.json lacks block_out_channels"):
        read_token_geometry(tmp_path)
    (tmp_path / "vae/config.json").write_text(json.dumps({"latent_channels": 16, "block_out_channels": [8] * 4}))
    assert read_token_geometry(tmp_path) == (16, 64)
