from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_files import GROUP, files_in, write_curated

from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter
from pipelines.train.row_groups import list_row_groups, read_columns


def test_row_groups_know_the_size_of_their_images(training_files):
    groups = list_row_groups(*(files_in(training_files, kind) for kind in ("curated", "latents", "text")))
    assert Counter((g.size, g.rows) for g in groups) == {
        ((32, 32), 4): 8, ((32, 32), 2): 1, ((32, 32), 1): 1, ((48, 32), 4): 2, ((48, 32), 3): 1
    }  # fmt: skip


def test_files_that_do_not_match_row_for_row_are_refused(training_files, tmp_path):
    curated, latents, text = (files_in(training_files, kind) for kind in ("curated", "latents", "text"))
    for others in ((latents[::-1], text), (latents, text[::-1]), ([], text[::-1])):
        with pytest.raises(ValueError, match="do not have the same rows; encode curated again"):
            list_row_groups(curated, *others)
    write_curated(tmp_path / "another.parquet", 22, 32, 32)
    (group, *_) = list_row_groups([str(tmp_path / "another.parquet")], latents[:1], text[:1])
    with pytest.raises(ValueError, match="its rows differ from"):
        read_columns(group, ("image", "latents"))


def test_row_groups_of_several_sizes_are_refused(tmp_path):
    with RowWriter(tmp_path / "mixed.parquet", SCHEMA) as writer:
        for width in (32, 48):
            writer.add({"key": str(width), "image": b"", "caption": "", "width": width, "height": 32})
    with pytest.raises(ValueError, match="mixed.parquet: row group 0 has images of several sizes.*curate again"):
        list_row_groups([str(tmp_path / "mixed.parquet")], [], [str(tmp_path / "mixed.parquet")])
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match="bare.parquet: its footer has no image sizes"):
        list_row_groups([str(tmp_path / "bare.parquet")], [], [str(tmp_path / "bare.parquet")])


@pytest.mark.parametrize(("column", "file"), [("latents", "curated/32x32-00000"), ("text", "bare/32x32-00000")])
def test_missing_columns_are_named(training_files, tmp_path, column, file):
    bare = tmp_path / "bare" / "32x32-00000.parquet"
    bare.parent.mkdir()
    table = pq.read_table(training_files / "text" / bare.name)
    pq.write_table(table.drop_columns(["text"]), bare, row_group_size=GROUP)
    (group, *_) = list_row_groups(files_in(training_files, "curated")[:1], [], [str(bare)])
    with pytest.raises(ValueError, match=f"{file}.parquet: no {column} stored; encode"):
        read_columns(group, ("image", column))
