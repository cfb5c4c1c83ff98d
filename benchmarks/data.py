"""Speed and memory of the data steps; takes half an hour: python benchmarks/data.py [--size 512] [--help]

Rates are those of two processes with one thread each (`--workers`), without their start, which run the steps' workers:
(a) decoding alone, (b) curation, (c) color statistics, PCA and Procrustes sums in one pass over curated images and
stored latents, with every patch and with 256 random ones, and (d) a plain loop that does not use this project. Memory
is that of whole jobs, including Ray, over 1, 4 and 16 shards, and over one shard of 4 times the size.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import asymflow  # noqa: F401  # its torchvision shim comes before diffusers

# isort: split
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from asymflow.moments import PatchMoments
from asymflow.oklab import srgb_to_oklab
from asymflow.patches import patchify
from pipelines.core import storage
from pipelines.data.basis.config import BasisSettings
from pipelines.data.basis.moments import PieceMoments
from pipelines.data.color_stats import PieceColors
from pipelines.data.curate.compact import FileWriter, plan_files
from pipelines.data.curate.config import CurateSettings, Encoding
from pipelines.data.curate.filters import Filters
from pipelines.data.curate.samples import Columns
from pipelines.data.curate.shard import ShardCurator
from pipelines.data.curate.sources import find_source
from pipelines.data.datasets import Piece, cut_into_pieces, decode_pixels, read_rows
from pipelines.data.images import decode_image
from pipelines.data.tensors import open_writer, tensor_field, to_tensor_array
from pipelines.toy.data import PHOTOGRAPHS, DemoImage, write_img2dataset

LATENT = 128
SHARDS = 16


def photographs() -> list[Image.Image]:
    packages = ("skimage.data", "sklearn.datasets.images")
    paths = [next(p for p in (files(k) / n for k in packages) if p.is_file()) for n in sorted(PHOTOGRAPHS)]
    return [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in paths]


def make_shard(number: int, count: int, size: int, folder: Path) -> None:
    """Write `count` different crops of photographs, sides from `size` to 1.4 times that, in img2dataset's layout."""
    rng, sources = random.Random(number), photographs()

    def pictures() -> Iterable[DemoImage]:
        for index in range(count):
            photo = rng.choice(sources)
            width, height = (round(size * rng.uniform(1, 1.4)) for _ in range(2))
            share = rng.uniform(0.4, 1) * min(photo.width / width, photo.height / height)
            w, h = share * width, share * height
            left, top = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
            crop = photo.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
            buffer = io.BytesIO()
            crop.save(buffer, "JPEG", quality=92)
            yield DemoImage(f"picture {index} of {number}", buffer.getvalue(), rng.uniform(5, 7))

    write_img2dataset(pictures(), folder / f"part-{number:02d}", count)


class Rates:
    """Items per second of `workers` processes of one thread each, timed once all are ready."""

    def __init__(self, workers: int):
        self.workers = workers

    def __call__(self, make: Callable[..., Callable[[Any], int]], arguments: tuple, items: list[Any]) -> float:
        context = multiprocessing.get_context("spawn")
        queue, counts = context.Queue(), context.Queue()
        barrier = context.Barrier(self.workers + 1)
        processes = [
            context.Process(target=_work, args=(make, arguments, queue, counts, barrier)) for _ in range(self.workers)
        ]
        for process in processes:
            process.start()
        for item in items:
            queue.put(item)
        for _ in processes:
            queue.put(None)
        barrier.wait()
        started = time.perf_counter()
        total = sum(counts.get() for _ in processes)
        seconds = time.perf_counter() - started
        for process in processes:
            process.join()
        return total / seconds


def _work(make, arguments, queue, counts, barrier) -> None:
    torch.set_num_threads(1)
    work, total = make(*arguments), 0
    barrier.wait()
    while (item := queue.get()) is not None:
        total += work(item)
    counts.put(total)


