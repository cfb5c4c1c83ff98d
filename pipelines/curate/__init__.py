"""Curate: img2dataset shards to clean pictures of one size a file, and everything else set aside with its reason."""

import hashlib
import io
import json
import math
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from pipelines import storage
from pipelines.config import ConfigError, Settings, Uri
from pipelines.datasets import RowWriter, read_rows
from pipelines.images import BadImage, decode_image, encode_png, fit_to_size
from pipelines.pictures import grid_of
from pipelines.shards import Workers, by_name, item_name, map_items
from pipelines.split import is_held_out
from pipelines.steps import Context, Step, StepSettings

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
SCHEMA = pa.schema(
    {
        "key": pa.string(), "image": pa.binary(), "caption": pa.string(), "width": pa.int32(), "height": pa.int32(),
        "bucket": pa.string(), "aesthetic": pa.float32(), "punsafe": pa.float32(), "sha256": pa.string(),
    }
)  # fmt: skip
REJECTED = pa.schema({"key": pa.string(), "reason": pa.string()})


_LARGEST = 1e9  # of a believable score


class Filters(Settings):
    """Rows that fail any of these are rejected; a missing or NaN score fails too."""

    min_aesthetic: float = 4.5
    max_punsafe: float = 0.5
    max_pwatermark: float = 0.8
    min_similarity: float = 0.2
    min_side: int = Field(64, ge=1)
    """Shorter side in pixels, before resizing"""
    max_aspect: float = Field(2.0, ge=1)
    """Longer side over shorter side"""


class CurateSettings(StepSettings):
    source: Uri
    """Folder of img2dataset shards (NAME.tar with NAME.parquet beside it), local or s3://"""
    buckets: list[tuple[int, int]] = [(64, 64)]
    """Sizes (width, height), multiples of 16; each picture goes to the one that crops it least"""
    filters: Filters = Filters()
    held_out_every: int = Field(16, ge=2)
    """One picture in this many is kept out of training"""
    resources: Workers = Workers()


class Rejected(Exception):
    """Why a row is set aside."""


def build(settings: CurateSettings, context: Context) -> dict[str, float]:
    shards = storage.list_files(settings.source, ".tar")
    duplicates = repeated_pictures([metadata_of(shard) for shard in shards])
    make_worker = partial(ShardCurator, settings, context.folder, duplicates)
    reasons: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for summary in map_items(by_name(shards), make_worker, context.folder, settings.resources):
        reasons.update(summary["rejected"])
        kept.update(summary["kept"])
    if not kept["train"] or not kept["held_out"]:
        raise ConfigError(f"curation of {settings.source} kept {dict(kept)} pictures: nothing to train or test on")
    context.tracker.log_table("rejected", {"reason": list(reasons), "rows": list(reasons.values())})
    first = next(read_rows(storage.list_files(context.file("train"), ".parquet")[0], ["image"]))
    context.tracker.log_picture("curated", grid_of([decode_image(data) for data in first["image"]], columns=8))
    return {**{f"kept_{k}": n for k, n in kept.items()}, "rejected": sum(reasons.values()), "shards": len(shards)}


def check(settings: CurateSettings) -> None:
    for width, height in settings.buckets:
        if width % 16 or height % 16 or width < 16 or height < 16:
            raise ConfigError(f"buckets: {width}x{height} is not made of multiples of 16")
    shards = storage.list_files(settings.source, ".tar")
    if not shards:
        raise ConfigError(
            f"source={settings.source!r}: no .tar shards there; point it at img2dataset output, or make the demo's "
            "with `python jobs/make_demo_data.py`"
        )
    try:
        by_name(shards)
    except ValueError as error:
        raise ConfigError(f"source={settings.source!r}: {error}") from None
    metadata = set(storage.list_files(settings.source, ".parquet"))
    for shard in shards:
        if metadata_of(shard) not in metadata:
            raise ConfigError(f"source={settings.source!r}: {shard} has no metadata parquet beside it")


def metadata_of(shard: str) -> str:
    return shard.removesuffix(".tar") + ".parquet"


def repeated_pictures(metadata: list[str]) -> dict[str, str]:
    """sha256 -> the one key that may keep it, for pictures that occur more than once."""
    columns = []
    for uri in metadata:
        filesystem, path = storage.open_filesystem(uri)
        columns.append(pq.read_table(path, columns=["key", "sha256"], filesystem=filesystem))
    table = pa.concat_tables(columns)
    table = table.filter(pc.is_valid(table["sha256"])).group_by("sha256").aggregate([("key", "min"), ("key", "count")])
    table = table.filter(pc.greater(table["key_count"], 1))
    return dict(zip(table["sha256"].to_pylist(), table["key_min"].to_pylist(), strict=True))


