"""Read the samples of a webdataset tar: adjacent members whose paths differ only in the extension."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from pipelines.data.curate import tar_stream
from pipelines.data.curate.samples import (
    IMAGE_EXTENSIONS,
    LARGEST_FILE,
    LARGEST_TEXT,
    UNREAD_EXTENSIONS,
    Columns,
    Sample,
    explain_reference,
    explain_unread,
    is_litter,
    make_sample,
    split_name,
    split_reference,
)
from pipelines.data.curate.source_files import BadFile, SourceReader

TORN = "members of a key are not adjacent in tar"
_NO_IMAGE = "no image of its key"
_SECOND = "another image of its key is used"
_ARCHIVES = ("tar", "gz", "tgz", "zip", "parquet")
_TEXTS = ("txt", "json")
_TWICE = "another one has its name"


class TornSamples(Exception):
    """Raised at the end of a tar if images were read whose other members are not adjacent, with their `keys`."""

    def __init__(self, keys: set[str]):
        super().__init__(f"{len(keys)} keys whose {TORN}")
        self.keys = frozenset(keys)


@dataclass
class _Group:
    """Adjacent members of one key: data of its first image and of its texts, and the extensions of all members."""

    key: str
    before: str = ""
    """Damage before the group, which may have destroyed members of it"""
    image: bytes = b""
    references: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    extensions: set[str] = field(default_factory=set)
    problem: str = ""

    def add(self, extension: str, member: tar_stream.Member) -> None:
        self.extensions.add(extension)
        name, _, format = extension.rpartition(".")
        if name:
            problem = member.problem or (explain_unread(format) if format in UNREAD_EXTENSIONS else "")
            problem = problem or (_TWICE if name in self.references else "")
            self.problem = self.problem or (explain_reference(problem) if problem else "")
            self.references[name] = member.data
            return
        self.problem = self.problem or member.problem
        if extension in IMAGE_EXTENSIONS:
            self.image = self.image if self.images else member.data
            self.images.append(extension)
        elif extension in _TEXTS:
            self.texts[extension] = member.data


def read_tar(shard: str, columns: Columns, torn: frozenset[str] = frozenset()) -> Iterator[Sample]:
    """Yield the samples of a tar, plain or compressed with gzip, then a sample for each stretch that is damaged.

    Args:
        shard: URI of the tar.
        columns: Names of the keys in its JSON.
        torn: Keys whose members are known not to be adjacent; their images are rejected with TORN.

    Raises:
        TornSamples: At the end, if members of other keys are not adjacent. The samples of this pass are wrong: discard
            them, and read again with these keys.
    """
    found = _TornKeys()
    lost = []
    for group in _groups(shard, columns.references):
        if not group.key and group.problem:
            lost.append(Sample("", problem=group.problem))
            continue
        found.add(group)
        if group.key in torn and group.images:
            group.problem = group.problem or TORN
        elif group.key in torn and (group.texts or group.references):  # reported with the image
            continue
        yield from _samples_of(group, columns)
    yield from lost
    if found.keys - torn:
        raise TornSamples(found.keys)


def read_tar_of_class(shard: str) -> Iterator[Sample]:
    """Yield every image of a tar as a separate sample, and unreadable images with the reason; skip other files."""
    for group in _groups(shard, alone=True):
        group.key = split_name(group.key)[0]
        if group.problem or group.images or _explain_no_image(group) != _NO_IMAGE:
            (sample,) = _samples_of(group, Columns())
            yield sample


def _groups(shard: str, references: Sequence[str] = (), alone: bool = False) -> Iterator[_Group]:
    """Yield the groups of a tar; with `alone` each member is a group, and its path the key.

    A group without a key is damage that cannot be assigned to a sample.
    """
    current: _Group | None = None
    damage = ""  # after the last member of `current`
    usual: set[str] = set()  # extensions of the last undamaged group

    def limit(name: str) -> int | None:
        key, extension = split_reference(_plain(name), references)
        if "." in extension:
            return LARGEST_FILE
        if extension in _TEXTS and not alone:
            return LARGEST_TEXT
        is_second = current and current.key == key and current.images and extension not in current.extensions
        return LARGEST_FILE if extension in IMAGE_EXTENSIONS and not is_second else None

    def end(group: _Group) -> Iterator[_Group]:
        """Assign adjacent damage to a group with missing members; report other damage separately."""
        nonlocal damage, usual
        if not group.problem and (not group.images or group.extensions < usual):
            group.problem = group.before or damage
            group.before, damage = ("", damage) if group.before else ("", "")
        elif not group.problem and not group.before and not damage:
            usual = group.extensions
        yield group
        if group.before:
            yield _Group("", problem=group.before)

    with ExitStack() as stack:
        try:
            file = stack.enter_context(stack.enter_context(SourceReader()).open(shard))
        except BadFile as error:
            yield _Group("", problem=str(error))
            return
        for member in tar_stream.read_members(file, limit):
            path = _plain(member.name)
            if is_litter(path):
                if member.problem not in (tar_stream.CUT_OFF, tar_stream.FALSE_SIZE):
                    continue
                path = ""
            if not path and member.problem:
                if damage:
                    yield _Group("", problem=damage)
                damage = member.problem
                continue
            key, extension = split_reference(path, references)
            key = path if alone else key
            if current and key == current.key and extension not in current.extensions:
                current.problem, damage = current.problem or damage, ""
            else:
                if current:
                    yield from end(current)
                current, damage = _Group(key, before=damage), ""
            current.add(extension, member)
    if current:
        yield from end(current)
    if damage:
        yield _Group("", problem=damage)


def _plain(name: str) -> str:
    """Return a member's path without `./`, as valid UTF-8 for parquet: names in a tar are bytes."""
    path = "/".join(part for part in name.split("/") if part != ".")
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _samples_of(group: _Group, columns: Columns) -> Iterator[Sample]:
    """Yield one sample for each image of a group, or a single one for a group without images."""
    yield _first_sample(group, columns)
    for extension in group.images[1:]:
        yield Sample(f"{group.key}.{extension}", problem=group.problem or _SECOND)


