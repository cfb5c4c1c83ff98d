"""Files of a curate artifact: rows, batches, pieces, and the split that a small data set is tested on."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.core import artifacts, storage
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import (
    Piece,
    RowWriter,
    cut_into_pieces,
    decode_batch,
    decode_pixels,
    find_test_split,
    read_images,
    read_rows,
    rows_by_group,
)
from pipelines.data.images import encode_png
from pipelines.evaluate.prompts import read_held_out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three curated files of small images, the first two of three row groups."""
    folder = tmp_path_factory.mktemp("curated")
    files = [str(folder / f"{name}-16x16.parquet") for name in "abc"]
    for file, rows in zip(files, (150, 130, 70), strict=True):
        with RowWriter(Path(file), SCHEMA) as writer:
            for index in range(rows):
                image = encode_png(Image.linear_gradient("L").resize((16, 16)).convert("RGB"))
                writer.add({"key": f"{index}", "image": image, "caption": "", "width": 16, "height": 16})
    return files


def test_rows_come_back_a_group_at_a_time(files):
    file = files[2]
    groups = list(read_images(file))
    assert [len(rows.keys) for rows in groups] == [64, 6] == [len(rows.images) for rows in groups]
    assert groups[0].images.shape == (64, 3, 16, 16)
    assert -1 <= groups[0].images.min() < groups[0].images.max() <= 1
    assert pq.read_schema(file) == SCHEMA


def test_pieces_hold_every_row_group_once(files):
    for min_pieces in (1, 5, 16):
        pieces = cut_into_pieces(files, min_pieces)
        groups = sorted((p.uri, g) for p in pieces for g in p.groups)
        assert groups == [(f, g) for f, n in zip(files, (3, 3, 2), strict=True) for g in range(n)]
        assert sum(p.rows for p in pieces) == 350


def test_rows_of_each_group_are_read_from_the_footer(files):
    assert [rows_by_group(file) for file in files] == [[64, 64, 22], [64, 64, 2], [64, 6]]


def test_chosen_groups_and_columns_alone_are_read(files):
    (group,) = read_rows(files[0], ["key"], range(2, 3))
    assert group == {"key": [str(i) for i in range(128, 150)]}


@pytest.mark.parametrize(("limit", "sizes"), [({"max_pixels": 32 * 256}, [32, 32, 6]), ({"max_rows": 60}, [60, 4, 6])])
def test_batches_keep_to_their_limits_and_to_the_row_groups(files, limit, sizes):
    assert [len(batch.keys) for batch in read_images(files[2], **limit)] == sizes


def test_a_piece_is_written_and_read():
    piece = Piece("s3://bucket/train/a-16x16.parquet", range(2, 5), 150)
    assert Piece.from_json(piece.to_json()) == piece
    assert piece.name == "train-a-16x16-2"


def test_decoded_pixels_are_in_both_ranges():
    white, black = (encode_png(Image.new("RGB", (3, 2), color)) for color in ("white", "black"))
    assert decode_pixels([white, black])[:, 0, 0, 0].tolist() == [255, 0]
    assert decode_batch([white, black])[:, 0, 0, 0].tolist() == [1, -1]


def curated_of(folder, **rows):
    """A curate artifact with so many rows in each split, as that step writes it but without its Ray."""
    image = encode_png(Image.new("RGB", (16, 16)))
    for split, count in rows.items():

        def write(path, split=split, count=count):
            with RowWriter(path, SCHEMA) as writer:
                for index in range(count):
                    writer.add({"key": f"{index}", "image": image, "caption": split, "width": 16, "height": 16})

        if count:
            storage.write_file(storage.join(str(folder), split, "16x16-00000.parquet"), write)
    return artifacts.write_manifest(str(folder), "curate", "123", CurateSettings(source="data"), {}, {})


@pytest.mark.parametrize(("held_out", "validation", "evaluation"), [(0, "train", "train"), (1, "held_out", "train"),
                                                                    (2, "held_out", "held_out")])  # fmt: skip
def test_split_to_test_on(tmp_path, caplog, held_out, validation, evaluation):
    curated = curated_of(tmp_path, train=20, held_out=held_out)
    assert find_test_split(curated) == validation
    assert ("too few to test on; training images are used" in caplog.text) == (validation == "train")
    prompts = [prompt.text for prompt, _ in read_held_out(curated)]
    assert prompts == [evaluation] * (held_out if evaluation == "held_out" else 20)
