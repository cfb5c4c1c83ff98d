"""Random sources for curate, each with the account of what was put into it."""

import gzip
import hashlib
import io
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tars import sample, tar_of, without_end

FORMATS = {"jpg": "JPEG", "JPEG": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "png": "PNG", "Gif": "GIF", "bmp": "BMP"}
NAMES = (
    "0001", "0002", "0003", "000000001", "000000002", "IMG 2.0", "IMG 2.1", "v1.2/a.b", "cat/0001", "dog/0001",
    "./x/0004", "ü ñ", "日本", "a" * 120 + "/b", "\udcff", "-", "#2", "0001#2", "tab\there",
)  # fmt: skip
LITTER = ("._0001.jpg", ".DS_Store", "__MACOSX/._a.jpg", "x/._y.txt", "Thumbs.db")
UNSAFE = "unsafe path in tar"
TORN = "members of a key are not adjacent in tar"


@cache
def image_of(number: int, format: str) -> bytes:
    """A small image of grain, another one for every number."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (16, 16), random.Random(number).randbytes(16 * 16 * 3)).save(buffer, format)
    return buffer.getvalue()


@dataclass
class Account:
    """What a source holds: where each image must end, by the SHA-256 of its bytes, and the rows without an image."""

    kept: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason"""
    images: list[bytes] = field(default_factory=list, repr=False)
    damages: int = 0
    touched: set[str] = field(default_factory=set)
    """Of the kept, those whose bytes damage has changed or removed"""

    def put(self, image: bytes, reason: str = "") -> None:
        if reason:
            self.rejected[reason] += 1
        else:
            self.kept[digest_of(image)] += 1
        self.images.append(image)

    def damage(self, images: list[bytes], tar: bytes) -> None:
        """Note which of the images put into a tar are no longer whole in it."""
        self.damages += 1
        self.touched |= {digest_of(image) for image in images if image not in tar}


