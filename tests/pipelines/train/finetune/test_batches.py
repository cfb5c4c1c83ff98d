"""Batches from small files of two sizes, as the curate and encode steps write them; latents and text are random."""

import time
import zlib
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import ray
import torch
from training_files import (
    BATCH,
    ROWS,
    STEPS,
    UNCONDITIONAL,
    assert_background_ends,
    files_in,
    loader,
    random_image,
    steps,
)

from pipelines.core.artifacts import Artifact
from pipelines.core.workers import ModelWorkers
from pipelines.data.datasets import decode_batch, read_rows
from pipelines.data.embeddings import EncodedLatents, EncodedText, RemoteLatents, RemoteText, latent_actors, text_actors
from pipelines.train import row_groups as rows_module
from pipelines.train.finetune.batches import Batch, decode_references
from pipelines.train.row_groups import list_row_groups, read_columns


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


def test_an_epoch_has_every_image_once_with_its_latents_and_text(training_files):
    batches = steps(loader(training_files), 0, STEPS)
    assert all(len(step) == 1 and len(step[0].keys) == BATCH for step in batches)
    assert {tuple(b.images.shape[2:]) for (b,) in batches} == {(32, 32), (32, 48)}
    seen = samples([b for step in batches for b in step])
    written = {
        key for file in files_in(training_files, "curated") for g in read_rows(file, ["key"]) for key in g["key"]
    }
    assert seen.keys() == written
    assert len(written) == ROWS
    sums = sum(float(b.key_sums.sum()) for step in batches for b in step)
    assert sums == sum(zlib.crc32(key.encode()) for key in written)
    for group in list_row_groups(*(files_in(training_files, kind) for kind in ("curated", "latents", "text"))):
        rows = read_columns(group, ("latents", "text", "image"))
        for key, z_0, text in zip(rows["key"], rows["latents"], rows["text"], strict=True):
            assert torch.equal(seen[key]["z_0"], z_0.float())
            assert torch.equal(seen[key]["text"], text.float())
    assert all(0 < s["sigma"] < 1 for s in seen.values())


@pytest.mark.parametrize(("workers", "micro_batch"), [(1, 2), (1, 4), (2, 3), (2, 2), (3, 1), (4, 1), (32, 1)])
def test_a_global_batch_does_not_depend_on_workers_or_micro_batches(training_files, workers, micro_batch):
    """A whole batch and the last one of a bucket; the weighted sum of losses is the same too."""
    whole = loader(training_files).from_step(0, BATCH)
    parts = [loader(training_files, rank, workers).from_step(0, micro_batch) for rank in range(workers)]
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
def test_starting_anywhere_gives_the_batches_from_there(training_files, first):
    whole = steps(loader(training_files, 1, 2), 0, first + 3, micro_batch=2)
    for ours, theirs in zip(steps(loader(training_files, 1, 2), first, 3, micro_batch=2), whole[first:], strict=True):
        assert_same(ours, theirs)


def test_a_sample_gets_other_noise_in_the_next_epoch(training_files):
    first, second = (samples([b for s in steps(loader(training_files), e * STEPS, STEPS) for b in s]) for e in (0, 1))
    assert not any(torch.equal(first[key]["noise"], second[key]["noise"]) for key in first)


def test_dropped_captions_become_the_empty_one(training_files):
    batch = next(loader(training_files, dropout=1.0).from_step(0, BATCH))[0]
    assert torch.equal(batch.text, UNCONDITIONAL.float().expand(BATCH, -1, -1))
    assert batch.text_mask.all()


def test_a_batch_goes_to_a_device_whole(training_files):
    batch = next(loader(training_files).from_step(0, BATCH))[0]
    there = batch.to(torch.device("meta"))
    assert there.keys == batch.keys
    assert {t.device.type for t in vars(there).values() if torch.is_tensor(t)} == {"meta"}


def test_each_row_group_is_read_once_an_epoch_and_not_by_every_worker(training_files, monkeypatch):
    read: Counter[tuple[str, int]] = Counter()
    original = rows_module.read_columns

    def counted(group, columns):
        read[group.curated, group.group] += 1
        return original(group, columns)

    monkeypatch.setattr(rows_module, "read_columns", counted)
    steps(loader(training_files, ahead=2), 0, STEPS - 4)
    assert set(read.values()) == {1}
    read.clear()
    for rank in (0, 1):
        steps(loader(training_files, rank, 2, ahead=1), 0, STEPS - 4)
    assert sum(read.values()) < 1.6 * len(read)


