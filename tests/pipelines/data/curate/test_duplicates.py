import numpy as np
import pytest

from pipelines.data.curate.duplicates import REASONS, Index, find_duplicates


def index(rows):
    """From (key, sha, phash, pixels)."""
    columns = list(zip(*rows, strict=True))
    return Index(*(np.array(c, np.uint64) for c in columns[:3]), np.array(columns[3], np.int64))


def found(rows, near_bits=2):
    reason, keeper = find_duplicates(index(rows), near_bits)
    return [REASONS[r] for r in reason], keeper.tolist()


def test_nothing_repeats():
    assert found([(1, 1, 0b1, 9), (2, 2, 0b1111, 9)]) == (["", ""], [-1, -1])


def test_first_of_a_key_stays():
    assert found([(1, 1, 1, 9), (1, 2, 0xFF00, 99)]) == (["", "repeated key"], [-1, 0])


def test_hash_collisions_are_not_duplicates():
    """The hashes come from the source: a column may hold one value for all."""
    rows = [(1, 7, 0, 10), (2, 7, 0xFFFF, 20), (3, 7, 0b111, 5)]
    assert found(rows, None) == (["", "", ""], [-1, -1, -1])
    assert found([*rows, (4, 7, 0xFFFE, 1)], None) == (["", "", "", "duplicate"], [-1, -1, -1, 1])


def test_largest_of_equal_files_stays_then_the_first():
    rows = [(1, 7, 1, 10), (2, 7, 1, 20), (3, 7, 1, 20)]
    assert found(rows) == (["duplicate", "", "duplicate"], [1, -1, 1])


def test_near_duplicates():
    rows = [(1, 1, 0, 10), (2, 2, 0b11, 20), (3, 3, 0b111, 5), (4, 4, 0, 5)]
    assert found(rows, 2) == (["near duplicate", "", "near duplicate", "near duplicate"], [1, -1, 1, 1])
    assert found(rows, 0) == (["", "", "", "near duplicate"], [-1, -1, -1, 0])
    assert found(rows, None) == ([""] * 4, [-1] * 4)


def test_no_chains():
    """b looks like a, c like b but not like a: with a kept and b dropped, c stays."""
    assert found([(1, 1, 0b0, 30), (2, 2, 0b11, 20), (3, 3, 0b1111, 10)]) == (["", "near duplicate", ""], [-1, 0, -1])


@pytest.mark.parametrize("near_bits", [0, 1, 3, 6])
def test_against_every_pair(near_bits):
    """Clusters of random hashes with a few bits flipped, compared by brute force in order of size."""
    rng = np.random.default_rng(near_bits)
    centres = rng.integers(0, 2**63, 40, dtype=np.uint64)
    phash = []
    for centre in np.repeat(centres, 15):
        flips = rng.choice(64, rng.integers(0, 6), replace=False)
        phash.append(int(centre) ^ sum(1 << int(b) for b in flips))
    pixels = rng.integers(1, 6, len(phash))
    rows = [(i, i, h, int(p)) for i, (h, p) in enumerate(zip(phash, pixels, strict=True))]
    kept = []
    for i in sorted(range(len(rows)), key=lambda i: (-rows[i][3], i)):
        if all((phash[i] ^ phash[j]).bit_count() > near_bits for j in kept):
            kept.append(i)
    reason, keeper = find_duplicates(index(rows), near_bits)
    assert np.flatnonzero(reason == 0).tolist() == sorted(kept)
    assert all((phash[i] ^ phash[int(keeper[i])]).bit_count() <= 2 * near_bits for i in np.flatnonzero(reason))
    assert set(keeper[reason > 0].tolist()) <= set(kept)


def test_duplicates_point_to_the_kept_image():
    rows = [(1, 5, 0b0, 10), (2, 5, 0b0, 10), (3, 6, 0b1, 50)]
    assert found(rows) == (["near duplicate", "duplicate", ""], [2, 2, -1])


def test_empty():
    reason, keeper = find_duplicates(Index(*(np.empty(0, np.uint64),) * 3, np.empty(0, np.int64)), 3)
    assert len(reason) == len(keeper) == 0
