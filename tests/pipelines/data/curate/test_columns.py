import pyarrow as pa
import pytest

from pipelines.data.curate.columns import MissingColumn, find_columns, find_columns_of_schema, is_image_struct, is_text
from pipelines.data.curate.samples import Columns

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def found(columns, names, texts=(), images=()):
    chosen = find_columns(columns, "a.parquet", names, texts, images)
    return chosen.key, chosen.image, chosen.caption


@pytest.mark.parametrize(
    ("names", "texts", "images", "expected"),
    [
        (["key", "jpg", "caption"], ["key", "caption"], [], ("key", "jpg", "caption")),
        (["image", "text"], ["text"], ["image"], ("", "image", "text")),
        (["photo", "legend"], ["legend"], ["photo"], ("", "photo", "legend")),
        (["path", "prompt", "notes"], ["path", "prompt", "notes"], [], ("", "path", "prompt")),
        (["image", "width"], [], ["image"], ("", "image", "")),
    ],
)
def test_usual_names_stand_in_for_absent_defaults(names, texts, images, expected):
    assert found(Columns(), names, texts, images) == expected


def test_reference_images_are_not_candidates():
    columns = Columns(references=["before"])
    assert found(columns, ["before", "after", "text"], ["text"], ["before", "after"]) == ("", "after", "text")


def test_captions_that_are_joined_need_no_column():
    assert found(Columns(caption_key="hash"), ["jpg", "hash"], ["hash"]) == ("", "jpg", "")


@pytest.mark.parametrize(
    ("columns", "names", "texts", "images", "message", "reason"),
    [
        (
            Columns(image="photo"),
            ["jpg"],
            [],
            [],
            "columns.image='photo': a.parquet has no such",
            "without column photo",
        ),
        (Columns(label="y"), ["jpg"], [], [], "columns.label='y'", "shard without column y"),
        (Columns(), ["a", "b"], [], ["a", "b"], "columns hold images, a, b; .*columns.image=a", "columns of images"),
        (Columns(), ["jpg", "a", "b"], ["a", "b"], [], "captions, a, b; .*columns.caption=a", "columns of text"),
    ],
)
def test_columns_that_cannot_be_chosen(columns, names, texts, images, message, reason):
    with pytest.raises(MissingColumn, match=message) as error:
        find_columns(columns, "a.parquet", names, texts, images)
    assert reason in error.value.reason
    assert "\n" not in str(error.value)


def test_types_of_a_schema():
    assert is_text(pa.dictionary(pa.int32(), pa.string()))
    assert not is_text(pa.binary())
    assert is_image_struct(STRUCT)
    assert not is_image_struct(pa.struct([("bytes", pa.binary())]))
    chosen = find_columns_of_schema(
        Columns(), "a.parquet", pa.schema([("image", STRUCT), ("words", pa.large_string())])
    )
    assert (chosen.image, chosen.caption) == ("image", "words")
