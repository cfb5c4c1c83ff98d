"""Batches from small files of two sizes, as the curate and encode steps write them; latents and text are random."""

import gc
import random
import threading
import time
import zlib
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image

from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.workers import ModelWorkers
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter, read_rows
from pipelines.data.embeddings import (
    EncodedLatents,
    EncodedText,
    RemoteLatents,
    RemoteText,
    Source,
    StoredLatents,
    StoredText,
    are_latents_stored,
    latent_actors,
    text_actors,
)
from pipelines.data.encode import CAPTION, KEY, write_tables
from pipelines.data.images import encode_png
from pipelines.data.tensors import ragged_field, tensor_field, to_ragged_array, to_tensor_array
from pipelines.train import row_groups as rows_module
from pipelines.train.finetune.batches import Batch, BatchLoader, NoiseSettings
from pipelines.train.row_groups import list_row_groups, read_columns
from pipelines.train.sample_order import SampleOrder

SIZES = {"32x32-00000": 22, "32x32-00001": 13, "48x32-00000": 11}  # rows; 46
ROWS, GROUP, BATCH = 46, 4, 6
STEPS = 6 + 2  # of an epoch: 35 and 11 rows
UNCONDITIONAL = torch.full((2, 8), 0.5).bfloat16()


def write_curated(file: Path, rows: int, width: int, height: int) -> None:
    with RowWriter(file, SCHEMA, GROUP) as writer:
        for i in range(rows):
            noise = random.Random(f"{file.stem} {i}").randbytes(3 * width * height)
            image = encode_png(Image.frombytes("RGB", (width, height), noise))
            caption = " ".join(["picture", str(i), "again"][: 1 + i % 3])
            key = f"{file.stem}-{i}"
            writer.add({"key": key, "image": image, "caption": caption, "width": width, "height": height})


