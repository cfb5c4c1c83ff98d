"""Small files of two sizes, as the curate and encode steps write them, and their batches; latents are random."""

import random
import threading
import time
import zlib
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch
from PIL import Image

from pipelines.core import storage
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter, read_rows
from pipelines.data.embeddings import Source, StoredLatents, StoredText
from pipelines.data.encode import CAPTION, KEY, write_tables
from pipelines.data.images import encode_png
from pipelines.data.tensors import ragged_field, tensor_field, to_ragged_array, to_tensor_array
from pipelines.train.finetune.batches import Batch, BatchLoader, NoiseSettings
from pipelines.train.row_groups import list_row_groups
from pipelines.train.sample_order import SampleOrder

SIZES = {"32x32-00000": 22, "32x32-00001": 13, "48x32-00000": 11}  # rows; 46
ROWS, GROUP, BATCH = 46, 4, 6
STEPS = 6 + 2  # of an epoch: 35 and 11 rows
UNCONDITIONAL = torch.full((2, 8), 0.5).bfloat16()


def write_curated(file: Path, rows: int, width: int, height: int) -> None:
    with RowWriter(file, SCHEMA, GROUP) as writer:
        for i in range(rows):
            noise = random.Random(f"{file.stem} {i}").randbytes(3 * width * height)
            image = encode_png(Image.frombytes("RGB", (width, height), noise))
            caption = " ".join(["picture", str(i), "again"][: 1 + i % 3])
            key = f"{file.stem}-{i}"
            writer.add({"key": key, "image": image, "caption": caption, "width": width, "height": height})


def write_encoded(curated: Path, latents: Path, text: Path) -> None:
    """Write random latents and embeddings, row group by row group."""
    generator = torch.Generator().manual_seed(zlib.crc32(curated.name.encode()))
    schema_of_text = pa.schema([KEY, CAPTION, ragged_field("text", 8)])
    tables: tuple[list, list] = [], []
    for group in read_rows(str(curated), ["key", "caption", "width", "height"]):
        keys, tokens = group["key"], group["width"][0] * group["height"][0] // 256
        z_0 = torch.randn(len(keys), tokens, 128, generator=generator)
        tables[0].append(
            pa.table([keys, to_tensor_array(z_0)], schema=pa.schema([KEY, tensor_field("latents", z_0.shape[1:])]))
        )
        embeddings = [torch.randn(len(c.split()), 8, generator=generator) for c in group["caption"]]
        tables[1].append(pa.table([keys, group["caption"], to_ragged_array(embeddings)], schema=schema_of_text))
    write_tables(str(latents), iter(tables[0]))
    write_tables(str(text), iter(tables[1]))


def files_in(folder: Path, kind: str) -> list[str]:
    return storage.list_files(str(folder / kind), ".parquet")


def loader(
    folder: Path,
    rank: int = 0,
    workers: int = 1,
    text: Source | None = None,
    latents: Source | None = None,
    dropout: float = 0.0,
    **options,
) -> BatchLoader:
    groups = list_row_groups(*(files_in(folder, kind) for kind in ("curated", "latents", "text")))
    sources, noise = (text or StoredText(), latents or StoredLatents()), NoiseSettings(0.0, 1.0, 3.0, dropout)
    return BatchLoader(SampleOrder(groups, 0, 2), BATCH, rank, workers, *sources, UNCONDITIONAL, noise, **options)


def steps(loader: BatchLoader, first: int, count: int, micro_batch: int = BATCH) -> list[list[Batch]]:
    return list(islice(loader.from_step(first, micro_batch), count))


def background() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("rows", "batches"))]


def assert_background_ends() -> None:
    deadline = time.monotonic() + 10
    while background():
        assert time.monotonic() < deadline, background()
        time.sleep(0.01)
