"""Find what a source holds: shards, images as files with their captions and metadata, or a folder of each class."""

import json
from dataclasses import dataclass, field
from posixpath import dirname

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate.metadata_files import METADATA_NAMES, TableKind, look_at_table
from pipelines.data.curate.parquet_reader import Metadata
from pipelines.data.curate.samples import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS, Columns, is_litter
from pipelines.data.curate.source_files import (
    BadFile,
    SourceFile,
    SourceReader,
    is_zip,
    list_source_files,
    path_in_source,
    path_of,
    split_address,
)

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
_IMAGE_ENDINGS = tuple(f".{extension}" for extension in (*IMAGE_EXTENSIONS, *UNREAD_EXTENSIONS))
_TABLE_ENDINGS = (".parquet", ".arrow")
_OTHER_ENDINGS = (
    ".7z", ".rar", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".tfrecord",
)  # fmt: skip
_READ = "it reads images, .tar, .tar.gz, .tgz, .zip, .parquet and .arrow; repack them, or move them out of the source"
_STATE = "state.json"


@dataclass
class Source:
    """The files of a source, by what they are."""

    shards: dict[str, str] = field(default_factory=dict)
    """{name: address} of tars and of tables with the images' bytes"""
    images: list[SourceFile] = field(default_factory=list)
    """Images outside of shards, and files that cannot be read, by path"""
    texts: dict[str, str] = field(default_factory=dict)
    """{path: address} of files that may belong to an image: .txt, .caption, .json"""
    metadata: list[SourceFile] = field(default_factory=list)
    """Files that assign captions to paths of images"""
    downloads: dict[str, str] = field(default_factory=dict)
    """{folder: address of img2dataset's metadata of its downloads}"""

    has_captions: bool = False
    """Whether a shard may have captions"""
    has_references: bool = False
    """Whether a shard may have reference images"""
    is_crawl: bool = False
    """Whether its images may have the scores of a crawl: it has tars, metadata of downloads, or columns of scores"""


def is_tar(uri: str) -> bool:
    """Return whether a file is a tar, by its name."""
    return uri.lower().endswith(TAR_ENDINGS)


def is_table(uri: str) -> bool:
    """Return whether a file is parquet or Arrow, by its name."""
    return uri.lower().endswith(_TABLE_ENDINGS)


def is_image(path: str) -> bool:
    """Return whether a file is an image, by its name."""
    return path.lower().endswith(_IMAGE_ENDINGS)


def without_ending(shard: str) -> str:
    """Return the address of a shard without its extension."""
    ending = next(e for e in (".tar.gz", ".tar", ".tgz", *_TABLE_ENDINGS) if shard.lower().endswith(e))
    return shard[: -len(ending)]


def find_source(source: str, columns: Columns) -> Source:
    """Return what a source holds, by looking at its files.

    Shards are all tars, and each table that has neither a tar nor a folder of its name beside it. A folder with a
    `state.json` of Hugging Face `datasets` has the Arrow files that it lists. Whether a table holds images or their
    paths is taken from the first one of its folder.

    Raises:
        ConfigError: There are no images, or some in a form that is not read, or two shards have the same name.
    """
    found, tables = Source(), list[SourceFile]()
    files = [file for file in list_source_files(source) if file.problem or not is_litter(file.path)]
    what = f"hold images in a form that curate does not read; {_READ}"
    _reject_unread(source, [f.address for f in files], _OTHER_ENDINGS, what)
    tars = {without_ending(f.path) for f in files if is_tar(f.path) and not f.problem}
    listed = _list_saved(files)
    for file in files:
        if file.problem or is_image(file.path) or is_zip(file.path):
            found.images.append(file if file.problem or is_image(file.path) else _nested(file))
        elif is_tar(file.path):
            _add_shard(source, found, file)
            found.is_crawl = found.has_captions = found.has_references = True
        elif file.path.rpartition("/")[2] in METADATA_NAMES:
            found.metadata.append(file)
        elif file.path.lower().endswith((".txt", ".caption", ".json")):
            found.texts[file.path] = file.address
        elif is_table(file.path) and without_ending(file.path) not in tars:
            saved = listed.get(dirname(file.path))
            if saved is None or file.path in saved:
                tables.append(file)
    for folder, saved in listed.items():
        missing = saved - {file.path for file in tables if dirname(file.path) == folder}
        found.images += [SourceFile(path, "", "Arrow file of state.json is missing") for path in missing]
    _sort_tables(source, columns, tables, found)
    found.images = [f for f in found.images if _is_counted(f)]
    if not found.shards and not found.images:
        raise ConfigError(
            f"source={source!r}: no images there, neither files nor .tar, .parquet, .arrow or .zip with images; set it "
            "to a folder of images or to the output folder of img2dataset, or make the demo's with "
            "`python jobs/make_demo_data.py`"
        )
    return found