class ShardCurator:
    """One tar to `train/`, `held_out/` and `rejected/` parquet files; see `map_items`."""

    def __init__(self, settings: CurateSettings, folder: str, duplicates: dict[str, str]):
        self.settings, self.folder, self.duplicates = settings, folder, duplicates

    def __call__(self, shard: str) -> dict[str, Any]:
        name = item_name(shard)
        rejected, promised = read_metadata(metadata_of(shard))
        kept: Counter[str] = Counter()
        with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
            writers: dict[str, RowWriter] = {}
            for key, members in read_samples(shard):
                promised.discard(key)
                try:
                    row = self.curate(key, members)
                except (Rejected, BadImage) as reason:
                    rejected.append({"key": key, "reason": str(reason)})
                    continue
                split = "held_out" if is_held_out(key, self.settings.held_out_every) else "train"
                target = f"{split}/{name}-{row['bucket']}.parquet"
                if target not in writers:
                    path = Path(scratch) / target.replace("/", "-")
                    writers[target] = stack.enter_context(RowWriter(path, SCHEMA))
                writers[target].add(row)
                kept[split] += 1
            rejected += [{"key": key, "reason": "not in the tar"} for key in sorted(promised)]
            stack.close()
            for target, writer in writers.items():
                storage.put_file(writer.path, storage.join(self.folder, target))
            path = Path(scratch) / "rejected"
            with RowWriter(path, REJECTED) as writer:
                for row in rejected:
                    writer.add(row)
            storage.put_file(path, storage.join(self.folder, "rejected", f"{name}.parquet"))
        return {"kept": kept, "rejected": Counter(row["reason"] for row in rejected)}

    def curate(self, key: str, members: dict[str, bytes]) -> dict[str, Any]:
        """One sample to one row. Raises Rejected or BadImage with the reason."""
        if "unsafe path" in members:
            raise Rejected("unsafe path in tar")
        if "cut off" in members:
            raise Rejected("tar cut off")
        data = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
        if data is None:
            raise Rejected("no picture")
        try:
            record = json.loads(members["json"])
            caption = members["txt"].decode().strip()
        except (KeyError, ValueError, RecursionError):
            raise Rejected("no readable metadata") from None
        if not isinstance(record, dict):
            raise Rejected("no readable metadata")
        if not caption:
            raise Rejected("empty caption")
        self.judge(record)
        # img2dataset hashes what it downloaded, before it encodes anew: only its own hash finds repeated pictures.
        sha256 = str(record.get("sha256") or hashlib.sha256(data).hexdigest())
        if self.duplicates.get(sha256, key) != key:
            raise Rejected("duplicate")
        image = decode_image(data)
        if min(image.size) < self.settings.filters.min_side:
            raise Rejected("too small")
        if max(image.size) > self.settings.filters.max_aspect * min(image.size):
            raise Rejected("too elongated")
        width, height = best_bucket(image.width, image.height, self.settings.buckets)
        return {
            "key": key, "image": encode_png(fit_to_size(image, width, height)), "caption": caption, "width": width,
            "height": height, "bucket": f"{width}x{height}", "aesthetic": record["aesthetic"],
            "punsafe": record["punsafe"], "sha256": sha256,
        }  # fmt: skip

    def judge(self, record: dict[str, Any]) -> None:
        """Raises Rejected unless every score is a number on the right side of its threshold."""
        f = self.settings.filters
        limits = {
            "aesthetic": (f.min_aesthetic, math.inf),
            "punsafe": (-math.inf, f.max_punsafe),
            "pwatermark": (-math.inf, f.max_pwatermark),
            "similarity": (f.min_similarity, math.inf),
        }
        for name, (low, high) in limits.items():
            score = record.get(name)
            if not isinstance(score, float | int) or not -_LARGEST < score < _LARGEST:  # NaN is no number either
                raise Rejected(f"no {name} score")
            if not low <= score <= high:
                raise Rejected(f"{name} {'below' if score < low else 'above'} the threshold")


def best_bucket(width: int, height: int, buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """The size of nearest aspect ratio: the one that crops least."""
    return min(buckets, key=lambda b: abs(math.log(b[0] / b[1]) - math.log(width / height)))


def read_metadata(metadata: str) -> tuple[list[dict[str, str]], set[str]]:
    """(rejections of the rows that img2dataset could not fetch, keys of those that the tar must hold)."""
    filesystem, path = storage.open_filesystem(metadata)
    rows = pq.read_table(path, columns=["key", "status"], filesystem=filesystem).to_pylist()
    failed = [{"key": r["key"], "reason": "failed download"} for r in rows if r["status"] != "success"]
    return failed, {r["key"] for r in rows if r["status"] == "success"}


def read_samples(shard: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Stream a webdataset tar (plain or compressed): (key, {extension: bytes}) for adjacent members of one key.

    Nothing is ever unpacked to disk. A name that leads out of the tar yields a sample {"unsafe path": b""}; a tar
    cut off in the middle ends with a sample {"cut off": b""}. A store that fails raises: its pictures are not lost.
    """
    filesystem, path = storage.open_filesystem(shard)
    current: str | None = None
    members: dict[str, bytes] = {}
    with filesystem.open_input_stream(path, compression=None) as stream:
        try:
            with tarfile.open(fileobj=io.BufferedReader(stream), mode="r|*") as tar:
                for member in tar:
                    if member.name.startswith("/") or ".." in member.name.split("/") or not member.isreg():
                        if not member.isdir():
                            yield _printable(member.name), {"unsafe path": b""}
                        continue
                    key, _, extension = _printable(member.name).rpartition("/")[2].partition(".")
                    if key != current and current is not None:
                        yield current, members
                        members = {}
                    file = tar.extractfile(member)
                    current = key
                    members[extension.lower()] = file.read() if file else b""
        except (tarfile.TarError, EOFError):
            current, members = current or item_name(shard), {**members, "cut off": b""}
    if current is not None:
        yield current, members


def _printable(name: str) -> str:
    """Names in a tar are bytes; those that are not UTF-8 cannot be written to parquet as they are."""
    return name.encode("utf-8", "replace").decode()


STEP = Step("curate", CurateSettings, build, check=check, contents=("source",))