def decoder() -> Callable[[str], int]:
    def decode(item: str) -> int:
        piece = Piece.from_json(item)
        for rows in read_rows(piece.uri, ["image"], piece.groups):
            for data in rows["image"]:
                decode_pixels([data])
        return piece.rows

    return decode


def source_decoder() -> Callable[[str], int]:
    from pipelines.data.curate.samples import Columns
    from pipelines.data.curate.shard_reader import read_shard

    def decode(shard: str) -> int:
        return sum(decode_image(sample.image).width > 0 for sample in read_shard(shard, Columns()) if sample.image)

    return decode


def curator(settings: CurateSettings, folder: str) -> Callable[[str], int]:
    worker = ShardCurator(settings, folder)
    return lambda item: sum(worker(item)["kept"].values())


def file_writer(folder: str) -> Callable[[str], int]:
    worker = FileWriter(folder)
    return lambda item: worker(item)["rows"]


def summer(patches: int | str, curated: str, encoded: str, folder: str) -> Callable[[str], int]:
    worker = PieceMoments(BasisSettings(curated=curated, patches_per_image=patches), encoded, folder)

    def add(item: str) -> int:
        worker(item)
        return Piece.from_json(item).rows

    return add


def color_summer(folder: str) -> Callable[[str], int]:
    worker = PieceColors(folder)

    def add(item: str) -> int:
        worker(item)
        return Piece.from_json(item).rows

    return add


def multiplier(size: int = 2048) -> Callable[[int], int]:
    """Floating-point operations of float32 matrix products."""
    a = torch.randn(size, size)

    def multiply(times: int) -> int:
        for _ in range(times):
            a @ a
        return times * 2 * size**3

    multiply(3)
    return multiply


class ImageDataset(torch.utils.data.Dataset):
    """All curated images in memory as bytes, so that the plain loop does not read files."""

    def __init__(self, encoded: list[bytes]):
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> torch.Tensor:
        return decode_pixels([self.encoded[index]])[0]


def plain_loop(pictures: list[bytes], patches: int, workers: int) -> float:
    """Images per second of the loop: one process, float64, every patch, latents in memory."""
    latents = torch.randn(8, patches, LATENT, dtype=torch.float64)
    gram, cross = torch.zeros(768, 768, dtype=torch.float64), torch.zeros(768, LATENT, dtype=torch.float64)
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    loader = torch.utils.data.DataLoader(ImageDataset(pictures), batch_size=8, num_workers=workers)
    torch.set_num_threads(workers)
    started, seen = time.perf_counter(), 0
    for number, pixels in enumerate(loader):
        if number == 2:  # after the start of its workers
            started, seen = time.perf_counter(), 0
        x = srgb_to_oklab(pixels.double() / 127.5 - 1)
        total += x.sum((0, 2, 3))
        squares += x.square().sum((0, 2, 3))
        X, Z = patchify(x, 16).flatten(0, 1), latents[: len(x)].flatten(0, 1)
        gram += X.T @ X
        cross += X.T @ Z
        seen += len(x)
    return seen / (time.perf_counter() - started)


def write_latents(curated: list[str], encoded: str, patches: int) -> None:
    """White noise in place of latents: rates do not depend on the values."""
    for file in curated:
        split, _, name = file.rpartition("/")

        def write(path: Path, file: str = file) -> None:
            schema = pa.schema([("key", pa.string()), tensor_field("latents", (patches, LATENT))])
            with open_writer(path, schema) as writer:
                for rows in read_rows(file, ["key"]):
                    z_0 = torch.randn(len(rows["key"]), patches, LATENT)
                    writer.write_table(pa.table([rows["key"], to_tensor_array(z_0)], schema=schema))

        storage.write_file(storage.join(encoded, "latents", split.rpartition("/")[2], name), write)


