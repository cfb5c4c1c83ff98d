"""Sample order: which images a step trains on, a pure function of seed, epoch, step and batch size.

An epoch is a list of batches. A batch holds images of one bucket, that is of one size and, for edits, with one number
of reference images: N rows of a bucket make ceil(N / batch) batches, of which the last may be smaller, so that an epoch
holds every row exactly once. The batches of all buckets are mixed. Seeking to a step costs a few shuffles of lists,
however long the run, and no reading.

The row groups of a bucket are shuffled each epoch and split into windows. A window is read column by column, a row of
each of its groups and then the next of each, so that a batch has a few rows of every group. The content of a global
batch does not depend on the number of workers; but each worker takes the rows of its own groups of the window as far as
its slots allow, so that it reads its part of the window and little more.
"""

import random
from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, zip_longest
from typing import Any

REFERENCE_COLUMNS = ("references", "reference_latents")
"""Columns that only edits have: reference images, and their latents"""


@dataclass(frozen=True)
class RowGroup:
    """Rows of one parquet row group, the same in the curated file and in those of latents and of text."""

    curated: str
    latents: str
    """Empty if the latents are encoded on the fly"""
    text: str
    group: int
    rows: int
    size: tuple[int, int]
    """(width, height) of its images"""
    references: int = 0
    """Number of reference images per row"""

    @property
    def bucket(self) -> tuple[tuple[int, int], int]:
        """Return what all rows of a batch have in common: the size of the images, and the number of references."""
        return self.size, self.references

    def file_of(self, column: str) -> str:
        """Return the file that has a column; empty if no file has it."""
        files = {"latents": self.latents, "reference_latents": self.latents, "caption": self.text, "text": self.text}
        return files.get(column, self.curated)


@dataclass(frozen=True)
class SampleLocation:
    """Location of a sample in the epoch and in the files."""

    number: int
    """epoch * rows + the sample's number within the epoch: with the seed it determines the sample's noise"""
    group: RowGroup
    row: int
    window: tuple[int, int]
    """(epoch, window of the bucket); the windows of a bucket are ordered"""
    position: int
    """Index of the group in its window"""


class SampleOrder:
    """Maps a step, counted from 0, to the samples of its global batch."""

    def __init__(self, groups: list[RowGroup], seed: int, window: int):
        """Prepare the order of row groups.

        The order depends on the groups' indices in the list, not on their files' names: the same data in another
        storage gives the same run.

        Args:
            groups: row groups to train on.
            seed: seed of all shuffles.
            window: row groups that are shuffled together.

        Raises:
            ValueError: there are no groups.
        """
        if not groups:
            raise ValueError("no row groups to train on: curate images for training first")
        self.seed, self.window = seed, window
        buckets: dict[Any, list[RowGroup]] = {}
        for group in groups:
            buckets.setdefault(group.bucket, []).append(group)
        self.buckets = list(buckets.values())
        self.rows_of = [sum(g.rows for g in bucket) for bucket in self.buckets]
        self.rows = sum(self.rows_of)
        self._plan = lru_cache(2)(self._make_plan)
        self._windows = lru_cache(2 * len(self.buckets))(self._make_windows)
        self._locations = lru_cache(2 * len(self.buckets))(self._make_locations)

    def steps_per_epoch(self, batch: int) -> int:
        """Return the number of batches in an epoch."""
        return sum(-(-rows // batch) for rows in self.rows_of)

    def batch_at(self, step: int, batch: int) -> list[SampleLocation]:
        """Return the locations of a batch: at most `batch`, all of one bucket."""
        epoch, index = divmod(step, self.steps_per_epoch(batch))
        bucket, turn = self._plan(epoch, batch)[index]
        first, last = turn * batch, min((turn + 1) * batch, self.rows_of[bucket])
        starts = self._windows(epoch, bucket)[1]
        locations: list[SampleLocation] = []
        for window in range(bisect_right(starts, first) - 1, bisect_right(starts, last - 1)):
            start = starts[window]
            locations += self._locations(epoch, bucket, window)[max(0, first - start) : last - start]
        return locations

    def _make_plan(self, epoch: int, batch: int) -> list[tuple[int, int]]:
        """Return the batches of an epoch: (bucket, index among the bucket's batches)."""
        order = [bucket for bucket, rows in enumerate(self.rows_of) for _ in range(-(-rows // batch))]
        self._random(epoch).shuffle(order)
        seen: Counter[int] = Counter()
        plan = []
        for bucket in order:
            plan.append((bucket, seen[bucket]))
            seen[bucket] += 1
        return plan

    def _make_windows(self, epoch: int, bucket: int) -> tuple[list[list[RowGroup]], list[int]]:
        """Return the windows of a bucket, and the number of rows before each."""
        groups = list(self.buckets[bucket])
        self._random(epoch, bucket).shuffle(groups)
        windows = [groups[i : i + self.window] for i in range(0, len(groups), self.window)]
        sizes = (sum(g.rows for g in window) for window in windows)
        return windows, list(accumulate(sizes, initial=0))[:-1]

    def _make_locations(self, epoch: int, bucket: int, index: int) -> list[SampleLocation]:
        """Return the locations of a window, in order."""
        windows, starts = self._windows(epoch, bucket)
        window, generator = windows[index], self._random(epoch, bucket, index)
        by_group = [[(position, group, row) for row in range(group.rows)] for position, group in enumerate(window)]
        for rows in by_group:
            generator.shuffle(rows)
        first = epoch * self.rows + sum(self.rows_of[:bucket]) + starts[index]
        by_column = (item for column in zip_longest(*by_group) for item in column if item)
        return [
            SampleLocation(number, group, row, (epoch, index), position)
            for number, (position, group, row) in enumerate(by_column, first)
        ]

    def _random(self, *key: int) -> random.Random:
        return random.Random(" ".join(map(str, (self.seed, *key))))


@dataclass(frozen=True)
class Share:
    """A worker's part of a global batch.

    It has more slots than samples if the batch does not divide evenly, or is the last of its bucket: padding slots
    repeat samples with weight 0.
    """

    locations: list[SampleLocation]
    real: int
    """Number of samples that count: all, or 0 if other workers have the whole batch"""
    slots: int

    def fill(self) -> list[tuple[int, bool]]:
        """Return for each slot the index of its sample, and whether it counts."""
        return [(slot % len(self.locations), slot < self.real) for slot in range(self.slots)]


def slots_per_worker(batch: int, workers: int, micro_batch: int) -> int:
    """Return the images per worker and step: its share, rounded up to whole micro-batches."""
    share = -(-batch // workers)
    return -(-share // micro_batch) * micro_batch


def share_of(locations: list[SampleLocation], rank: int, workers: int, slots: int) -> Share:
    """Return a worker's share of a batch.

    The groups of a window are assigned to workers round-robin; rows beyond a worker's slots go to workers with free
    slots.
    """
    shares: list[list[SampleLocation]] = [[] for _ in range(workers)]
    left_over = deque[SampleLocation]()
    for location in sorted(locations, key=lambda location: location.position):
        home = shares[location.position % workers]
        (home if len(home) < slots else left_over).append(location)
    for share in shares:
        while left_over and len(share) < slots:
            share.append(left_over.popleft())
    mine = shares[rank]
    return Share(mine or [locations[rank % len(locations)]], len(mine), slots)