def write_encoded(curated: Path, latents: Path, text: Path) -> None:
    """Write random latents and embeddings, row group by row group."""
    generator = torch.Generator().manual_seed(zlib.crc32(curated.name.encode()))
    schema_of_text = pa.schema([KEY, CAPTION, ragged_field("text", 8)])
    tables: tuple[list, list] = [], []
    for group in read_rows(str(curated), ["key", "caption", "width", "height"]):
        keys, tokens = group["key"], group["width"][0] * group["height"][0] // 256
        z_0 = torch.randn(len(keys), tokens, 128, generator=generator)
        tables[0].append(
            pa.table([keys, to_tensor_array(z_0)], schema=pa.schema([KEY, tensor_field("latents", z_0.shape[1:])]))
        )
        embeddings = [torch.randn(len(c.split()), 8, generator=generator) for c in group["caption"]]
        tables[1].append(pa.table([keys, group["caption"], to_ragged_array(embeddings)], schema=schema_of_text))
    write_tables(str(latents), iter(tables[0]))
    write_tables(str(text), iter(tables[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in SIZES.items():
        files = [folder / kind / f"{name}.parquet" for kind in ("curated", "latents", "text")]
        files[0].parent.mkdir(exist_ok=True)
        width, height = map(int, name.partition("-")[0].split("x"))
        write_curated(files[0], rows, width, height)
        write_encoded(*files)
    return folder


def files_in(folder: Path, kind: str) -> list[str]:
    return storage.list_files(str(folder / kind), ".parquet")


def loader(
    folder: Path,
    rank: int = 0,
    workers: int = 1,
    text: Source | None = None,
    latents: Source | None = None,
    dropout: float = 0.0,
    **options,
) -> BatchLoader:
    groups = list_row_groups(*(files_in(folder, kind) for kind in ("curated", "latents", "text")))
    sources, noise = (text or StoredText(), latents or StoredLatents()), NoiseSettings(0.0, 1.0, 3.0, dropout)
    return BatchLoader(SampleOrder(groups, 0, 2), BATCH, rank, workers, *sources, UNCONDITIONAL, noise, **options)


def steps(loader: BatchLoader, first: int, count: int, micro_batch: int = BATCH) -> list[list[Batch]]:
    return list(islice(loader.from_step(first, micro_batch), count))


def samples(batches: list[Batch]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the data of each key with weight, without padding of text."""
    found = {}
    for batch in batches:
        for i, key in enumerate(batch.keys):
            if batch.weight[i]:
                assert key not in found
                found[key] = {n: getattr(batch, n)[i] for n in ("images", "z_0", "noise", "sigma", "key_sums")}
                found[key]["text"] = batch.text[i][batch.text_mask[i]]
    return found


def assert_same(ours: list[Batch], theirs: list[Batch], text: float = 0, z_0: float = 0) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys == b.keys
        for name in ("images", "z_0", "text", "text_mask", "noise", "sigma", "weight", "key_sums"):
            tolerance = {"text": text, "z_0": z_0}.get(name, 0)
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance)


def test_row_groups_know_the_size_of_their_images(folder):
    groups = list_row_groups(*(files_in(folder, kind) for kind in ("curated", "latents", "text")))
    assert Counter((g.size, g.rows) for g in groups) == {
        ((32, 32), 4): 8, ((32, 32), 2): 1, ((32, 32), 1): 1, ((48, 32), 4): 2, ((48, 32), 3): 1
    }  # fmt: skip


def test_an_epoch_has_every_image_once_with_its_latents_and_text(folder):
    batches = steps(loader(folder), 0, STEPS)
    assert all(len(step) == 1 and len(step[0].keys) == BATCH for step in batches)
    assert {tuple(b.images.shape[2:]) for (b,) in batches} == {(32, 32), (32, 48)}
    seen = samples([b for step in batches for b in step])
    written = {key for file in files_in(folder, "curated") for g in read_rows(file, ["key"]) for key in g["key"]}
    assert seen.keys() == written and len(written) == ROWS
    sums = sum(float(b.key_sums.sum()) for step in batches for b in step)
    assert sums == sum(zlib.crc32(key.encode()) for key in written)
    for group in list_row_groups(*(files_in(folder, kind) for kind in ("curated", "latents", "text"))):
        rows = read_columns(group, ("latents", "text", "image"))
        for key, z_0, text in zip(rows["key"], rows["latents"], rows["text"], strict=True):
            assert torch.equal(seen[key]["z_0"], z_0.float()) and torch.equal(seen[key]["text"], text.float())
    assert all(0 < s["sigma"] < 1 for s in seen.values())


@pytest.mark.parametrize(("workers", "micro_batch"), [(1, 2), (1, 4), (2, 3), (2, 2), (3, 1), (4, 1), (32, 1)])
def test_a_global_batch_does_not_depend_on_workers_or_micro_batches(folder, workers, micro_batch):
    """A whole batch and the last one of a bucket; the weighted sum of losses is the same too."""
    whole = loader(folder).from_step(0, BATCH)
    parts = [loader(folder, rank, workers).from_step(0, micro_batch) for rank in range(workers)]
    sizes = set()
    for _ in range(STEPS):
        (expected,), split = next(whole), [b for part in parts for b in next(part)]
        assert all(len(batch.keys) == micro_batch for batch in split)
        ours, theirs = samples(split), samples([expected])
        assert ours.keys() == theirs.keys()
        for key, values in theirs.items():
            assert all(torch.equal(values[name], ours[key][name]) for name in values)
        sizes.add(len(theirs))
        weighted = torch.cat([batch.weight * batch.images.mean((1, 2, 3)) for batch in split]).mean()
        losses = torch.stack([sample["images"].mean() for sample in theirs.values()])
        torch.testing.assert_close(weighted, losses.sum() / BATCH)
        assert sum(float(b.key_sums.sum()) for b in split) == float(expected.key_sums.sum())
    assert sizes == {BATCH, 35 % BATCH} == {6, 5}


@pytest.mark.parametrize("first", [1, STEPS - 1, 11])
def test_starting_anywhere_gives_the_batches_from_there(folder, first):
    whole = steps(loader(folder, 1, 2), 0, first + 3, micro_batch=2)
    for ours, theirs in zip(steps(loader(folder, 1, 2), first, 3, micro_batch=2), whole[first:], strict=True):
        assert_same(ours, theirs)


def test_a_sample_gets_other_noise_in_the_next_epoch(folder):
    first, second = (samples([b for s in steps(loader(folder), e * STEPS, STEPS) for b in s]) for e in (0, 1))
    assert not any(torch.equal(first[key]["noise"], second[key]["noise"]) for key in first)


def test_dropped_captions_become_the_empty_one(folder):
    batch = next(loader(folder, dropout=1.0).from_step(0, BATCH))[0]
    assert torch.equal(batch.text, UNCONDITIONAL.float().expand(BATCH, -1, -1)) and batch.text_mask.all()


def test_a_batch_goes_to_a_device_whole(folder):
    batch = next(loader(folder).from_step(0, BATCH))[0]
    there = batch.to(torch.device("meta"))
    assert there.keys == batch.keys and {t.device.type for t in vars(there).values() if torch.is_tensor(t)} == {"meta"}


def test_each_row_group_is_read_once_an_epoch_and_not_by_every_worker(folder, monkeypatch):
    read: Counter[tuple[str, int]] = Counter()
    original = rows_module.read_columns

    def counted(group, columns):
        read[group.curated, group.group] += 1
        return original(group, columns)

    monkeypatch.setattr(rows_module, "read_columns", counted)
    steps(loader(folder, ahead=2), 0, STEPS - 4)
    assert set(read.values()) == {1}
    read.clear()
    for rank in (0, 1):
        steps(loader(folder, rank, 2, ahead=1), 0, STEPS - 4)
    assert sum(read.values()) < 1.6 * len(read)


def background() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("rows", "batches"))]


def assert_background_ends() -> None:
    deadline = time.monotonic() + 10
    while background():
        assert time.monotonic() < deadline, background()
        time.sleep(0.01)


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_the_background_ends_with_the_iterator(folder, taken, end):
    batches = loader(folder).from_step(0, BATCH)
    assert len(list(islice(batches, taken))) == taken and bool(background()) == bool(taken)
    if end == "closed":
        batches.close()
    del batches
    gc.collect()
    assert_background_ends()


def test_the_next_step_is_made_while_one_is_trained_on(folder):
    slow = loader(folder)
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


def test_embeddings_and_latents_are_requested_two_steps_ahead(folder):
    class CountingSource:
        def __init__(self, column):
            self.column, self.requests = column, 0

        def request(self, values):
            self.requests += 1
            return lambda: values

    sources = CountingSource("text"), CountingSource("latents")
    batches = loader(folder, 0, 2, *sources).from_step(0, 1)
    for step in (1, 2, 3):
        next(batches)
        time.sleep(0.2)
        assert [source.requests for source in sources] == [step + 2] * 2


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
def test_a_damaged_image_is_an_error_at_its_step_that_names_file_and_key(folder, tmp_path, change, message):
    copy, step = damaged(folder, tmp_path, change)
    batches = loader(copy).from_step(0, BATCH)
    assert len(list(islice(batches, step))) == step
    with pytest.raises(ValueError, match=f"{copy}/curated/32x32-00000.parquet: .*{message}.*curate again"):
        next(batches)
    assert_background_ends()


def test_read_errors_are_raised_at_their_step(folder, tmp_path):
    """The 48x32 file is deleted after its footer was read."""
    for kind in ("latents", "text"):
        (tmp_path / kind).symlink_to(folder / kind)
    (tmp_path / "curated").mkdir()
    for file in files_in(folder, "curated"):
        (tmp_path / "curated" / Path(file).name).write_bytes(Path(file).read_bytes())
    step = next(i for i, (b,) in enumerate(steps(loader(folder), 0, STEPS)) if b.images.shape[3] == 48)
    ours = loader(tmp_path)
    (tmp_path / "curated" / "48x32-00000.parquet").unlink()
    batches = ours.from_step(0, BATCH)
    assert len(list(islice(batches, step))) == step
    with pytest.raises(FileNotFoundError, match="48x32-00000.parquet"):
        next(batches)
    assert_background_ends()


def test_files_that_do_not_match_row_for_row_are_refused(folder, tmp_path):
    curated, latents, text = (files_in(folder, kind) for kind in ("curated", "latents", "text"))
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
def test_missing_columns_are_named(folder, tmp_path, column, file):
    bare = tmp_path / "bare" / "32x32-00000.parquet"
    bare.parent.mkdir()
    table = pq.read_table(folder / "text" / bare.name)
    pq.write_table(table.drop_columns(["text"]), bare, row_group_size=GROUP)
    (group, *_) = list_row_groups(files_in(folder, "curated")[:1], [], [str(bare)])
    with pytest.raises(ValueError, match=f"{file}.parquet: no {column} stored; encode"):
        read_columns(group, ("image", column))


def encode_artifact(folder: Path, text: str = "on_the_fly", latents: str = "on_the_fly") -> Artifact:
    return Artifact(str(folder), {"config": {"text": text, "latents": latents, "max_text_tokens": 512}})


@pytest.mark.ray
@pytest.mark.slow
def test_batches_on_the_fly_equal_stored_ones_despite_lost_actors(folder, tiny_base, local_ray):
    """The expected values are encoded here, one row at a time: the last bit of bfloat16 may differ."""
    encoded, pool, base = encode_artifact(folder), ModelWorkers(workers=1), str(tiny_base)
    text, latents = EncodedText(base, "cpu", 512), EncodedLatents(base, "cpu")
    here = loader(folder, 1, 2, text, latents).from_step(5, 2)
    same = partial(assert_same, text=2**-6, z_0=2**-6)
    with text_actors(encoded, base, pool, 1) as embedders, latent_actors(encoded, base, pool, 1) as encoders:
        there = loader(folder, 1, 2, RemoteText(embedders, first=1), RemoteLatents(encoders, first=1)).from_step(5, 2)
        same(next(there), next(here))
        for actor in (*embedders, *encoders):
            ray.kill(actor, no_restart=False)
        for _ in range(4):
            same(next(there), next(here))
        for actor in encoders:
            ray.kill(actor, no_restart=False)
        with pytest.raises(ray.exceptions.ActorDiedError):  # restarted too often
            list(islice(there, 4))
    here.close()
    assert_background_ends()


@pytest.mark.ray
def test_each_actor_gets_one_request_per_step(local_ray):
    class Actor:
        def __init__(self):
            self.encode, self.requests = self, []

        def remote(self, values):
            self.requests.append(values)
            return ray.put(list(values))

    actors = [Actor() for _ in range(3)]
    source = RemoteLatents(actors, first=1)
    assert source.request([1, 2, 3, 4, 5])() == [1, 2, 3, 4, 5]
    assert [actor.requests for actor in actors] == [[[5]], [[1, 2]], [[3, 4]]]


def test_stored_tensors_start_no_actor(folder, tiny_base):
    stored, pool = encode_artifact(folder, "stored", "stored"), ModelWorkers(workers=2)
    with text_actors(stored, str(tiny_base), pool, 1) as embedders, latent_actors(stored, "", pool, 1) as encoders:
        assert embedders == encoders == []
    assert are_latents_stored(stored) and not are_latents_stored(encode_artifact(folder))
