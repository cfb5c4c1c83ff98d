"""List the shards or classes of a source by name, and reject sources with files that curate does not read."""

from pathlib import Path

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate.samples import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
_IMAGE_ENDINGS = tuple(f".{extension}" for extension in (*IMAGE_EXTENSIONS, *UNREAD_EXTENSIONS))
_OTHER_ENDINGS = (
    ".zip", ".7z", ".rar", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".arrow", ".tfrecord",
)  # fmt: skip
_READ = "it reads .tar, .tar.gz, .tgz and .parquet; repack them, or move them out of the source"


def is_tar(uri: str) -> bool:
    """Return whether a file is a tar, by its name."""
    return uri.lower().endswith(TAR_ENDINGS)


def is_table(uri: str) -> bool:
    """Return whether a file is parquet, by its name."""
    return uri.lower().endswith(".parquet")


def without_ending(shard: str) -> str:
    """Return the URI of a shard without its extension."""
    ending = next(e for e in (".tar.gz", ".tar", ".tgz", ".parquet") if shard.lower().endswith(e))
    return shard[: -len(ending)]


def list_shards(source: str) -> dict[str, str]:
    """Return {name: URI} of a source's shards: all tars, and every parquet file that has no tar beside it.

    Raises:
        ConfigError: There are no shards, or images in a form that is not read, or two shards have the same name.
    """
    files = _list_files(source)
    tars = {without_ending(f) for f in files if is_tar(f)}
    shards = [f for f in files if is_tar(f) or (is_table(f) and f.removesuffix(".parquet") not in tars)]
    if not shards:
        raise ConfigError(
            f"source={source!r}: no .tar or .parquet shards there; set it to the output folder of img2dataset, or "
            "make the demo's with `python jobs/make_demo_data.py`"
        )
    _reject_unread(source, files, (*_OTHER_ENDINGS, *_IMAGE_ENDINGS), "hold images outside of shards")
    named: dict[str, str] = {}
    for shard in shards:
        name = path_below(source, without_ending(shard)).replace("/", "-")
        if other := named.get(name):
            raise ConfigError(f"source={source!r}: two shards have one name, {other} and {shard}; rename one")
        named[name] = shard
    return named


def list_classes(source: str) -> dict[str, str]:
    """Return {class: URI} of the folders of images and the tars directly in a source, by name.

    Raises:
        ConfigError: There are no classes, or images that belong to no class, or two classes have the same name.
    """
    root, found, unclassified = storage.absolute(source), dict[str, str](), []
    for file in _list_files(source):
        name, inside, _ = path_below(source, file).partition("/")
        if inside and file.lower().endswith(_IMAGE_ENDINGS):
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
    unclassified = [f for f in unclassified if not (is_table(f) and path_below(source, without_ending(f)) in found)]
    endings = (*_OTHER_ENDINGS, *TAR_ENDINGS, ".parquet", *_IMAGE_ENDINGS)
    what = "hold images of no class; labels=folder reads a folder or tar of each class:"
    _reject_unread(source, unclassified, endings, what)
    return dict(sorted(found.items()))


def path_below(source: str, uri: str) -> str:
    """Return the path of a file below a source."""
    return uri[len(storage.absolute(source)) + 1 :]


def _list_files(source: str) -> list[str]:
    if storage.is_local(source) and Path(storage.absolute(source)).is_file():
        raise ConfigError(f"source={source!r}: is not a folder; set the folder that holds the shards")
    return storage.list_files(source)


def _reject_unread(source: str, files: list[str], endings: tuple[str, ...], what: str) -> None:
    unread = [f for f in files if f.lower().endswith(endings)]
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise ConfigError(
            f"source={source!r}: {path_below(source, unread[0])}{more} {what}, which curate does not read; {_READ}"
        )