def where_time_goes(file: str, patches: int) -> dict[str, float]:
    """Milliseconds per image of each part of (c) with every patch, one thread."""
    torch.set_num_threads(1)
    data = next(read_rows(file, ["image"]))["image"][:32]
    pixels = torch.cat([decode_pixels([d]) for d in data[:16]])
    tokens = patchify(pixels, 16)
    worker = PieceMoments(BasisSettings(curated="none", patches_per_image="all"), "", "")
    x = worker.normalised(tokens)
    z = torch.randn(*x.shape[:2], LATENT)
    grams, both = PatchMoments(768, products=torch.float32), PatchMoments(768, LATENT, torch.float32)
    parts = {
        "decode": lambda: [decode_pixels([d]) for d in data[:16]],
        "patchify": lambda: patchify(pixels, 16),
        "Oklab": lambda: worker.normalised(tokens),
        "Gram": lambda: grams.update(x),
        "Gram and cross": lambda: both.update(x, z),
    }
    found = {}
    for name, part in parts.items():
        part()
        started = time.perf_counter()
        for _ in range(3):
            part()
        found[name] = (time.perf_counter() - started) / 3 / 16 * 1e3
    return found


def peak_memory(command: list[str]) -> float:
    """MiB: the largest sum over a command and all its children of the memory that each adds (PSS)."""
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    peak, root = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for each in [root, *root.children(recursive=True)]:
            try:
                total += each.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        peak = max(peak, total)
        time.sleep(0.5)
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode()[-2000:] if process.stderr else "")
    return peak / 2**20


def job(name: str, storage_root: Path, **settings: Any) -> list[str]:
    """The command line of a step's job, its settings in a file."""
    path = storage_root / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"run": {"storage": str(storage_root)}, **settings}))
    return [sys.executable, str(Path(__file__).parents[1] / "jobs" / f"{name}.py"), str(path)]


def measure_memory(shards: dict[str, Path], curation: dict[str, Any], folder: Path) -> dict[str, tuple[float, float]]:
    """{what: MiB of the curate job, MiB of the basis job}."""
    found = {}
    for name, source in shards.items():
        root = folder / "memory" / name.replace(" ", "_")
        curate = peak_memory(job("curate", root, **{**curation, "source": str(source)}))
        artifact = next((root / "curate").iterdir())
        stats = peak_memory(job("basis", root, curated=str(artifact), pca_rank=64))
        found[name] = curate, stats
        shutil.rmtree(root)
    return found


