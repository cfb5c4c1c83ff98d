"""First pass of curation: filter and resize one shard, stage its images by size, index their hashes, list rejects."""

import hashlib
import json
import math
import re
from collections import Counter
from contextlib import ExitStack
from typing import Any

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.core import storage
from pipelines.core.scratch import scratch_folder
from pipelines.data.curate.caption_table import CaptionTable
from pipelines.data.curate.config import CurateSettings, Encoding
from pipelines.data.curate.filters import (
    Rejected,
    check_caption,
    check_dimensions,
    check_scores,
    read_label,
    read_scores,
)
from pipelines.data.curate.image_lists import LIST_ENDING
from pipelines.data.curate.report import Histograms
from pipelines.data.curate.samples import Sample, SampleKeys, explain_reference
from pipelines.data.curate.shard_reader import read_class, read_shard
from pipelines.data.curate.source_files import path_in_source
from pipelines.data.curate.tar_reader import TornSamples
from pipelines.data.datasets import RowWriter, has_references
from pipelines.data.images import BadImage, crop_as_adm, decode_image, encode_image, fit_to_size, is_plain
from pipelines.data.split import is_held_out

SCHEMA = pa.schema(
    {
        "key": pa.string(), "image": pa.binary(), "caption": pa.string(), "width": pa.int32(), "height": pa.int32(),
        "bucket": pa.string(), "aesthetic": pa.float32(), "punsafe": pa.float32(), "sha256": pa.string(),
        "label": pa.int32(),
    }
)  # fmt: skip
EDITS = SCHEMA.append(pa.field("references", pa.list_(pa.binary())))
"""Rows of edits: also the encoded reference images, of the image's size"""
REJECTED = pa.schema({"key": pa.string(), "reason": pa.string(), "duplicate_of": pa.string()})
INDEX = pa.schema(
    {
        "key": pa.string(), "target": pa.string(), "key_hash": pa.uint64(), "sha256": pa.uint64(),
        "phash": pa.uint64(), "pixels": pa.int64(),
    }
)  # fmt: skip
_SHA256 = re.compile("[0-9a-fA-F]{64}")
STAGED = ".staged"
STAGED_GROUP = 8  # rows per row group; one file per size is open at once, each with one group in memory


def staged_file(folder: str, name: str, target: str) -> str:
    """Return the URI of a shard's staged rows of a target, SPLIT/WIDTHxHEIGHT."""
    return storage.join(folder, STAGED, target, f"{name}.parquet")


def target_of(split: str, width: int, height: int, references: int) -> str:
    """Return the target of a row, SPLIT/WIDTHxHEIGHT, for an edit with +R for R reference images."""
    return f"{split}/{width}x{height}" + (f"+{references}" if references else "")


def schema_of(target: str) -> pa.Schema:
    """Return the schema of a target's rows."""
    return EDITS if has_references(target) else SCHEMA


def index_file(folder: str, name: str) -> str:
    """Return the URI of a shard's index."""
    return storage.join(folder, STAGED, "index", f"{name}.parquet")


