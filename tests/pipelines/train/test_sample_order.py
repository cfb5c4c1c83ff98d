from collections import Counter
from itertools import pairwise

import pytest

from pipelines.train.sample_order import RowGroup, SampleLocation, SampleOrder, share_of, slots_per_worker

SIZES = {(32, 32): (5, 3, 8, 2, 7), (48, 32): (4, 4, 1), (32, 48): (2,)}
ROWS, BATCH = 36, 4
STEPS = 7 + 3 + 1  # of an epoch: 25, 9 and 2 rows


def order(sizes=SIZES, seed=0, window=2, folder="") -> SampleOrder:
    groups = [
        RowGroup(f"{folder}{width}x{height}-{i}", "", f"{folder}text-{i}", 0, rows, (width, height))
        for (width, height), counts in sizes.items()
        for i, rows in enumerate(counts)
    ]
    return SampleOrder(groups, seed, window)


def names(locations: list[SampleLocation]) -> list[tuple[str, int]]:
    return [(location.group.curated, location.row) for location in locations]


def epoch_of(sequence: SampleOrder, epoch: int, batch: int = BATCH) -> list[list[SampleLocation]]:
    steps = sequence.steps_per_epoch(batch)
    return [sequence.batch_at(epoch * steps + i, batch) for i in range(steps)]


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 25, 100])
@pytest.mark.parametrize("window", [1, 2, 3, 64])
def test_an_epoch_holds_every_row_once_and_a_batch_one_size(batch, window):
    sequence = order(window=window)
    for epoch in (0, 3):
        batches = epoch_of(sequence, epoch, batch)
        rows = [name for locations in batches for name in names(locations)]
        assert len(rows) == len(set(rows)) == ROWS
        sizes = [{location.group.size for location in locations} for locations in batches]
        assert all(len(size) == 1 for size in sizes)
        assert Counter(s for (s,) in sizes) == {s: -(-sum(counts) // batch) for s, counts in SIZES.items()}
        smaller = [locations[0].group.size for locations in batches if len(locations) < batch]
        assert len(smaller) == len(set(smaller))  # a bucket has one remainder at most


def test_steps_of_an_epoch():
    assert order().steps_per_epoch(BATCH) == STEPS


def test_epochs_differ_in_their_rows_and_in_the_order_of_sizes():
    first, second = epoch_of(order(), 0), epoch_of(order(), 1)
    assert [names(locations) for locations in first] != [names(locations) for locations in second]
    sizes = [[locations[0].group.size for locations in epoch] for epoch in (first, second)]
    assert sizes[0] != sizes[1]
    assert any(a != b for a, b in pairwise(sizes[0][:-1]))


@pytest.mark.parametrize("step", [0, 1, 7, STEPS - 1, STEPS, 30])
def test_starting_anywhere_gives_the_sequence_from_there(step):
    whole = [order().batch_at(s, BATCH) for s in range(45)]
    sequence = order()
    assert [sequence.batch_at(s, BATCH) for s in range(step, 45)] == whole[step:]


def test_a_step_far_away_is_reached_as_well():
    assert len(order().batch_at(10**12, BATCH)) <= BATCH


def test_order_depends_on_the_seed_alone():
    ours, same, other = (names(order(seed=seed).batch_at(2, BATCH)) for seed in (1, 1, 2))
    assert ours == same != other


def test_order_does_not_depend_on_paths():
    here, there = ([names(p) for p in epoch_of(order(folder=folder), 1)] for folder in ("here/", "there/"))
    assert [[(n.removeprefix("here/"), r) for n, r in p] for p in here] == [
        [(n.removeprefix("there/"), r) for n, r in p] for p in there
    ]


def test_numbers_are_those_of_the_epoch_each_once():
    for epoch in (0, 2):
        numbers = [location.number for locations in epoch_of(order(), epoch) for location in locations]
        assert sorted(numbers) == list(range(epoch * ROWS, (epoch + 1) * ROWS))


def test_the_size_of_a_batch_changes_no_samples_number():
    small, large = ({p.number: names([p]) for b in epoch_of(order(), 1, n) for p in b} for n in (3, 100))
    assert small == large


def test_a_batch_has_rows_of_every_group_of_its_window():
    sequence = order({(32, 32): (16,) * 8}, window=4)
    for locations in epoch_of(sequence, 0, 8):
        assert sorted(Counter(location.group for location in locations).values()) == [2, 2, 2, 2]


def test_no_row_groups_is_an_error():
    with pytest.raises(ValueError, match="no row groups to train on: curate images"):
        SampleOrder([], 0, 2)


@pytest.mark.parametrize(
    ("batch", "workers", "micro_batch", "slots"),
    [(8, 1, 8, 8), (8, 2, 2, 4), (8, 3, 3, 3), (8, 3, 2, 4), (5, 8, 1, 1), (256, 7, 5, 40)],
)
def test_slots_are_the_share_in_whole_micro_batches(batch, workers, micro_batch, slots):
    assert slots_per_worker(batch, workers, micro_batch) == slots


@pytest.mark.parametrize("workers", [1, 2, 3, 32])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_workers_share_a_batch_whatever_their_number(workers, micro_batch):
    sequence, slots = order(), slots_per_worker(BATCH, workers, micro_batch)
    for locations in epoch_of(sequence, 0):
        shares = [share_of(locations, rank, workers, slots) for rank in range(workers)]
        filled = [[(share.locations[i], real) for i, real in share.fill()] for share in shares]
        assert {len(slots_of) for slots_of in filled} == {slots}
        real = [location.number for slots_of in filled for location, real in slots_of if real]
        assert sorted(real) == [location.number for location in locations]
        assert all(location in locations for slots_of in filled for location, _ in slots_of)


@pytest.mark.parametrize("batch", [256, 250, 96, 64])
def test_a_worker_reads_few_row_groups_of_others(batch):
    """Three windows, some with short groups at the ends of files; batches that reach into the next window."""
    workers, window, groups = 8, 64, 192
    sequence = order({(32, 32): tuple(40 if i % 16 == 0 else 64 for i in range(groups))}, window=window)
    slots, batches = slots_per_worker(batch, workers, 1), epoch_of(sequence, 0, batch)
    read = [
        {
            (location.window, location.group)
            for locations in batches
            for location in share_of(locations, rank, workers, slots).locations
        }
        for rank in range(workers)
    ]
    assert max(map(len, read)) <= 1.4 * groups / workers
    assert sum(map(len, read)) <= 1.2 * groups