def merge_shards(parts: list[Path], target: Path) -> None:
    """The samples of several shards as one parquet shard of a single row group."""
    from pipelines.data.curate.samples import Columns
    from pipelines.data.curate.shard_reader import read_shard

    rows = []
    for part in parts:
        for sample in read_shard(str(part / "00000.tar"), Columns()):
            if not sample.problem:
                key = f"{part.name}-{sample.key}"
                rows.append({**sample.record, "key": key, "jpg": sample.image, "caption": sample.caption})
    target.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), target / "00000.parquet", row_group_size=len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=1024, help="side of the curated images (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--format", default="webp", help="of curated images: png, webp, jpeg (default: %(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory of whole jobs out")
    args = parser.parse_args()
    patches = (args.size // 16) ** 2
    with tempfile.TemporaryDirectory() as scratch:
        run(args, patches, Path(scratch))


def run(args: argparse.Namespace, patches: int, folder: Path) -> None:
    crawl, out, encoded = folder / "crawl", str(folder / "out"), str(folder / "encoded")
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        jobs = [(n, args.images // SHARDS, args.size, crawl) for n in range(SHARDS)]
        pool.starmap(make_shard, jobs)
    size = sum(p.stat().st_size for p in crawl.rglob("*.tar")) / args.images / 1e3
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors; torch {torch.__version__}")
    print(f"{args.images} JPEG of {args.size} to {1.4 * args.size:.0f} pixels a side, {size:.0f} kB each; "
          f"{args.workers} workers; curated to {args.size}x{args.size}, {args.format}")  # fmt: skip

    rates = Rates(args.workers)
    matrix = rates(multiplier, (), [20] * 2 * args.workers) / 1e9
    curation: dict[str, Any] = {
        "buckets": [[args.size, args.size]],
        "filters": {"min_side": args.size},
        "near_duplicate_bits": None,
        "encoding": {"format": args.format},
    }
    settings = CurateSettings(
        source=str(crawl), buckets=[(args.size, args.size)], filters=Filters(min_side=args.size),
        encoding=Encoding(format=args.format), near_duplicate_bits=None,
    )  # fmt: skip
    shards = find_source(str(crawl), Columns()).shards
    source = rates(source_decoder, (), list(shards.values()))
    reading = rates(curator, (settings, out), [json.dumps([name, uri]) for name, uri in shards.items()])
    plan = plan_files(out, list(shards), None, 256)
    items = [json.dumps([name, segments]) for name, segments in plan["files"].items()]
    writing = rates(file_writer, (out,), items)
    curating = 1 / (1 / reading + 1 / writing)

    curated = storage.list_files(storage.join(out, "train"), ".parquet")
    write_latents(curated, encoded, patches)
    pieces = [piece.to_json() for piece in cut_into_pieces(curated, 4 * SHARDS)]
    decoding = rates(decoder, (), pieces)
    sampled = rates(summer, (256, out, encoded, str(folder / "sampled")), pieces)
    colours = rates(color_summer, (str(folder / "colours"),), pieces)
    every = rates(summer, ("all", out, encoded, str(folder / "every")), pieces)
    some = [data for rows in islice(read_rows(curated[0], ["image"]), 4) for data in rows["image"]]
    plain = plain_loop(some, patches, args.workers)
    gram = 2 * patches * 768**2 / 1e9

    print(f"\nfloat32 matrix products: {matrix:.0f} GFLOP/s; a full Gram matrix of an image: {gram:.2f} GFLOP\n")
    share = every * gram / matrix
    rows = [
        ("decode the source JPEG", source, ""),
        ("(a) decode curated images", decoding, ""),
        ("(b) curate: filter, resize, hash, encode; even files", curating, f"{curating / source:.2f} of decoding"),
        ("(c) one pass, 256 patches per image", sampled, f"{sampled / decoding:.2f} of (a); bar 0.7"),
        ("(c) one pass, every patch", every, f"{every / plain:.1f} x (d); bar 3"),
        ("    its Gram matrices", every, f"{every * gram:.0f} GFLOP/s, {share:.2f} of the rate; bar 0.5"),
        ("(d) the plain loop, float64", plain, ""),
        ("color_stats: exact, every pixel in float64", colours, f"{colours / decoding:.2f} of (a)"),
    ]  # fmt: skip
    for name, rate, note in rows:
        print(f"{name:54s} {rate:8.1f} images/s   {note}")
    print("\nwhere the time of (c) with every patch goes, one thread, ms per image:")
    print("  " + ", ".join(f"{name} {ms:.2f}" for name, ms in where_time_goes(curated[0], patches).items()))

    if not args.no_memory:
        parts = sorted(crawl.iterdir())
        sources = {}
        for count in (1, 4, 16):
            place = folder / f"crawl-{count}"
            place.mkdir()
            for part in parts[:count]:
                (place / part.name).symlink_to(part)
            sources[f"{count} shards"] = place
        merge_shards(parts[:4], folder / "merged")
        sources["1 parquet shard of 4 times the rows"] = folder / "merged"
        print("\npeak memory of whole jobs (all processes, PSS), MiB:")
        found = measure_memory(sources, curation, folder)
        first = found["1 shards"]
        for name, peaks in found.items():
            shares = ", ".join(f"{p:6.0f} ({p / f:.2f}x)" for p, f in zip(peaks, first, strict=True))
            print(f"  {name:38s} curate, basis: {shares}")


if __name__ == "__main__":
    main()
