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
from pipelines.data.curate.shard import EDITS, SCHEMA
from pipelines.data.datasets import RowWriter, has_references, read_rows
from pipelines.data.embeddings import LatentSource, Source, StoredLatents, StoredText
from pipelines.data.encode import CAPTION, KEY, write_tables
from pipelines.data.images import encode_png
from pipelines.data.tensors import ragged_field, tensor_field, to_ragged_array, to_tensor_array
from pipelines.train.finetune.batches import Batch, BatchLoader, NoiseSettings
from pipelines.train.mixed_order import make_order
from pipelines.train.row_groups import list_row_groups

SIZES = {"32x32-00000": 22, "32x32-00001": 13, "48x32-00000": 11}  # rows; 46
ROWS, GROUP, BATCH = 46, 4, 6
STEPS = 6 + 2  # of an epoch: 35 and 11 rows
UNCONDITIONAL = torch.full((2, 8), 0.5).bfloat16()


def write_curated(file: Path, rows: int, width: int, height: int, references: int = 0) -> None:
    with RowWriter(file, EDITS if references else SCHEMA, GROUP) as writer:
        for i in range(rows):
            image, *others = (random_image(f"{file.stem} {i}{'r' * n}", width, height) for n in range(1 + references))
            caption = " ".join(["picture", str(i), "again"][: 1 + i % 3])
            key = f"{file.stem}-{i}"
            row = {"key": key, "image": image, "caption": caption, "width": width, "height": height}
            writer.add({**row, "references": others})


def random_image(seed: str, width: int, height: int) -> bytes:
    return encode_png(Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height)))


def write_encoded(curated: Path, latents: Path, text: Path) -> None:
    """Write random latents and embeddings, row group by row group."""
    generator = torch.Generator().manual_seed(zlib.crc32(curated.name.encode()))
    schema_of_text = pa.schema([KEY, CAPTION, ragged_field("text", 8)])
    tables: tuple[list, list] = [], []
    names = ["key", "caption", "width", "height", *(["references"] if has_references(str(curated)) else [])]
    for group in read_rows(str(curated), names):
        keys, tokens = group["key"], group["width"][0] * group["height"][0] // 256
        z_0 = torch.randn(len(keys), tokens, 128, generator=generator)
        found = {"latents": z_0}
        if "references" in group:
            shape = (len(keys), len(group["references"][0]), tokens, 128)
            found["reference_latents"] = torch.randn(shape, generator=generator)
        schema = pa.schema([KEY, *(tensor_field(name, z.shape[1:]) for name, z in found.items())])
        tables[0].append(pa.table([keys, *map(to_tensor_array, found.values())], schema=schema))
        embeddings = [torch.randn(len(c.split()), 8, generator=generator) for c in group["caption"]]
        tables[1].append(pa.table([keys, group["caption"], to_ragged_array(embeddings)], schema=schema_of_text))
    write_tables(str(latents), iter(tables[0]))
    write_tables(str(text), iter(tables[1]))


def write_files(folder: Path, rows_of: dict[str, int]) -> Path:
    """Write curated files, whose names are as curate's, and what encode makes of them."""
    for name, rows in rows_of.items():
        files = [folder / kind / f"{name}.parquet" for kind in ("curated", "latents", "text")]
        files[0].parent.mkdir(exist_ok=True)
        size, _, references = name.partition("-")[0].partition("+")
        width, height = map(int, size.split("x"))
        write_curated(files[0], rows, width, height, int(references or 0))
        write_encoded(*files)
    return folder


def files_in(folder: Path, kind: str) -> list[str]:
    return storage.list_files(str(folder / kind), ".parquet")


def loader(
    folder: Path,
    rank: int = 0,
    workers: int = 1,
    text: Source | None = None,
    latents: LatentSource | None = None,
    dropout: float = 0.0,
    edit_share: float | None = None,
    **options,
) -> BatchLoader:
    groups = list_row_groups(*(files_in(folder, kind) for kind in ("curated", "latents", "text")))
    sources, noise = (text or StoredText(), latents or StoredLatents()), NoiseSettings(0.0, 1.0, 3.0, dropout)
    order = make_order(groups, 0, 2, edit_share)
    return BatchLoader(order, BATCH, rank, workers, *sources, UNCONDITIONAL, noise, **options)


def steps(loader: BatchLoader, first: int, count: int, micro_batch: int = BATCH) -> list[list[Batch]]:
    return list(islice(loader.from_step(first, micro_batch), count))


def background() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("rows", "batches"))]


def assert_background_ends() -> None:
    deadline = time.monotonic() + 10
    while background():
        assert time.monotonic() < deadline, background()
        time.sleep(0.01)