class ShardCurator:
    """Worker of `map_items` that writes one shard's staged files, their index, and `rejected/NAME.parquet`.

    Items are JSON: [NAME, address, label], where the label is null unless the shard is one class.

    Args:
        settings: Settings of the step.
        folder: Folder of the artifact.
        captions: Captions that replace those of the source, if configured.
    """

    def __init__(self, settings: CurateSettings, folder: str, captions: CaptionTable | None = None):
        self.settings, self.folder, self.captions = settings, folder, captions

    def __call__(self, item: str) -> dict[str, Any]:
        """Curate a shard; return counts of kept rows by target and rejected rows by reason, and the histograms."""
        name, shard, label = json.loads(item)
        try:
            return self._curate_shard(name, shard, label, frozenset())
        except TornSamples as found:  # nothing has been stored yet
            return self._curate_shard(name, shard, label, found.keys)

    def _curate_shard(self, name: str, shard: str, label: int | None, torn: frozenset[str]) -> dict[str, Any]:
        kept: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        histograms = Histograms()
        columns, by_class = self.settings.columns, label is not None
        is_list = shard.endswith(LIST_ENDING)
        path = "" if is_list else path_in_source(self.settings.source, shard)
        new_key = SampleKeys(name if by_class else path, by_class)
        writers: dict[str, RowWriter] = {}
        with scratch_folder() as scratch, ExitStack() as stack:

            def add(uri: str, schema: pa.Schema, row: dict[str, Any]) -> None:
                if uri not in writers:
                    file = scratch / str(len(writers))
                    writers[uri] = stack.enter_context(RowWriter(file, schema, STAGED_GROUP))
                writers[uri].add(row)

            rejected = storage.join(self.folder, "rejected", f"{name}.parquet")
            for sample in read_class(shard) if by_class else read_shard(shard, columns, torn):
                sample.key = new_key(sample.key)
                try:
                    row, index = self.curate(sample, histograms, label)
                except (Rejected, BadImage) as reason:
                    add(rejected, REJECTED, {"key": sample.key, "reason": str(reason)})
                    reasons[str(reason)] += 1
                    continue
                add(staged_file(self.folder, name, index["target"]), schema_of(index["target"]), row)
                add(index_file(self.folder, name), INDEX, index)
                kept[index["target"]] += 1
            for uri, writer in writers.items():
                writer.close()
                storage.put_file(writer.path, uri)
        return {"kept": kept, "rejected": reasons, "histograms": histograms.counts}

    def curate(
        self, sample: Sample, histograms: Histograms, label: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Curate one sample.

        Args:
            sample: The sample; its key is replaced by its global key if that is configured.
            histograms: Counts its scores and sizes.
            label: Label of the shard's class, if it has one.

        Returns:
            The curated row, and its row in the index.

        Raises:
            Rejected: It has a problem or fails a filter.
            BadImage: It cannot be decoded.
        """
        settings = self.settings
        if sample.problem:
            raise Rejected(sample.problem)
        if settings.columns.global_key:
            if not sample.global_key:
                raise Rejected("no global key")
            sample.key = sample.global_key
        found = self.captions.caption_of(sample, settings.columns) if self.captions else sample.caption
        caption = " ".join(found.split())
        scores = read_scores(sample.record, settings.columns)
        histograms.add("read", scores)
        check_caption(caption, settings.filters)
        check_scores(scores, settings.filters)
        image = decode_image(sample.image)
        sizes = {"shorter side": float(min(image.size)), "aspect": max(image.size) / min(image.size)}
        histograms.add("read", sizes)
        check_dimensions(image, settings.filters)
        if self.settings.labels == "column":
            label = read_label(sample.record, self.settings.columns)
        width, height = best_bucket(image.width, image.height, settings.buckets)
        references = self._references(sample, width, height)
        histograms.add("kept", scores | sizes)
        fitted = self._fit(image, width, height)
        # img2dataset hashes the download before it re-encodes the image, so only its hash finds repeated images
        given = sample.record.get(settings.columns.sha256)
        if not isinstance(given, str) or not _SHA256.fullmatch(given):
            given = hashlib.sha256(sample.image).hexdigest()
        sha256 = given.lower()
        split = "held_out" if is_held_out(sample.key, settings.held_out_every) else "train"
        row = {
            "key": sample.key, "image": stored_image(sample.image, image, fitted, settings.encoding),
            "caption": caption, "width": width, "height": height, "bucket": f"{width}x{height}",
            "aesthetic": scores.get("aesthetic"), "punsafe": scores.get("punsafe"), "sha256": sha256, "label": label,
        }  # fmt: skip
        index = {
            "key": sample.key, "target": target_of(split, width, height, len(references)),
            "key_hash": _hash64(sample.key), "sha256": _hash64(sha256), "phash": perceptual_hash(fitted),
            "pixels": image.width * image.height,
        }  # fmt: skip
        if references:  # duplicates are edits with equal files: resemblance would mix up edits of one image
            files = [hashlib.sha256(data).hexdigest() for data in (sample.image, *sample.references)]
            row["references"] = references
            index["sha256"] = index["phash"] = _hash64(" ".join(files))
        return row, index

    def _fit(self, image: Image.Image, width: int, height: int) -> Image.Image:
        if self.settings.crop == "adm":
            return crop_as_adm(image, width)
        return fit_to_size(image, width, height, self.settings.linear_light)

    def _references(self, sample: Sample, width: int, height: int) -> list[bytes]:
        """Return the encoded reference images, resized as the image. Raises Rejected if one cannot be decoded."""
        encoding = self.settings.encoding
        try:
            images = [(data, decode_image(data)) for data in sample.references]
        except BadImage as error:
            raise Rejected(explain_reference(str(error))) from None
        return [stored_image(data, image, self._fit(image, width, height), encoding) for data, image in images]


def stored_image(data: bytes, image: Image.Image, fitted: Image.Image, encoding: Encoding) -> bytes:
    """Return the file to store: the source's own if it has the same pixels, else the encoded image.

    Args:
        data: The source's file.
        image: Its image.
        fitted: The same image, resized and cropped.
        encoding: The encoding.
    """
    if encoding.keeps_sources and image.size == fitted.size and is_plain(data):
        return data
    return encode_image(fitted, encoding.format, encoding.quality, encoding.effort)


def best_bucket(width: int, height: int, buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the size that crops an image least, and of equal ones the largest that does not enlarge the image.

    An image of aspect ratio a that is resized to cover a size of ratio b loses 1 - min(a, b) / max(a, b) of its area.
    """
    ratio = width / height
    losses = [1 - min(ratio, w / h) / max(ratio, w / h) for w, h in buckets]
    best = [bucket for bucket, loss in zip(buckets, losses, strict=True) if loss == min(losses)]
    covered = [(w, h) for w, h in best if w <= width and h <= height]
    return max(covered, key=math.prod) if covered else min(best, key=math.prod)


def perceptual_hash(image: Image.Image) -> int:
    """Compute a 64-bit hash from the lowest cosine frequencies, robust to changes of size, quality and brightness."""
    gray = image.convert("L").resize((64, 64), Image.Resampling.BOX)  # cheap first downscaling
    bits = imagehash.phash(gray).hash.flatten()
    return int(np.packbits(bits).view(">u8")[0])


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
