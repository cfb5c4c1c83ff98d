import gc
import threading
import time
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from training_files import BATCH, GROUP, STEPS, assert_background_ends, background, files_in, loader, steps

from pipelines.data.curate.shard import SCHEMA
from pipelines.data.images import encode_png
from pipelines.train.finetune.batches import Batch


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_the_background_ends_with_the_iterator(training_files, taken, end):
    batches = loader(training_files).from_step(0, BATCH)
    assert len(list(islice(batches, taken))) == taken
    assert bool(background()) == bool(taken)
    if end == "closed":
        batches.close()
    del batches
    gc.collect()
    assert_background_ends()


def test_batches_are_pinned_in_the_background(training_files, monkeypatch):
    threads = []

    def pin(batch):
        threads.append(threading.current_thread())
        return "pinned"

    monkeypatch.setattr(Batch, "pin_memory", pin)
    batches = loader(training_files).from_step(0, 2, pinned=True)
    assert next(batches) == ["pinned"] * (BATCH // 2)
    batches.close()
    assert threads
    assert threading.main_thread() not in threads


def test_the_next_step_is_made_while_one_is_trained_on(training_files):
    slow = loader(training_files)
    make = slow._make

    def slowly(*arguments):
        time.sleep(0.2)
        return make(*arguments)

    slow._make = slowly  # type: ignore[method-assign]
    batches = slow.from_step(0, BATCH)
    next(batches)
    assert slow.waited >= 0.2
    time.sleep(0.5)
    next(batches)
    assert slow.waited < 0.1
    next(batches)
    assert 0.1 < slow.waited < 0.5


def damaged(folder: Path, tmp_path: Path, change) -> tuple[Path, int]:
    """Return a copy with a changed third image in one file, and the step of that image."""
    for kind in ("latents", "text"):
        (tmp_path / kind).symlink_to(folder / kind)
    (tmp_path / "curated").mkdir()
    for file in files_in(folder, "curated"):
        table = pq.read_table(file)
        if "32x32-00000" in file:
            rows = table.to_pylist()
            rows[2]["image"] = change(rows[2]["image"])
            table = pa.Table.from_pylist(rows, SCHEMA)
        pq.write_table(table, tmp_path / "curated" / Path(file).name, row_group_size=GROUP)
    key = "32x32-00000-2"
    return tmp_path, next(i for i, (batch,) in enumerate(steps(loader(folder), 0, STEPS)) if key in batch.keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image[: len(image) // 2], r"the image of '32x32-00000-2' is damaged \(truncated or corrupt\)"),
        (lambda image: b"no picture", r"the image of '32x32-00000-2' is damaged \(not an image\)"),
        (lambda image: encode_png(Image.new("RGB", (48, 32))), "'32x32-00000-2' is 48x32, not 32x32 as in its row"),
    ],
    ids=["cut off", "none", "another size"],
)
def test_a_damaged_image_is_an_error_at_its_step_that_names_file_and_key(training_files, tmp_path, change, message):
    copy, step = damaged(training_files, tmp_path, change)
    batches = loader(copy).from_step(0, BATCH)
    assert len(list(islice(batches, step))) == step
    with pytest.raises(ValueError, match=f"{copy}/curated/32x32-00000.parquet: .*{message}.*curate again"):
        next(batches)
    assert_background_ends()


def test_read_errors_are_raised_at_their_step(training_files, tmp_path):
    """The 48x32 file is deleted after its footer was read."""
    for kind in ("latents", "text"):
        (tmp_path / kind).symlink_to(training_files / kind)
    (tmp_path / "curated").mkdir()
    for file in files_in(training_files, "curated"):
        (tmp_path / "curated" / Path(file).name).write_bytes(Path(file).read_bytes())
    step = next(i for i, (b,) in enumerate(steps(loader(training_files), 0, STEPS)) if b.images.shape[3] == 48)
    ours = loader(tmp_path)
    (tmp_path / "curated" / "48x32-00000.parquet").unlink()
    batches = ours.from_step(0, BATCH)
    assert len(list(islice(batches, step))) == step
    with pytest.raises(FileNotFoundError, match="48x32-00000.parquet"):
        next(batches)
    assert_background_ends()
