from itertools import islice

import pytest
import torch

from pipelines.finetune.batches import BatchReader, NoiseSettings, RowGroup, SampleOrder, list_row_groups


def order(rows=(5, 3, 8, 2, 7), seed=0, window=2, folder="") -> SampleOrder:
    return SampleOrder([RowGroup(f"{folder}c{i}", f"{folder}e{i}", 0, n) for i, n in enumerate(rows)], seed, window)


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


def reader(outcomes, rank: int, workers: int, dropout: float = 0.0) -> BatchReader:
    curated = outcomes["curate"].artifact.files("train", ".parquet")
    encoded = outcomes["encode"].artifact.files("train", ".parquet")
    groups = list_row_groups(curated, encoded)
    noise = NoiseSettings(0.0, 1.0, 3.0, dropout)
    return BatchReader(SampleOrder(groups, 0, 2), 8, rank, workers, 128, torch.zeros(3, 96), noise)


@pytest.mark.ray
def test_a_global_batch_does_not_depend_on_workers_or_micro_batches(tiny_workflow):
    outcomes = tiny_workflow[2]
    whole = next(reader(outcomes, 0, 1).from_step(3, 8))[0]
    parts = [b for rank in (0, 1) for b in next(reader(outcomes, rank, 2).from_step(3, 2))]
    assert len(parts) == 4
    for name in ("images", "z_0", "noise", "sigma"):
        assert torch.equal(torch.cat([getattr(b, name) for b in parts]), getattr(whole, name))
    assert (whole.sigma > 0).all() and (whole.sigma < 1).all()


@pytest.mark.ray
def test_dropped_captions_become_the_empty_one(tiny_workflow):
    batch = next(reader(tiny_workflow[2], 0, 1, dropout=1.0).from_step(0, 8))[0]
    assert batch.text.shape == (8, 3, 96) and not batch.text.any()


@pytest.mark.ray
def test_files_that_do_not_match_row_for_row_are_refused(tiny_workflow):
    outcomes = tiny_workflow[2]
    train = outcomes["curate"].artifact.files("train", ".parquet")
    held_out = outcomes["encode"].artifact.files("held_out", ".parquet")
    with pytest.raises(ValueError, match="other rows"):
        list_row_groups(train, held_out)
