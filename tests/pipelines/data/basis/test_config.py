from pathlib import Path

import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.data.basis.config import BasisSettings

TOY = str(Path(__file__).parents[4] / "models/toy_klein")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({}, (16, 128)),
        ({"base": TOY}, (4, 8)),
        ({"base": TOY, "pca_rank": 5}, (4, 5)),
        ({"base": TOY, "patch_size": 2}, (2, 8)),
        ({"pca_rank": "auto"}, (16, "auto")),
    ],
)
def test_patch_size_and_rank_are_given_or_the_bases(tree, expected):
    settings = validate(BasisSettings, {"curated": "c", **tree})
    assert (settings.patch_size, settings.pca_rank) == expected


def test_a_base_without_its_autoencoder_names_what_is_missing(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    (tmp_path / "vae").mkdir()
    with pytest.raises(ConfigError, match="patch_size and pca_rank: not given, and base=.*no vae/config.json"):
        validate(BasisSettings, {"curated": "c", "base": str(tmp_path)})
    assert (
        validate(BasisSettings, {"curated": "c", "base": str(tmp_path), "patch_size": 4, "pca_rank": 3}).pca_rank == 3
    )


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"layout": "diagonal"}, "layout='diagonal': input should be 'channel_first' or 'channel_last'"),
        ({"energy": 1.5}, "energy=1.5: input should be less than or equal to 1"),
        ({"patches_per_image": 0}, "patches_per_image.*=0: "),
        ({"pca_rank": "most"}, "pca_rank='most': must be auto, or a whole number"),
        ({"space": "lab"}, "space='lab': input should be 'measured', 'released' or 'srgb'"),
    ],
)
def test_settings_that_are_not_allowed_are_named(tree, message):
    with pytest.raises(ConfigError, match=message):
        validate(BasisSettings, {"curated": "c", **tree})