def _first_sample(group: _Group, columns: Columns) -> Sample:
    if problem := group.problem or ("" if group.images else _explain_no_image(group)):
        return Sample(group.key, problem=problem)
    sample = make_sample(group.key, group.image, group.texts, columns)
    sample.references = [group.references[name] for name in columns.references if name in group.references]
    return sample


def _explain_no_image(group: _Group) -> str:
    """Return the reason for rejecting a group without an image."""
    for extension in sorted(group.extensions):
        if extension in UNREAD_EXTENSIONS:
            return explain_unread(extension)
        if extension in _ARCHIVES:
            return "archive in tar is not read"
    return _NO_IMAGE


class _TornKeys:
    """Collects keys with an image in one place of the tar and its caption, JSON or reference image in another."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self._seen: dict[str, tuple[frozenset[str], ...]] = {}
        self._shared: dict[tuple[frozenset[str], ...], tuple[frozenset[str], ...]] = {}  # share equal values

    def add(self, group: _Group) -> None:
        extensions = frozenset(group.extensions)
        before = self._seen.get(group.key, ())
        if any(_are_torn(other, extensions) for other in before):
            self.keys.add(group.key)
        if extensions not in before:
            after = (*before, extensions)
            self._seen[group.key] = self._shared.setdefault(after, after)


def _are_torn(one: frozenset[str], other: frozenset[str]) -> bool:
    first, second = (not part.isdisjoint(IMAGE_EXTENSIONS) for part in (one, other))
    rest = other if first else one
    return first != second and one.isdisjoint(other) and any(name in _TEXTS or "." in name for name in rest)
