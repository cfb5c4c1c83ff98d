import json

import pytest
from diffusers import AutoencoderKLFlux2

from asymflow.models.klein_geometry import read_token_geometry, token_geometry

SMALL = {"patch_size": (2, 2), "block_out_channels": (8, 16, 16), "latent_channels": 4}


def test_a_token_covers_the_downsampling_times_the_cell():
    assert token_geometry(SMALL) == (2 * 4, 4 * 4)


def test_missing_settings_have_the_defaults_of_the_class():
    config = AutoencoderKLFlux2().config
    assert token_geometry({}) == token_geometry(config) == (16, 128)


def test_cells_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="packs latents in 2x4 cells; only square ones"):
        token_geometry({**SMALL, "patch_size": (2, 4)})


def test_it_is_read_from_the_autoencoder_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match="it has no vae/config.json, which defines the size of its patches"):
        read_token_geometry(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(json.dumps(SMALL))
    assert read_token_geometry(tmp_path) == (8, 16)
