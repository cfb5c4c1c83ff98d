from itertools import islice

import pytest
import ray
import torch

from pipelines.artifacts import Artifact
from pipelines.embeddings import RemoteText, StoredText, TextSource, text_actors
from pipelines.encode import load_unconditional
from pipelines.finetune.batches import Batch, BatchReader, NoiseSettings, RowGroup, SampleOrder, list_row_groups
from pipelines.shards import ModelWorkers


def order(rows=(5, 3, 8, 2, 7), seed=0, window=2, folder="") -> SampleOrder:
    groups = [RowGroup(f"{folder}c{i}", f"{folder}l{i}", f"{folder}t{i}", 0, n) for i, n in enumerate(rows)]
    return SampleOrder(groups, seed, window)


def names(places) -> list[tuple[str, int]]:
    return [(place.group.curated, place.row) for place in places]


def test_an_epoch_holds_every_row_once_and_the_next_another_order():
    sequence = order()
    first, second = (names(islice(sequence.from_number(e * sequence.rows), sequence.rows)) for e in (0, 1))
    assert len(set(first)) == sequence.rows and sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("start", [0, 1, 7, 24, 25, 26, 60])
def test_starting_anywhere_gives_the_sequence_from_there(start):
    sequence = order()
    whole = list(islice(sequence.from_number(0), 90))
    assert list(islice(sequence.from_number(start), 90 - start)) == whole[start:]


def test_the_seed_and_nothing_else_decides():
    assert names(islice(order(seed=1).from_number(0), 25)) == names(islice(order(seed=1).from_number(0), 25))
    assert names(islice(order(seed=1).from_number(0), 25)) != names(islice(order(seed=2).from_number(0), 25))


def test_where_the_files_lie_does_not_matter():
    here, there = (names(islice(order(folder=f).from_number(0), 50)) for f in ("here/", "there/"))
    assert [(name.removeprefix("here/"), row) for name, row in here] == [
        (name.removeprefix("there/"), row) for name, row in there
    ]


def reader(outcomes, rank: int, workers: int, dropout: float = 0.0, text: TextSource | None = None) -> BatchReader:
    curated, encoded = outcomes["curate"].artifact, outcomes["encode"].artifact
    groups = list_row_groups(
        curated.files("train", ".parquet"),
        encoded.files("latents/train", ".parquet"),
        encoded.files("text/train", ".parquet"),
    )
    noise, unconditional = NoiseSettings(0.0, 1.0, 3.0, dropout), load_unconditional(encoded)
    return BatchReader(SampleOrder(groups, 0, 2), 8, rank, workers, text or StoredText(), unconditional, noise)


@pytest.mark.ray
def test_a_global_batch_does_not_depend_on_workers_or_micro_batches(tiny_workflow):
    outcomes = tiny_workflow[2]
    whole = next(reader(outcomes, 0, 1).from_step(3, 8))[0]
    parts = [b for rank in (0, 1) for b in next(reader(outcomes, rank, 2).from_step(3, 2))]
    assert len(parts) == 4
    for name in ("images", "z_0", "noise", "sigma"):
        assert torch.equal(torch.cat([getattr(b, name) for b in parts]), getattr(whole, name))
    texts = [e[mask] for b in parts for e, mask in zip(b.text, b.text_mask, strict=True)]
    expected = [e[mask] for e, mask in zip(whole.text, whole.text_mask, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(texts, expected, strict=True))
    assert (whole.sigma > 0).all() and (whole.sigma < 1).all()


@pytest.mark.ray
def test_starting_anywhere_gives_the_batches_from_there(tiny_workflow):
    earlier = next(islice(reader(tiny_workflow[2], 0, 1).from_step(0, 8), 30, None))
    later = next(reader(tiny_workflow[2], 0, 1).from_step(30, 8))
    assert_same(earlier, later)


@pytest.mark.ray
def test_dropped_captions_become_the_empty_one(tiny_workflow):
    empty = load_unconditional(tiny_workflow[2]["encode"].artifact).float()
    batch = next(reader(tiny_workflow[2], 0, 1, dropout=1.0).from_step(0, 8))[0]
    assert torch.equal(batch.text, empty.expand(8, -1, -1)) and batch.text_mask.all()


def assert_same(ours: list[Batch], theirs: list[Batch], text_tolerance: float = 0) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for name, value in vars(a).items():
            tolerance = text_tolerance if name == "text" else 0
            torch.testing.assert_close(value, vars(b)[name], rtol=tolerance, atol=tolerance / 10)


@pytest.mark.ray
def test_text_encoded_on_the_fly_gives_the_same_batches_though_its_actors_die(tiny_workflow, tiny_base):
    """An encode artifact that stores embeddings holds the captions too: here they are encoded anew, one at a time, so
    that the last bit of bfloat16 may differ."""
    outcomes = tiny_workflow[2]
    encoded = outcomes["encode"].artifact
    manifest = {**encoded.manifest, "config": {**encoded.manifest["config"], "text": "on_the_fly"}}
    captions_only = Artifact(encoded.uri, manifest)
    stored = reader(outcomes, 1, 2, dropout=0.3).from_step(5, 2)
    with text_actors(captions_only, str(tiny_base), ModelWorkers(workers=2), restarts=1) as actors:
        source = RemoteText(actors, first=1)
        encoding = reader(outcomes, 1, 2, dropout=0.3, text=source).from_step(5, 2)
        assert_same(next(encoding), next(stored), text_tolerance=2**-7)
        for actor in actors:
            ray.kill(actor, no_restart=False)
        for _ in range(3):
            assert_same(next(encoding), next(stored), text_tolerance=2**-7)
        for actor in actors:
            ray.kill(actor, no_restart=False)
        with pytest.raises(ray.exceptions.ActorDiedError):  # restarted too often
            list(islice(encoding, 3))


@pytest.mark.ray
def test_embeddings_are_asked_for_a_step_ahead(tiny_workflow):
    class Recorded(StoredText):
        asked = 0

        def ask(self, row):
            self.asked += 1
            return super().ask(row)

    source = Recorded()
    batches = reader(tiny_workflow[2], 0, 2, text=source).from_step(0, 4)
    for step in (1, 2, 3):
        next(batches)
        assert source.asked == 4 * (step + 1)


@pytest.mark.ray
def test_where_embeddings_are_stored_no_actor_starts(tiny_workflow, tiny_base):
    encoded = tiny_workflow[2]["encode"].artifact
    with text_actors(encoded, str(tiny_base), ModelWorkers(workers=2), restarts=1) as actors:
        assert actors == []


@pytest.mark.ray
def test_files_that_do_not_match_row_for_row_are_refused(tiny_workflow):
    curated, encoded = (tiny_workflow[2][name].artifact for name in ("curate", "encode"))
    train, latents = curated.files("train", ".parquet"), encoded.files("latents/train", ".parquet")
    for text in (curated.files("held_out", ".parquet"), encoded.files("text/held_out", ".parquet")):
        with pytest.raises(ValueError, match="other rows"):
            list_row_groups(train, latents, text)
