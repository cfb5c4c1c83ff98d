"""Work items of images that are files of their own: lists of bounded length, with their captions and metadata.

The driver joins the images with the files beside them and with the rows of metadata files, and writes the lists; a
worker reads the images of a list. Each image of the source, and each row without an image, is one entry.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from posixpath import dirname, normpath
from typing import Any

from pipelines.core import storage
from pipelines.data.curate.metadata_files import MetadataRow, read_metadata
from pipelines.data.curate.parquet_reader import FAILED, Metadata
from pipelines.data.curate.samples import (
    LARGEST_TEXT,
    NO_REFERENCE,
    UNREAD_EXTENSIONS,
    Columns,
    Sample,
    explain_reference,
    explain_unread,
    make_sample,
    split_name,
    split_reference,
)
from pipelines.data.curate.source_files import BadFile, SourceFile, SourceReader
from pipelines.data.curate.sources import Source, parents_of

IMAGES_PER_LIST = 256
LIST_ENDING = ".images.json"
NO_IMAGE = "image of metadata row is missing"
NO_ROW = "no row in metadata"
SECOND_ROW = "another metadata row of its image is used"
NO_TARGET = "reference image without an image"
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
    references: list[str] = field(default_factory=list)
    """Addresses of its reference images"""

    @property
    def has_caption(self) -> bool:
        """Return whether there is a caption, or a file that may hold one."""
        return bool(self.texts or self.caption)


def list_entries(source: Source, columns: Columns) -> Iterator[Entry]:
    """Yield the entries of all images outside of shards, in the order of their paths; those without an image last.

    Below a folder with a metadata file, an image needs a row in it, unless it is a reference image of a row. Elsewhere
    its caption is the content of the `.txt` or `.caption` file of its name, or in its `.json`. Reference images belong
    to the entry of their image, and are entries of their own only if they have a row, or no image.

    Args:
        source: The files of the source.
        columns: Names of the columns of metadata files.

    Yields:
        One entry per image, per row without an image, and per download that failed.

    Raises:
        ConfigError: A metadata file cannot be read.
    """
    rows, lost = _join(source, columns)
    files = {file.path: file for file in source.images}
    in_rows = {path for row in rows.values() for path in row.references}
    governed = {dirname(file.path) for file in source.metadata}
    downloads = {folder: Metadata(address, columns) for folder, address in source.downloads.items()}
    beside = _find_references(source, columns, governed)
    targets = {split_name(path)[0] for path in files}
    for file in source.images:
        stem, extension = split_name(file.path)
        for folder in downloads.keys() & parents_of(file.path):
            downloads[folder].found(stem)
        if file.path in in_rows and file.path not in rows:
            continue
        key = split_reference(file.path, columns.references)[0]
        if file.path in beside.get(key, ()):
            if key not in targets:
                yield Entry(file.path, problem=NO_TARGET)
            continue
        if file.problem:
            yield Entry(file.path, problem=file.problem)
        elif extension in UNREAD_EXTENSIONS:
            yield Entry(file.path, problem=explain_unread(extension))
        elif row := rows.get(file.path):
            entry = Entry(file.path, file.address, {}, row.caption or "", row.record, row.global_key)
            yield _with_references(entry, row.references, files)
        elif _is_governed(file.path, governed):
            yield Entry(file.path, problem=NO_ROW)
        else:
            entry = Entry(file.path, file.address, _find_texts(source.texts, stem))
            yield _with_references(entry, beside.get(stem, ()), files)
    yield from lost
    for folder, metadata in downloads.items():
        for key, failed in metadata.missing():
            yield Entry(f"{folder}/{key}", problem=FAILED if failed else NOT_DOWNLOADED)
        if metadata.problem:
            yield Entry(folder, problem="metadata beside folder cannot be read")


def _is_governed(path: str, governed: set[str]) -> bool:
    """Return whether a file is below a folder with a metadata file."""
    return not governed.isdisjoint(["", *parents_of(path)])


def _find_references(source: Source, columns: Columns, governed: set[str]) -> dict[str, list[str]]:
    """Return {path of an image without extension: paths of the reference images beside it, in order}."""
    found: dict[str, dict[str, str]] = {}
    for file in source.images:
        key, extension = split_reference(file.path, columns.references)
        if "." in extension and not _is_governed(file.path, governed):
            found.setdefault(key, {}).setdefault(extension.rpartition(".")[0], file.path)
    return {key: [paths[name] for name in columns.references if name in paths] for key, paths in found.items()}


def _with_references(entry: Entry, paths: Sequence[str], files: Mapping[str, SourceFile]) -> Entry:
    """Return an entry with its reference images, or with the problem of the first that cannot be read."""
    for path in paths:
        file = files.get(path)
        extension = split_name(path)[1]
        if file is None:
            return Entry(entry.key, problem=NO_REFERENCE)
        if problem := file.problem or (explain_unread(extension) if extension in UNREAD_EXTENSIONS else ""):
            return Entry(entry.key, problem=explain_reference(problem))
    return replace(entry, references=[files[path].address for path in paths])


def _join(source: Source, columns: Columns) -> tuple[dict[str, MetadataRow], list[Entry]]:
    """Return the first row of each image by its path, and the entries of the other rows."""
    images = {file.path for file in source.images}
    rows: dict[str, MetadataRow] = {}
    lost = []
    for file in source.metadata:
        for row in read_metadata(file.address, columns):
            path, *references = (_resolve(dirname(file.path), name) for name in (row.image, *row.references))
            if not row.image:
                problem = NO_NAME
            elif not path:
                problem = UNSAFE
            elif path not in images:
                problem = NO_IMAGE
            elif path in rows:
                problem = SECOND_ROW
            else:
                rows[path] = replace(row, references=tuple(references))
                continue
            lost.append(Entry(f"{file.path}/{row.number}", problem=problem))
    return rows, lost


def _resolve(folder: str, path: str) -> str:
    """Return the path in the source of a path in a metadata file; empty if it leads outside of the source."""
    found = normpath("/".join(filter(None, [folder, path.replace("\\", "/")])))
    return "" if path.startswith("/") or found.startswith("../") else found


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
    try:
        references = [reader.read(address) for address in entry.references]
    except BadFile as error:
        return Sample(entry.key, problem=explain_reference(str(error)))
    if entry.texts:
        return replace(make_sample(entry.key, image, texts, columns), references=references)
    return Sample(entry.key, image, entry.caption, entry.record, global_key=entry.global_key, references=references)