def test_embeddings_and_latents_are_requested_two_steps_ahead(training_files):
    class CountingSource:
        def __init__(self, column):
            self.column, self.reference_column, self.requests = column, "reference_latents", 0

        def request(self, values):
            self.requests += 1
            return lambda: values

    sources = CountingSource("text"), CountingSource("latents")
    batches = loader(training_files, 0, 2, *sources).from_step(0, 1)
    for step in (1, 2, 3):
        next(batches)
        time.sleep(0.2)
        assert [source.requests for source in sources] == [step + 2] * 2


@pytest.mark.parametrize("edit_share", [None, 0.5])
@pytest.mark.parametrize("workers", [1, 2])
def test_edits_have_their_references_and_no_padding(mixed_files, edit_share, workers):
    """The stored rows, whatever the number of workers; text-to-image batches have no references at all."""
    stored = {}
    for group in list_row_groups(*(files_in(mixed_files, kind) for kind in ("curated", "latents", "text"))):
        rows = read_columns(group, ("image", "references", "reference_latents"))
        for i, key in enumerate(rows["key"]):
            given = (rows["references"][i], rows["reference_latents"][i]) if group.references else None
            stored[key] = given and (decode_batch(given[0]), given[1].float())
    parts = [loader(mixed_files, rank, workers, edit_share=edit_share).from_step(0, 2) for rank in range(workers)]
    numbers = Counter()
    for _ in range(8):
        batches = [batch for part in parts for batch in next(part)]
        (references,) = {0 if batch.references is None else batch.references.shape[1] for batch in batches}
        numbers[references] += 1
        for batch in batches:
            assert ("references" in batch.inputs()) == ("reference_latents" in batch.inputs()) == (references > 0)
            assert batch.tokens.reference == references * batch.tokens.image
            for i, key in enumerate(batch.keys):
                if references:
                    assert torch.equal(batch.references[i], stored[key][0])
                    assert torch.equal(batch.reference_latents[i], stored[key][1])
                else:
                    assert stored[key] is None
    assert numbers.keys() == {0, 1, 2}
    assert edit_share is None or numbers[0] == 4


def test_one_and_two_workers_have_the_same_mixture_from_any_step(mixed_files):
    whole = steps(loader(mixed_files, edit_share=0.3), 0, 9)
    parts = [steps(loader(mixed_files, rank, 2, edit_share=0.3), 4, 5, micro_batch=3) for rank in (0, 1)]
    for (expected,), *split in zip(whole[4:], *parts, strict=True):
        ours, theirs = samples([batch for part in split for batch in part]), samples([expected])
        assert ours.keys() == theirs.keys()
        for key, values in theirs.items():
            assert all(torch.equal(values[name], ours[key][name]) for name in values)


def test_references_of_other_sizes_are_an_error(mixed_files):
    data = [random_image("a", 32, 32), random_image("b", 16, 32)]
    with pytest.raises(ValueError, match="the reference images of 'x' cannot be read .*; curate again"):
        decode_references(data, "x")
    with pytest.raises(ValueError, match="the reference images of 'x' cannot be read .truncated or corrupt.*"):
        decode_references([data[0][:100]], "x")


def encode_artifact(folder: Path, text: str = "on_the_fly", latents: str = "on_the_fly") -> Artifact:
    return Artifact(str(folder), {"config": {"text": text, "latents": latents, "max_text_tokens": 512}})


@pytest.mark.ray
@pytest.mark.slow
def test_batches_on_the_fly_equal_stored_ones_despite_lost_actors(training_files, tiny_base, local_ray):
    """The expected values are encoded here, one row at a time: the last bit of bfloat16 may differ."""
    encoded, pool, base = encode_artifact(training_files), ModelWorkers(workers=1), str(tiny_base)
    text, latents = EncodedText(base, "cpu", 512), EncodedLatents(base, "cpu")
    here = loader(training_files, 1, 2, text, latents).from_step(5, 2)
    same = partial(assert_same, text=2**-6, z_0=2**-6)
    with text_actors(encoded, base, pool, 1) as embedders, latent_actors(encoded, base, pool, 1) as encoders:
        there = loader(
            training_files, 1, 2, RemoteText(embedders, first=1), RemoteLatents(encoders, first=1)
        ).from_step(5, 2)
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
