"""Encode step: curated images to latent tokens and captions to text embeddings, so that training loads no encoder.

The files have the rows of the curated files: `latents/SPLIT/NAME.parquet` has key and latents (N, d), for edits also
reference_latents (R, N, d) of their R reference images; `text/SPLIT/NAME.parquet` has key, caption and text (T, E), by
default without padding. `pipelines.data.tensors` describes the format. Each kind is a separate pass over the files,
with its own pool of actors. Either kind can be encoded on the fly during training instead.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch import Tensor

from asymflow.models.latent import TextEncoder
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.base_models import (
    check_base,
    check_padding,
    check_text_tokens,
    load_image_encoder,
    load_text_encoder,
    read_geometry,
)
from pipelines.core.config import ConfigError
from pipelines.core.map_items import by_name, map_items
from pipelines.core.step import Context, Step
from pipelines.data.config import EncodeSettings
from pipelines.data.datasets import decode_batch, has_references, read_images, read_rows, rows_by_group
from pipelines.data.tensors import open_writer, ragged_field, tensor_field, to_ragged_array, to_tensor_array

KEY, CAPTION = pa.field("key", pa.string()), pa.field("caption", pa.string())
UNCONDITIONAL = "unconditional.safetensors"


def check(settings: EncodeSettings) -> None:
    """Check that the base has an image and a text encoder. Raises ConfigError."""
    check_base(settings.base, images=True, text=True)
    check_padding(settings.base, settings.text_padding)
    check_text_tokens(settings.base, settings.max_text_tokens)


def check_inputs(settings: EncodeSettings, inputs: Mapping[str, Artifact]) -> None:
    """Check that bucket sizes are multiples of a token's size, and captions are of the curated artifact.

    Raises:
        ConfigError: One of them is not.
    """
    curated, captions = inputs["curated"], inputs.get("captions")
    side = read_geometry(settings.base).pixels_per_token
    for width, height in curated.manifest["config"]["buckets"]:
        if width % side or height % side:
            raise ConfigError(f"curated: its buckets hold {width}x{height}; tokens of this base are {side}x{side}")
    if captions and captions.manifest["inputs"]["curated"] != curated.id:
        raise ConfigError("captions: made from another curated artifact than `curated`; run the caption step on it")


def output_file(folder: str, kind: str, shard: str) -> str:
    """Return the URI of the output file of a `kind` (latents, text) for a curated file."""
    path = PurePosixPath(shard)
    return storage.join(folder, kind, path.parent.name, path.name)


def write_tables(uri: str, tables: Iterator[pa.Table]) -> dict[str, int]:
    """Write tables to a parquet file, one row group each; return the counts of rows and bytes.

    Raises:
        ValueError: There is no table.
    """
    counts = {"rows": 0, "bytes": 0}

    def write(local: Path) -> None:
        first = next(tables, None)
        if first is None:
            raise ValueError(f"{uri}: no rows to write")
        with open_writer(local, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table, row_group_size=table.num_rows)
                counts["rows"] += table.num_rows
        counts["bytes"] = local.stat().st_size

    storage.write_file(uri, write)
    return counts


class LatentWorker:
    """Worker of `map_items` that writes the latents of one curated file."""

    def __init__(self, settings: EncodeSettings, folder: str):
        self.folder = folder
        self.encoder = load_image_encoder(settings.base, settings.resources.latents.device)

    def __call__(self, shard: str) -> dict[str, int]:
        """Encode the images of a curated file; return the counts of rows and bytes."""
        return write_tables(output_file(self.folder, "latents", shard), self.tables(shard))

    def tables(self, shard: str) -> Iterator[pa.Table]:
        """Yield a table with the latents of each row group."""
        for group in range(len(rows_by_group(shard))):
            keys: list[str] = []
            parts: list[Tensor] = []
            for batch in read_images(shard, range(group, group + 1)):
                keys += batch.keys
                parts.append(self.encode(batch.images, shard))
            found = {"latents": torch.cat(parts)}
            if has_references(shard):
                found["reference_latents"] = self.encode_references(shard, group)
            schema = pa.schema([KEY, *(tensor_field(name, z.shape[1:]) for name, z in found.items())])
            yield pa.table([keys, *map(to_tensor_array, found.values())], schema=schema)

    def encode_references(self, shard: str, group: int) -> Tensor:
        """Encode the reference images of a row group to latent tokens (B, R, N, d), in batches of one row."""
        (rows,) = read_rows(shard, ["references"], range(group, group + 1))
        return torch.stack([self.encode(decode_batch(encoded), shard) for encoded in rows["references"]])

    def encode(self, images: Tensor, shard: str) -> Tensor:
        """Encode images (B, 3, H, W) to latent tokens (B, N, d), bfloat16 on the CPU.

        Raises:
            ValueError: The size of the images is not a multiple of a token's size.
        """
        height, width = images.shape[-2:]
        side = self.encoder.pixels_per_token
        if height % side or width % side:
            raise ValueError(f"{shard}: images of {width}x{height} do not divide into tokens of {side}x{side}")
        return self.encoder.encode(images).to("cpu", torch.bfloat16)


class TextWorker:
    """Worker of `map_items` that writes the captions of one curated file and, if configured, their text embeddings.

    For the item UNCONDITIONAL it writes the embedding of the empty caption.
    """

    def __init__(self, settings: EncodeSettings, captions: str, folder: str):
        self.settings, self.captions, self.folder = settings, captions, folder

    @cached_property
    def encoder(self) -> TextEncoder:
        """Load the text encoder on first use: with text=on_the_fly only one actor needs it, for the empty caption."""
        settings = self.settings
        device = settings.resources.text.device
        return load_text_encoder(settings.base, device, settings.max_text_tokens, settings.text_padding)

    def __call__(self, item: str) -> dict[str, int]:
        """Encode the captions of a curated file, or the empty one; return the counts of rows, bytes and tokens."""
        if item == UNCONDITIONAL:
            empty = {"text": self.encoder.encode([""])[0].to("cpu", torch.bfloat16)}
            storage.write_bytes(storage.join(self.folder, UNCONDITIONAL), save(empty))
            return {}
        self.tokens = 0
        return {**write_tables(output_file(self.folder, "text", item), self.tables(item)), "tokens": self.tokens}

    def tables(self, shard: str) -> Iterator[pa.Table]:
        """Yield a table with the captions, and their embeddings if stored, of each row group."""
        for keys, captions in self.rows(shard):
            if self.settings.text == "on_the_fly":
                yield pa.table([keys, captions], schema=pa.schema([KEY, CAPTION]))
                continue
            embeddings = self.encoder.encode(captions)
            self.tokens += sum(len(e) for e in embeddings)
            schema = pa.schema([KEY, CAPTION, ragged_field("text", self.encoder.width)])
            yield pa.table([keys, captions, to_ragged_array(embeddings)], schema=schema)

    def rows(self, shard: str) -> Iterator[tuple[list[str], list[str]]]:
        """Yield (keys, captions) of each curated row group. Raises ValueError if the captions are of other rows."""
        if not self.captions:
            yield from ((rows["key"], rows["caption"]) for rows in read_rows(shard, ["key", "caption"]))
            return
        path = PurePosixPath(shard)
        file = storage.join(self.captions, path.parent.name, path.name)
        written = (row for g in read_rows(file, ["key", "caption"]) for row in zip(g["key"], g["caption"], strict=True))
        for group in read_rows(shard, ["key"]):  # the row groups of the other file may differ
            rows = list(islice(written, len(group["key"])))
            if [key for key, _ in rows] != group["key"]:
                raise ValueError(f"{file}: its rows are not those of {shard}; run the caption step again")
            yield group["key"], [caption for _, caption in rows]
        if next(written, None):
            raise ValueError(f"{file}: it has more rows than {shard}; run the caption step again")


def build(settings: EncodeSettings, context: Context) -> dict[str, float]:
    """Encode all curated files; see `pipelines.core.step.Step`."""
    curated, captions = context.inputs["curated"], context.inputs.get("captions")
    files = by_name(curated.files("train", ".parquet") + curated.files("held_out", ".parquet"))
    folder, pools = context.folder, settings.resources
    items = {"unconditional": UNCONDITIONAL, **files}
    make_text_worker = partial(TextWorker, settings, captions.uri if captions else "", folder)
    text = total(map_items(items, make_text_worker, folder, pools.text, stage="text"))
    metrics = {"pictures": text["rows"], "text_bytes_per_picture": text["bytes"] / text["rows"]}
    if settings.text == "stored":
        metrics["text_tokens_mean"] = text["tokens"] / text["rows"]
    if settings.latents == "stored":
        make_worker = partial(LatentWorker, settings, folder)
        latents = total(map_items(files, make_worker, folder, pools.latents, stage="latents"))
        metrics["latent_bytes_per_picture"] = latents["bytes"] / latents["rows"]
    return metrics


def total(summaries: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Sum the workers' counts over all summaries."""
    sums: Counter[str] = Counter()
    for summary in summaries:
        sums.update({name: number for name, number in summary.items() if name != "item"})
    return sums


def load_unconditional(artifact: Artifact) -> Tensor:
    """Load the embedding (T, E) of the empty caption, bfloat16."""
    return load(storage.read_bytes(artifact.file(UNCONDITIONAL)))["text"]


def hash_overrides(settings: EncodeSettings, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Return the precision of each encoder that this step runs; see `pipelines.core.step.Step`."""
    pools = {"text": settings.resources.text}  # always runs, for the empty caption
    if settings.latents == "stored":
        pools["latents"] = settings.resources.latents
    return {f"resources.{name}.precision": pool.precision for name, pool in pools.items()}


STEP = Step(
    "encode",
    EncodeSettings,
    build,
    inputs=EncodeSettings.inputs,
    check=check,
    check_inputs=check_inputs,
    contents=("base",),
    hash_overrides=hash_overrides,
)
