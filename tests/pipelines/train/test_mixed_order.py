from collections import Counter
from fractions import Fraction

import pytest

from pipelines.train.mixed_order import MixedOrder, make_order
from pipelines.train.sample_order import RowGroup, SampleOrder, share_of, slots_per_worker

BATCH = 4
KINDS = {((32, 32), 0): (5, 3, 8), ((48, 32), 0): (4, 3), ((32, 32), 1): (6, 6), ((32, 32), 2): (3,)}
GROUPS = [
    RowGroup(f"{size}+{references}-{i}", "", "", 0, rows, size, references)
    for (size, references), counts in KINDS.items()
    for i, rows in enumerate(counts)
]


def is_edit(locations):
    (bucket,) = {location.group.bucket for location in locations}
    return bucket[1] > 0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.7, 1.0])
def test_the_share_of_steps_holds_at_any_length(share):
    order = MixedOrder(GROUPS, 0, 2, share)
    kinds = [is_edit(order.batch_at(step, BATCH)) for step in range(200)]
    assert all(0 <= n * Fraction(str(share)) - sum(kinds[:n]) < 1 for n in range(201))


def test_each_kind_is_its_own_order_without_gaps():
    """Every row of a kind once, before any comes again."""
    order = MixedOrder(GROUPS, 3, 2, 0.3)
    for edits in (False, True):
        own = SampleOrder([g for g in GROUPS if bool(g.references) == edits], 3, 2)
        batches = [b for step in range(60) if is_edit(b := order.batch_at(step, BATCH)) == edits]
        found = [[(p.group, p.row) for p in batch] for batch in batches]
        assert found == [[(p.group, p.row) for p in own.batch_at(i, BATCH)] for i in range(len(batches))]
        rows = Counter(place for batch in found[: own.steps_per_epoch(BATCH)] for place in batch)
        assert len(rows) == own.rows
        assert set(rows.values()) == {1}


def test_no_two_samples_share_a_number():
    order = MixedOrder(GROUPS, 0, 2, 0.5)
    numbers = Counter(p.number for step in range(100) for p in order.batch_at(step, BATCH))
    assert set(numbers.values()) == {1}


@pytest.mark.parametrize("step", [0, 1, 17, 10**9])
def test_a_step_does_not_depend_on_the_steps_before(step):
    long, short = (MixedOrder(GROUPS, 1, 2, 0.3) for _ in range(2))
    expected = [long.batch_at(s, BATCH) for s in range(step, step + 9)]
    assert [short.batch_at(s, BATCH) for s in reversed(range(step, step + 9))] == expected[::-1]


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_batch_of_one_worker(workers):
    order, slots = MixedOrder(GROUPS, 0, 2, 0.5), slots_per_worker(BATCH, workers, 1)
    for step in range(30):
        locations = order.batch_at(step, BATCH)
        shares = [share_of(locations, rank, workers, slots) for rank in range(workers)]
        numbers = [share.locations[i].number for share in shares for i, real in share.fill() if real]
        assert sorted(numbers) == sorted(location.number for location in locations)


def test_an_epoch_has_all_rows():
    order = MixedOrder(GROUPS, 0, 2, 0.2)
    steps = order.steps_per_epoch(BATCH)
    seen = {(p.group, p.row) for step in range(steps) for p in order.batch_at(step, BATCH)}
    assert len(seen) == sum(group.rows for group in GROUPS)
    assert steps == 5 * (3 + 1)  # every fifth step has one of the four batches of edits


def test_without_a_share_all_rows_are_in_epochs():
    order = make_order(GROUPS, 0, 2, None)
    batches = [order.batch_at(step, BATCH) for step in range(order.steps_per_epoch(BATCH))]
    kinds = Counter(is_edit(batch) for batch in batches)
    assert kinds == {False: 4 + 2, True: 3 + 1}
    assert sum(map(len, batches)) == sum(group.rows for group in GROUPS)


@pytest.mark.parametrize(("share", "references"), [(0.5, 0), (1.0, 0), (0.5, 1)])
def test_a_kind_without_rows_is_an_error(share, references):
    groups = [group for group in GROUPS if group.references == references]
    with pytest.raises(ValueError, match="no row groups"):
        MixedOrder(groups, 0, 2, share)