def _nested(file: SourceFile) -> SourceFile:
    return SourceFile(file.path, file.address, "archive in zip is not read")


def _is_counted(file: SourceFile) -> bool:
    """Return whether a file has a place in the accounts: images, shards, and zips as a whole."""
    endings = (*_IMAGE_ENDINGS, *TAR_ENDINGS, *_TABLE_ENDINGS, ".zip")
    return not is_litter(file.path) and (not split_address(file.address)[1] or file.path.lower().endswith(endings))


def _add_shard(source: str, found: Source, file: SourceFile) -> None:
    name = without_ending(file.path).replace("/", "-")
    if other := found.shards.get(name):
        pair = f"{path_of(other)} and {path_of(file.address)}"
        raise ConfigError(f"source={source!r}: two shards have one name, {pair}; rename one")
    found.shards[name] = file.address


def _list_saved(files: list[SourceFile]) -> dict[str, set[str]]:
    """Return {folder: paths of its Arrow files} of data sets that were saved by Hugging Face `datasets`."""
    saved = {}
    with SourceReader() as reader:
        for file in files:
            if file.path.rpartition("/")[2] != _STATE or file.problem:
                continue
            try:
                state = json.loads(reader.read(file.address))
                names = [entry["filename"] for entry in state["_data_files"]]
            except (BadFile, ValueError, KeyError, TypeError):
                continue  # of another program
            folder = dirname(file.path)
            saved[folder] = {"/".join(filter(None, [folder, name])) for name in names if isinstance(name, str)}
    return saved


def _sort_tables(source: str, columns: Columns, tables: list[SourceFile], found: Source) -> None:
    """Add each table to the shards, the metadata, or the metadata of downloads."""
    folders = {parent for file in found.images for parent in parents_of(file.path)}
    kinds: dict[str, TableKind] = {}
    for file in tables:
        if without_ending(file.path) in folders and Metadata(file.address, columns).is_of_downloads:
            found.downloads[without_ending(file.path)] = file.address
            found.is_crawl = True
            continue
        folder = dirname(file.path) if file.path.rpartition("/")[2] != "metadata.parquet" else file.path
        if folder not in kinds:
            kind = look_at_table(file.address, columns)
            found.is_crawl |= bool(kind and kind.has_scores)
            found.has_captions |= not kind or kind.has_captions
            found.has_references |= not kind or kind.has_references
            if kind:
                kinds[folder] = kind
        if folder in kinds and kinds[folder].has_paths:
            found.metadata.append(file)
        else:
            _add_shard(source, found, file)


def parents_of(path: str) -> list[str]:
    """Return the folders that contain a path, the outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def list_classes(source: str) -> dict[str, str]:
    """Return {class: URI} of the folders of images and the tars directly in a source, by name.

    Raises:
        ConfigError: There are no classes, or images that belong to no class, or two classes have the same name.
    """
    root, found, unclassified = storage.absolute(source), dict[str, str](), []
    for file in storage.list_files(source):
        name, inside, _ = path_in_source(source, file).partition("/")
        if inside and is_image(file):
            place = f"{root}/{name}"
        elif not inside and is_tar(file):
            name, place = without_ending(name), file
        else:
            unclassified.append(file)
            continue
        if found.setdefault(name, place) != place:
            raise ConfigError(f"source={source!r}: two classes have one name, {found[name]} and {place}; rename one")
    if not found:
        raise ConfigError(f"source={source!r}: labels=folder needs a folder of images, or a tar, for each class")
    beside = [f for f in unclassified if is_table(f) and path_in_source(source, without_ending(f)) in found]
    endings = (*_OTHER_ENDINGS, ".zip", *TAR_ENDINGS, *_TABLE_ENDINGS, *_IMAGE_ENDINGS)
    others = [file for file in unclassified if file not in beside]
    what = "hold images of no class; labels=folder reads a folder or tar of each class; move them out of the source"
    _reject_unread(source, others, endings, what)
    return dict(sorted(found.items()))


def _reject_unread(source: str, addresses: list[str], endings: tuple[str, ...], what: str) -> None:
    unread = [f for f in addresses if f.lower().endswith(endings)]
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise ConfigError(f"source={source!r}: {path_in_source(source, unread[0])}{more} {what}")
