"""Work items of images that are files of their own: lists of bounded length, with their captions and metadata.

The driver joins the images with the files beside them and with the rows of metadata files, and writes the lists; a
worker reads the images of a list. Each image of the source, and each row without an image, is one entry.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from posixpath import dirname, normpath
from typing import Any

from pipelines.core import storage
from pipelines.data.curate.metadata_files import MetadataRow, read_metadata
from pipelines.data.curate.parquet_reader import FAILED, Metadata
from pipelines.data.curate.samples import (
    LARGEST_TEXT,
    UNREAD_EXTENSIONS,
    Columns,
    Sample,
    explain_unread,
    make_sample,
    split_name,
)
from pipelines.data.curate.source_files import BadFile, SourceReader
from pipelines.data.curate.sources import Source, parents_of

IMAGES_PER_LIST = 256
LIST_ENDING = ".images.json"
NO_IMAGE = "image of metadata row is missing"
NO_ROW = "no row in metadata"
SECOND_ROW = "another metadata row of its image is used"
NO_NAME = "metadata row without image"
UNSAFE = "unsafe path in metadata"
NOT_DOWNLOADED = "not in the folder"


@dataclass
class Entry:
    """An image of a list, with the files that belong to it, or the reason why it cannot be used."""

    key: str
    image: str = ""
    """Address"""
    texts: dict[str, str] = field(default_factory=dict)
    """Addresses of its caption (`txt`) and its metadata (`json`)"""
    caption: str = ""
    """Caption in its row of a metadata file"""
    record: dict[str, Any] = field(default_factory=dict)
    global_key: str = ""
    problem: str = ""

    @property
    def has_caption(self) -> bool:
        """Return whether there is a caption, or a file that may hold one."""
        return bool(self.texts or self.caption)


def list_entries(source: Source, columns: Columns) -> Iterator[Entry]:
    """Yield the entries of all images outside of shards, in the order of their paths; those without an image last.

    Below a folder with a metadata file, an image needs a row in it. Elsewhere its caption is the content of the `.txt`
    or `.caption` file of its name, or in its `.json`.

    Args:
        source: The files of the source.
        columns: Names of the columns of metadata files.

    Yields:
        One entry per image, per row without an image, and per download that failed.

    Raises:
        ConfigError: A metadata file cannot be read.
    """
    rows, lost = _join(source, columns)
    governed = {dirname(file.path) for file in source.metadata}
    downloads = {folder: Metadata(address, columns) for folder, address in source.downloads.items()}
    for file in source.images:
        stem, extension = split_name(file.path)
        for folder in downloads.keys() & parents_of(file.path):
            downloads[folder].found(stem)
        if file.problem:
            yield Entry(file.path, problem=file.problem)
        elif extension in UNREAD_EXTENSIONS:
            yield Entry(file.path, problem=explain_unread(extension))
        elif row := rows.get(file.path):
            yield Entry(file.path, file.address, {}, row.caption or "", row.record, row.global_key)
        elif not governed.isdisjoint(["", *parents_of(file.path)]):
            yield Entry(file.path, problem=NO_ROW)
        else:
            yield Entry(file.path, file.address, _find_texts(source.texts, stem))
    yield from lost
    for folder, metadata in downloads.items():
        for key, failed in metadata.missing():
            yield Entry(f"{folder}/{key}", problem=FAILED if failed else NOT_DOWNLOADED)
        if metadata.problem:
            yield Entry(folder, problem="metadata beside folder cannot be read")


def _join(source: Source, columns: Columns) -> tuple[dict[str, MetadataRow], list[Entry]]:
    """Return the first row of each image by its path, and the entries of the other rows."""
    images = {file.path for file in source.images}
    rows: dict[str, MetadataRow] = {}
    lost = []
    for file in source.metadata:
        for row in read_metadata(file.address, columns):
            path = normpath("/".join(filter(None, [dirname(file.path), row.image.replace("\\", "/")])))
            if not row.image:
                problem = NO_NAME
            elif row.image.startswith("/") or path.startswith("../"):
                problem = UNSAFE
            elif path not in images:
                problem = NO_IMAGE
            elif path in rows:
                problem = SECOND_ROW
            else:
                rows[path] = row
                continue
            lost.append(Entry(f"{file.path}/{row.number}", problem=problem))
    return rows, lost


def _find_texts(texts: dict[str, str], stem: str) -> dict[str, str]:
    caption = texts.get(f"{stem}.txt") or texts.get(f"{stem}.caption")
    found = {"txt": caption, "json": texts.get(f"{stem}.json")}
    return {kind: address for kind, address in found.items() if address}


def write_lists(source: Source, columns: Columns, folder: str) -> dict[str, str]:
    """Write the lists below a folder; return {name: URI}. Names have a slash, unlike those of shards."""
    entries, items = list_entries(source, columns), dict[str, str]()
    while some := list(islice(entries, IMAGES_PER_LIST)):
        name = f"images/{len(items):05d}"
        items[name] = storage.join(folder, f"{name}{LIST_ENDING}")
        storage.write_bytes(items[name], json.dumps([asdict(entry) for entry in some]).encode())
    return items


def read_list(uri: str, columns: Columns) -> Iterator[Sample]:
    """Yield the samples of a list.

    Args:
        uri: The list.
        columns: Names of the keys in the JSON of an image.
    """
    with SourceReader() as reader:
        for entry in (Entry(**fields) for fields in json.loads(storage.read_bytes(uri))):
            yield _read_entry(reader, entry, columns)


def _read_entry(reader: SourceReader, entry: Entry, columns: Columns) -> Sample:
    if entry.problem:
        return Sample(entry.key, problem=entry.problem)
    try:
        image = reader.read(entry.image)
        texts = {kind: reader.read(address, LARGEST_TEXT) for kind, address in entry.texts.items()}
    except BadFile as error:
        return Sample(entry.key, problem=str(error))
    if entry.texts:
        return make_sample(entry.key, image, texts, columns)
    return Sample(entry.key, image, entry.caption, entry.record, global_key=entry.global_key)
