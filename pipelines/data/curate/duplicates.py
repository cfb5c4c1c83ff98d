"""Find duplicates over a whole crawl: equal files, near duplicates, and repeated values of a global key.

The index has 32 bytes per image, and comparing 3 million takes 0.9 GB.

Only images that passed the filters are compared, so that a bad copy never displaces a good one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REASONS = ("", "repeated key", "duplicate", "near duplicate")
_BITS = 64
_SAME_FILE_BITS = 8  # maximum hash distance of one file resized to two sizes; of unrelated images it is about 32


@dataclass(frozen=True)
class Index:
    """Hashes and sizes of all staged images, in the order of the crawl."""

    key_hash: NDArray[np.uint64]
    sha256: NDArray[np.uint64]
    phash: NDArray[np.uint64]
    pixels: NDArray[np.int64]
    """Number of pixels of the original, before resizing"""


def find_duplicates(index: Index, near_bits: int | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Find the rows to drop.

    Of rows with equal keys, the first is kept. Of equal files and near duplicates, the row with the most pixels is
    kept, then the first. There are no chains: a row is dropped only as a duplicate of a kept row.

    Args:
        index: Hashes and sizes of the N rows.
        near_bits: Maximum number of different bits in the perceptual hashes of near duplicates; None to skip them.

    Returns:
        Index into REASONS per row (N,), 0 for a kept row; and the kept row that each one duplicates (N,), -1 for a
        kept row.
    """
    reason = np.zeros(len(index.pixels), np.uint8)
    keeper = np.full(len(index.pixels), -1, np.int64)
    in_order = np.arange(len(index.pixels))
    _drop_equal(index.key_hash, in_order, 1, reason, keeper)
    best_first = np.lexsort((in_order, -index.pixels))
    _drop_equal(index.sha256, best_first, 2, reason, keeper, index.phash)
    if near_bits is not None:
        _drop_equal(index.phash, best_first, 3, reason, keeper)
        _drop_near(index.phash, best_first, near_bits, reason, keeper)
        _follow(reason, keeper)
    return reason, keeper


def _drop_equal(
    values: NDArray, order: NDArray, why: int, reason: NDArray, keeper: NDArray, phash: NDArray | None = None
) -> None:
    """Drop all but the first row, by `order`, of the kept rows with equal values.

    With `phash`, keep rows that do not look like the first, since file hashes come from the source and may be wrong.
    """
    order = order[reason[order] == 0]
    _, first, group = np.unique(values[order], return_index=True, return_inverse=True)
    winners = order[first][group]
    losers = winners != order
    if phash is not None:
        losers &= np.bitwise_count(phash[order] ^ phash[winners]) <= _SAME_FILE_BITS
    reason[order[losers]], keeper[order[losers]] = why, winners[losers]


def _drop_near(phash: NDArray, order: NDArray, near_bits: int, reason: NDArray, keeper: NDArray) -> None:
    """Drop near duplicates greedily, best row first.

    Hashes that differ in k bits agree in at least one of k + 1 bands, so only rows that share a band are compared.
    """
    order = order[reason[order] == 0]
    rank = np.empty(len(phash), np.int64)
    rank[order] = np.arange(len(order))
    pairs = [_near_pairs(phash, order, shift, width, near_bits) for shift, width in _bands(near_bits + 1)]
    found = np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), np.int64)
    by_loser = found[np.lexsort((rank[found[:, 0]], rank[found[:, 1]]))]
    for winner, loser in by_loser.tolist():
        if not reason[winner] and not reason[loser]:
            reason[loser], keeper[loser] = 3, winner


def _bands(count: int) -> list[tuple[int, int]]:
    """Return (first bit, number of bits) of `count` bands of almost equal width."""
    edges = [_BITS * i // count for i in range(count + 1)]
    return [(a, b - a) for a, b in zip(edges, edges[1:], strict=False)]


def _near_pairs(phash: NDArray, order: NDArray, shift: int, width: int, near_bits: int) -> NDArray[np.int64]:
    """Return pairs (better, worse) of rows in `order` that share a band and differ in at most `near_bits` bits."""
    band = (phash[order] >> np.uint64(shift)) & np.uint64(2**width - 1)
    by_band = np.argsort(band, kind="stable")
    sorted_band, rows = band[by_band], order[by_band]
    found = [np.empty((0, 2), np.int64)]
    distance = 1
    # compare all rows at once with their neighbors at distance 1, 2, ... among the rows with an equal band
    same = np.arange(len(rows) - 1)
    while len(same := same[sorted_band[same] == sorted_band[np.minimum(same + distance, len(rows) - 1)]]):
        a, b = rows[same], rows[same + distance]
        near = np.bitwise_count(phash[a] ^ phash[b]) <= near_bits
        found.append(np.stack([a[near], b[near]], axis=1))
        distance += 1
        same = same[same + distance < len(rows)]
    return np.concatenate(found)


def _follow(reason: NDArray, keeper: NDArray) -> None:
    """Make a dropped row whose keeper was dropped later point to the row that is kept."""
    lost = np.flatnonzero(reason)
    while len(lost := lost[reason[keeper[lost]] > 0]):
        keeper[lost] = keeper[keeper[lost]]
