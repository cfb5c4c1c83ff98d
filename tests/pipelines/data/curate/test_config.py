import pytest

from pipelines.core.artifacts import hashed_settings
from pipelines.core.config import ConfigError, validate
from pipelines.data.curate.config import CurateSettings, Encoding


@pytest.mark.parametrize(("tree", "keeps"), [({}, True), ({"format": "webp"}, True), ({"format": "jpeg"}, False)])
def test_sources_are_kept_by_lossless_encodings(tree, keeps):
    assert Encoding(**tree).keeps_sources == keeps
    assert not Encoding(**tree, keep_unchanged=False).keeps_sources


@pytest.mark.parametrize(
    "tree",
    [
        {"held_out_every": 1},
        {"encoding": {"effort": 10}},
        {"near_duplicate_bits": 6},
        {"crop": "center"},
        {"buckets": []},
    ],
)
def test_values_out_of_range_are_one_line(tree):
    (name,) = tree
    with pytest.raises(ConfigError, match=name) as error:
        validate(CurateSettings, {"source": "x", **tree})
    assert "\n" not in str(error.value)


def test_later_settings_do_not_change_the_identity_of_older_artifacts():
    hashed = hashed_settings(CurateSettings(source="x"))
    assert not {"captions", "horizontal_flips"} & set(hashed)
    assert set(hashed["encoding"]) == {"format", "quality"}
    assert "effort" in hashed_settings(CurateSettings(source="x", encoding=Encoding(effort=3)))["encoding"]
