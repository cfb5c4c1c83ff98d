"""Reading a source: webdataset tars, parquet, folders of images, one sample at a time.

Shards stream: of a shard's size only its keys are held in memory. Nothing is unpacked to disk. What cannot be read
becomes a sample with a `problem`, so that it is counted.
"""

from collections.abc import Iterator

from pipelines.core import storage
from pipelines.data.curate.parquet_reader import FAILED, Metadata, read_parquet
from pipelines.data.curate.samples import IMAGE_EXTENSIONS, LARGEST_FILE, UNREAD_EXTENSIONS, Columns, Sample
from pipelines.data.curate.sources import is_tar, without_ending
from pipelines.data.curate.tar_reader import read_tar, read_tar_of_class, split_name


def read_shard(shard: str, columns: Columns, torn: frozenset[str] = frozenset()) -> Iterator[Sample]:
    """Yield the samples of a tar or parquet shard, then what the metadata beside a tar lists and the tar lacks.

    Raises:
        OSError: The store failed: no sample is lost.
        TornSamples: See `read_tar`.
    """
    if not is_tar(shard):
        yield from read_parquet(shard, columns)
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
    if all(failed for _, failed in missing):  # else the damage is reported by the samples that it cost
        yield from lost
    if metadata.problem:
        yield Sample("", problem=metadata.problem)


def read_class(place: str) -> Iterator[Sample]:
    """Yield the images of a folder or tar of one class; their paths in it are their keys."""
    if is_tar(place):
        yield from read_tar_of_class(place)
        return
    for file in storage.list_files(place):
        key, extension = split_name(file[len(place) + 1 :])
        if extension in UNREAD_EXTENSIONS:
            yield Sample(key, problem=f"image format {extension} is not read")
        elif extension in IMAGE_EXTENSIONS:
            with storage.open_file(file) as stream:
                image = stream.read(LARGEST_FILE + 1)
            yield Sample(key, image) if len(image) <= LARGEST_FILE else Sample(key, problem="file too large")