def digest_of(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


class SourceMaker:
    """Makes one source after another; each image is put in once, but for those that are meant to be duplicates."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.number = 0

    def new_image(self, format: str) -> bytes:
        self.number += 1
        return image_of(self.number % 300, format)  # a source has far fewer

    def make(self, folder: Path) -> Account:
        """Write a source of one or two shards."""
        account = Account()
        for number in range(self.rng.choice((1, 1, 2))):
            place = folder / self.rng.choice(("", "part", "deep/part.2"))
            place.mkdir(parents=True, exist_ok=True)
            write = self.rng.choice((self.write_tar, self.write_tar, self.write_table, self.write_img2dataset))
            write(place, f"{number:05d}", account)
        return account

    def write_tar(self, place: Path, name: str, account: Account) -> None:
        """One or more tars of samples, joined, perhaps damaged."""
        before = len(account.images)
        parts = [self.some_tar(account) for _ in range(self.rng.choice((1, 1, 1, 2, 3)))]
        ends = [self.rng.choice((bytes, without_end))(part) for part in parts[:-1]]
        data = b"".join([*ends, parts[-1]])
        if self.rng.random() < 0.2:
            data = self.damaged(data)
            account.damage(account.images[before:], data)
        zipped = self.rng.random() < 0.3
        ending = ".tar.gz" if zipped else ".tar"
        (place / f"{name}{ending}").write_bytes(gzip.compress(data, 1) if zipped else data)

    def some_tar(self, account: Account) -> bytes:
        names = self.rng.sample(NAMES, self.rng.randint(1, 3))
        members = [member for name in names for member in self.some_sample(name, account)]
        if self.rng.random() < 0.05:
            members += self.interleaved(account)
        return tar_of(members)

    def some_sample(self, name: str, account: Account) -> list[tuple[str, bytes]]:
        """Members of one key. What goes with an image depends on its name alone, so that equal names in joined tars
        begin alike: members of two samples could not be told apart otherwise."""
        style = random.Random(ascii(name))
        extension = style.choice(sorted(FORMATS))
        image = self.new_image(FORMATS[extension])
        members = [(f"{name}.{extension}", image)]
        reason = ""
        if style.random() < 0.8:
            caption = self.rng.choice((b"a caption", b"\xef\xbb\xbfa caption", b"", b"\xff\xfe", b"www.example.com"))
            members.append((f"{name}.txt", caption))
            reason = {b"": "empty caption", b"\xff\xfe": "caption is not UTF-8"}.get(caption, reason)
            reason = "caption is a URL or a file name" if caption.startswith(b"www") else reason
        else:
            reason = "empty caption"
        if style.random() < 0.5:
            record = self.rng.choice((b"{}", b'{"sha256": "None"}', b'{"sha256": "0", "status": "done"}', b"{"))
            members.append((f"{name}.json", record))
            reason = "JSON cannot be read" if record == b"{" else reason
        account.put(image, reason)
        return self.with_more(name, members, account)

    def with_more(self, name: str, members: list, account: Account) -> list[tuple[str, bytes]]:
        """The members of a sample, perhaps with something besides that makes other rows, or none."""
        chance = self.rng.random()
        if chance < 0.1:
            return [(self.rng.choice(LITTER), b"x"), *members[:1], (self.rng.choice(LITTER), b"x"), *members[1:]]
        if chance < 0.15:
            account.rejected["another image of its key is used"] += 1
            return [*members, (f"{name}.webp", b"another")]
        if chance < 0.2:
            account.rejected[UNSAFE] += 1
            return [*members, *sample(f"../{self.number}")]
        if chance < 0.25:
            kind = self.rng.choice(("tiff", "zip", "md"))
            reasons = {"tiff": "image format tiff is not read", "zip": "archive in tar is not read"}
            account.rejected[reasons.get(kind, "no image of its key")] += 1
            return [*members, (f"other{self.number}.{kind}", b"x")]
        if chance < 0.3:
            account.rejected["not an image"] += 1
            return [*members, *sample(f"bad{self.number}", b"no image")]
        return members

    def interleaved(self, account: Account) -> list[tuple[str, bytes]]:
        """Members of two samples, sorted by their kind."""
        keys = [f"torn{self.number}-{i}" for i in range(2)]
        images = [self.new_image("JPEG") for _ in keys]
        account.rejected[TORN] += len(images)
        pairs = list(zip(keys, images, strict=True))
        return [(f"{k}.jpg", i) for k, i in pairs] + [(f"{k}.txt", b"caption") for k in keys]

    def damaged(self, tar: bytes) -> bytes:
        kind = self.rng.choice(("cut", "flip", "lose"))
        place = self.rng.randrange(len(tar))
        if kind == "cut":
            return tar[:place]
        if kind == "lose":
            return tar[:place] + tar[place + self.rng.randint(1, 2000) :]
        return tar[:place] + bytes([tar[place] ^ (1 << self.rng.randrange(8))]) + tar[place + 1 :]

    def write_table(self, place: Path, name: str, account: Account) -> None:
        """A parquet shard with keys of any type, and columns that mean something else than they are called."""
        rows = self.rng.randint(1, 5)
        keys = self.rng.choice(([f"k{i}" for i in range(rows)], ["same"] * rows, [float(i) for i in range(rows)]))
        images: list[bytes | None] = [self.new_image("PNG") for _ in range(rows)]
        for image in images[1:]:
            account.put(image)
        if self.rng.random() < 0.3:
            images[0] = None
            account.rejected["no image of its key"] += 1
        else:
            account.put(images[0])
        as_struct = self.rng.random() < 0.5
        table = {
            "key": keys, "jpg": [{"bytes": image, "path": None} for image in images] if as_struct else images,
            "caption": ["a caption"] * rows, "sha256": [self.rng.choice(("None", "nan", "0"))] * rows,
            "status": [self.rng.choice(("active", "failed review"))] * rows, "similarity": ["0.5"] * rows,
        }  # fmt: skip
        pq.write_table(pa.table(table), place / f"{name}.parquet", row_group_size=2)

    def write_img2dataset(self, place: Path, name: str, account: Account) -> None:
        """A tar with its metadata: downloads that failed, samples that the tar lost, keys that are numbers."""
        keys = [f"{name}{i:04d}" for i in range(self.rng.randint(1, 4))]
        images = [self.new_image("JPEG") for _ in keys]
        members = [sample(key, image) for key, image in zip(keys, images, strict=True)]
        statuses = ["success"] * len(keys) + ["failed_to_download"]
        account.rejected["failed download"] += 1
        lost = self.rng.random() < 0.2
        if lost:
            account.rejected["not in the tar"] += 1
        for image in images[lost:]:
            account.put(image)
        tar = tar_of([member for some in members[lost:] for member in some])
        (place / f"{name}.tar").write_bytes(tar)
        stated = [*keys, f"{name}9999"]
        table = {"key": [float(key) for key in stated] if self.rng.random() < 0.3 else stated, "status": statuses}
        pq.write_table(pa.table(table), place / f"{name}.parquet")


class ClassMaker(SourceMaker):
    """Makes sources with a folder or a tar for each class."""

    def make(self, folder: Path) -> Account:
        account = Account()
        for name in self.rng.sample(("n01", "n02.x", "cat"), self.rng.randint(1, 2)):
            files = {}
            for path in self.rng.sample(("a", "b 2.0", "b 2.1", "x/a", "y/a"), self.rng.randint(1, 4)):
                for extension in self.rng.sample(sorted(FORMATS), self.rng.choice((1, 1, 2))):
                    image = self.new_image(FORMATS[extension])
                    files[f"{path}.{extension}"] = image
                    account.put(image)
            if self.rng.random() < 0.3:
                files["c.tif"] = b"x"
                account.rejected["image format tif is not read"] += 1
            files["notes.txt"] = b"x"
            self.write(folder / name, files)
        return account

    def write(self, place: Path, files: dict[str, bytes]) -> None:
        if self.rng.random() < 0.5:
            place.parent.mkdir(exist_ok=True)
            place.with_name(f"{place.name}.tar").write_bytes(tar_of(files.items()))
            return
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)


def rows_of(folder: Path, columns: list[str]) -> list[dict]:
    """The rows of all parquet files below a folder."""
    files = sorted(folder.rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]


def item_of(name: str, place: str, label: int | None) -> str:
    return json.dumps([name, place, label])
