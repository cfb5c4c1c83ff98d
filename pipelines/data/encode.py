"""Encode: curated pictures to latent tokens, captions to text embeddings, so that training loads no encoder.

Row for row like the curated files: `latents/SPLIT/NAME.parquet` holds key and latents (N, d), `text/SPLIT/NAME.parquet`
key, caption and text (T, E), by default without padding; see `pipelines.data.tensors` for how any reader gets at the
numbers. Each kind is a pass of its own over the files, by a pool of its own size. Either may be left to the training's
own encoders.
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
from pipelines.core.base_models import check_base, check_padding, load_image_encoder, load_text_encoder, read_geometry
from pipelines.core.config import ConfigError
from pipelines.core.map_items import by_name, map_items
from pipelines.core.step import Context, Step
from pipelines.data.config import EncodeSettings
from pipelines.data.datasets import read_images, read_rows, rows_by_group
from pipelines.data.tensors import open_writer, ragged_field, tensor_field, to_ragged_array, to_tensor_array

KEY, CAPTION = pa.field("key", pa.string()), pa.field("caption", pa.string())
UNCONDITIONAL = "unconditional.safetensors"


def check(settings: EncodeSettings) -> None:
    check_base(settings.base, images=True, text=True)
    check_padding(settings.base, settings.text_padding)


def check_inputs(settings: EncodeSettings, inputs: Mapping[str, Artifact]) -> None:
    """The pictures divide into tokens, and the captions are those of these pictures."""
    curated, captions = inputs["curated"], inputs.get("captions")
    side = read_geometry(settings.base).pixels_per_token
    for width, height in curated.manifest["config"]["buckets"]:
        if width % side or height % side:
            raise ConfigError(f"curated: its buckets hold {width}x{height}; tokens of this base are {side}x{side}")
    if captions and captions.manifest["inputs"]["curated"] != curated.id:
        raise ConfigError("captions: made from another curated artifact than `curated`; run the caption step on it")


def output_file(folder: str, kind: str, shard: str) -> str:
    """The file of `kind` (latents, text) that belongs to a curated one."""
    path = PurePosixPath(shard)
    return storage.join(folder, kind, path.parent.name, path.name)


def write_tables(uri: str, tables: Iterator[pa.Table]) -> dict[str, int]:
    """A parquet file with a row group a table; its numbers of rows and bytes. Raises ValueError without a table."""
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
    """One curated file to its file of latents; see `map_items`."""

    def __init__(self, settings: EncodeSettings, folder: str):
        self.folder = folder
        self.encoder = load_image_encoder(settings.base, settings.resources.latents.device)

    def __call__(self, shard: str) -> dict[str, int]:
        return write_tables(output_file(self.folder, "latents", shard), self.tables(shard))

    def tables(self, shard: str) -> Iterator[pa.Table]:
        """A row group at a time."""
        for group in range(len(rows_by_group(shard))):
            keys: list[str] = []
            parts: list[Tensor] = []
            for pictures in read_images(shard, range(group, group + 1)):
                keys += pictures.keys
                parts.append(self.encode(pictures.images, shard))
            z_0 = torch.cat(parts)
            schema = pa.schema([KEY, tensor_field("latents", z_0.shape[1:])])
            yield pa.table([keys, to_tensor_array(z_0)], schema=schema)

    def encode(self, images: Tensor, shard: str) -> Tensor:
        """(B, 3, H, W) -> (B, N, d) bfloat16, off the device. Raises ValueError for sizes that do not divide."""
        height, width = images.shape[-2:]
        side = self.encoder.pixels_per_token
        if height % side or width % side:
            raise ValueError(f"{shard}: pictures of {width}x{height} do not divide into tokens of {side}x{side}")
        return self.encoder.encode(images).to("cpu", torch.bfloat16)


class TextWorker:
    """One curated file to its file of captions and, unless they are to be encoded on the fly, their embeddings.

    The item UNCONDITIONAL is the embedding of the empty caption. See `map_items`.
    """

    def __init__(self, settings: EncodeSettings, captions: str, folder: str):
        self.settings, self.captions, self.folder = settings, captions, folder

    @cached_property
    def encoder(self) -> TextEncoder:
        """Loaded when it is needed: on the fly, one actor encodes the empty caption and the others nothing."""
        settings = self.settings
        device = settings.resources.text.device
        return load_text_encoder(settings.base, device, settings.max_text_tokens, settings.text_padding)

    def __call__(self, item: str) -> dict[str, int]:
        if item == UNCONDITIONAL:
            empty = {"text": self.encoder.encode([""])[0].to("cpu", torch.bfloat16)}
            storage.write_bytes(storage.join(self.folder, UNCONDITIONAL), save(empty))
            return {}
        self.tokens = 0
        return {**write_tables(output_file(self.folder, "text", item), self.tables(item)), "tokens": self.tokens}

    def tables(self, shard: str) -> Iterator[pa.Table]:
        """A row group at a time."""
        for keys, captions in self.rows(shard):
            if self.settings.text == "on_the_fly":
                yield pa.table([keys, captions], schema=pa.schema([KEY, CAPTION]))
                continue
            embeddings = self.encoder.encode(captions)
            self.tokens += sum(len(e) for e in embeddings)
            schema = pa.schema([KEY, CAPTION, ragged_field("text", self.encoder.width)])
            yield pa.table([keys, captions, to_ragged_array(embeddings)], schema=schema)

    def rows(self, shard: str) -> Iterator[tuple[list[str], list[str]]]:
        """Keys and captions of the curated row groups. Raises ValueError where the captions are of other rows."""
        if not self.captions:
            yield from ((rows["key"], rows["caption"]) for rows in read_rows(shard, ["key", "caption"]))
            return
        path = PurePosixPath(shard)
        file = storage.join(self.captions, path.parent.name, path.name)
        written = (row for g in read_rows(file, ["key", "caption"]) for row in zip(g["key"], g["caption"], strict=True))
        for group in read_rows(shard, ["key"]):  # the other file may be cut into groups elsewhere
            rows = list(islice(written, len(group["key"])))
            if [key for key, _ in rows] != group["key"]:
                raise ValueError(f"{file}: its rows are not those of {shard}; run the caption step again")
            yield group["key"], [caption for _, caption in rows]
        if next(written, None):
            raise ValueError(f"{file}: it has more rows than {shard}; run the caption step again")


def build(settings: EncodeSettings, context: Context) -> dict[str, float]:
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
    """Sums of the workers' numbers."""
    sums: Counter[str] = Counter()
    for summary in summaries:
        sums.update({name: number for name, number in summary.items() if name != "item"})
    return sums


def load_unconditional(artifact: Artifact) -> Tensor:
    """The embedding (T, E) of the empty caption, bfloat16."""
    return load(storage.read_bytes(artifact.file(UNCONDITIONAL)))["text"]


def decides(settings: EncodeSettings, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """The precision of the encoders that run here."""
    pools = {"text": settings.resources.text}  # always: of the empty caption
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
    decides=decides,
)
