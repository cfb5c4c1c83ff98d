"""Read the samples of a source: webdataset tars, parquet, Arrow, lists of images, folders of a class.

Shards are streamed: only a shard's keys are held in memory, and nothing is unpacked to disk. Unreadable data becomes a
sample with a `problem`, so that it is counted.
"""

from collections.abc import Iterator

from pipelines.core import storage
from pipelines.data.curate.arrow_reader import read_arrow
from pipelines.data.curate.image_lists import LIST_ENDING, read_list
from pipelines.data.curate.parquet_reader import FAILED, Metadata, read_parquet
from pipelines.data.curate.samples import (
    IMAGE_EXTENSIONS,
    LARGEST_FILE,
    UNREAD_EXTENSIONS,
    Columns,
    Sample,
    explain_unread,
    split_name,
)
from pipelines.data.curate.sources import is_tar, without_ending
from pipelines.data.curate.tar_reader import read_tar, read_tar_of_class


def read_shard(shard: str, columns: Columns, torn: frozenset[str] = frozenset()) -> Iterator[Sample]:
    """Yield the samples of a tar, a table or a list, then those that only the metadata beside a tar lists.

    Args:
        shard: Address of the shard, or URI of the list.
        columns: Names of the source's columns.
        torn: See `read_tar`.

    Raises:
        OSError: The store failed; this is never treated as a damaged shard.
        TornSamples: See `read_tar`.
    """
    if not is_tar(shard):
        is_list, is_arrow = shard.endswith(LIST_ENDING), shard.lower().endswith(".arrow")
        yield from (read_list if is_list else read_arrow if is_arrow else read_parquet)(shard, columns)
        return
    beside = f"{without_ending(shard)}.parquet"
    metadata = Metadata(beside, columns)
    if metadata.is_table:
        yield from read_parquet(beside, columns)
    lost = []
    for sample in read_tar(shard, columns, torn):
        metadata.found(sample.key)
        if sample.key or not sample.problem:
            yield sample
        else:
            lost.append(sample)
    missing = list(metadata.missing())
    cause = lost[0].problem if lost else "not in the tar"
    yield from (Sample(key, problem=FAILED if failed else cause) for key, failed in missing)
    if all(failed for _, failed in missing):  # else the missing samples report the damage
        yield from lost
    if metadata.problem:
        yield Sample("", problem=metadata.problem)


def read_class(place: str) -> Iterator[Sample]:
    """Yield the images of a folder or tar of one class, with their paths in it as keys."""
    if is_tar(place):
        yield from read_tar_of_class(place)
        return
    for file in storage.list_files(place):
        key, extension = split_name(file[len(place) + 1 :])
        if extension in UNREAD_EXTENSIONS:
            yield Sample(key, problem=explain_unread(extension))
        elif extension in IMAGE_EXTENSIONS:
            with storage.open_file(file) as stream:
                image = stream.read(LARGEST_FILE + 1)
            yield Sample(key, image) if len(image) <= LARGEST_FILE else Sample(key, problem="file too large")
