"""Row groups of the training data: listed from the files' footers, and read in the background."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

import pyarrow.parquet as pq

from pipelines.core import storage
from pipelines.data.datasets import rows_by_group
from pipelines.data.tensors import read_group
from pipelines.train.sample_order import REFERENCE_COLUMNS, RowGroup, SampleLocation, Share

_READERS = 4  # row groups read at once
_FOOTERS = 16  # footers read at once

Rows = dict[str, Any]
"""Columns of a row group, by name"""


def list_row_groups(curated: list[str], latents: list[str], text: list[str]) -> list[RowGroup]:
    """Return the row groups of files that match row by row.

    Args:
        curated: files of the curate step.
        latents: files of latents; empty if none are stored.
        text: files of text embeddings or captions.

    Raises:
        ValueError: the files do not match, or a row group has images of several sizes.
    """
    files = list(zip(curated, latents or [""] * len(curated), text, strict=True))
    with ThreadPoolExecutor(_FOOTERS) as pool:
        return [group for groups in pool.map(lambda location: _groups_of(*location), files) for group in groups]


def _groups_of(curated: str, latents: str, text: str) -> list[RowGroup]:
    groups = _rows_and_sizes(curated)
    rows, others = [n for n, *_ in groups], [file for file in (latents, text) if file]
    if any(rows_by_group(file) != rows for file in others):
        raise ValueError(f"{', '.join([curated, *others])} do not have the same rows; encode curated again")
    return [RowGroup(curated, latents, text, i, *group) for i, group in enumerate(groups)]


def _rows_and_sizes(uri: str) -> list[tuple[int, tuple[int, int], int]]:
    """Return (rows, (width, height), references per row) of each row group of a curated file, from its footer."""
    with storage.open_file(uri) as source:
        metadata = pq.read_metadata(source)
    found = []
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        chunks = {c.path_in_schema.partition(".")[0]: c for c in map(group.column, range(group.num_columns))}
        width, height = (chunks[name].statistics if name in chunks else None for name in ("width", "height"))
        if not (width and height and width.has_min_max and height.has_min_max):
            raise ValueError(f"{uri}: its footer has no image sizes; curate again")
        if (width.min, height.min) != (width.max, height.max):
            raise ValueError(f"{uri}: row group {i} has images of several sizes, a batch has one; curate again")
        references = chunks["references"].num_values if "references" in chunks else 0
        if references % group.num_rows:
            raise ValueError(f"{uri}: row group {i} has edits of several numbers of reference images; curate again")
        found.append((group.num_rows, (width.min, height.min), references // group.num_rows))
    return found


class RowGroupPrefetcher:
    """Prefetches the row groups of the next shares.

    A row group is kept until its window ends: a worker holds its part of one window per bucket, and of the next ones if
    they are near. One thread may call `take`, any thread `close`.
    """

    def __init__(self, shares: Iterator[Share], columns: Sequence[str], ahead: int):
        self.shares, self.columns, self.ahead = shares, columns, ahead
        self.upcoming: deque[Share] = deque()
        self.groups: dict[RowGroup, tuple[tuple[int, int], Future[Rows]]] = {}  # with the last window that needs each
        self.pool = ThreadPoolExecutor(_READERS, thread_name_prefix="rows")

    def take(self) -> tuple[Share, list[Rows]]:
        """Return the next share, and for each of its locations the columns of its row group.

        Raises the exception of a failed read.
        """
        while len(self.upcoming) <= self.ahead:
            self.upcoming.append(next(self.shares))
            self._request(self.upcoming[-1].locations)
        share = self.upcoming.popleft()
        rows = [self.groups[location.group][1].result() for location in share.locations]
        self._drop_before(share.locations)
        return share, rows

    def close(self) -> None:
        """Cancel reads that have not started."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, locations: list[SampleLocation]) -> None:
        for group, window in {location.group: location.window for location in locations}.items():
            known = self.groups.get(group)
            reading = known[1] if known else self.pool.submit(read_columns, group, self.columns)
            self.groups[group] = window, reading

    def _drop_before(self, locations: list[SampleLocation]) -> None:
        """Drop the bucket's groups whose windows have ended."""
        bucket, first = locations[0].group.bucket, min(location.window for location in locations)
        over = [group for group, (window, _) in self.groups.items() if group.bucket == bucket and window < first]
        for group in over:
            del self.groups[group]


def read_columns(group: RowGroup, columns: Sequence[str]) -> Rows:
    """Return `key` and other columns of a row group, each from its file; those of references only if it has edits.

    Raises:
        ValueError: a column is missing, or the files' rows differ.
    """
    rows: Rows = {}
    columns = [name for name in columns if group.references or name not in REFERENCE_COLUMNS]
    for file, names in groupby(sorted(columns, key=group.file_of), group.file_of):
        columns_of_file = ["key", *names]
        read = read_group(file, group.group, columns_of_file) if file else {}
        if missing := [name for name in columns_of_file if name not in read]:
            raise ValueError(f"{file or group.curated}: no {missing[-1]} stored; encode the curated artifact with them")
        if read["key"] != rows.setdefault("key", read["key"]):
            raise ValueError(f"{file}: its rows differ from {group.curated}; encode the curated artifact again")
        rows |= read
    return rows
