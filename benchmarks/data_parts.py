"""Processor time of curation by encoding, and of the parts of the basis, against decoding the same images.

    python benchmarks/data_parts.py [--curation-size 1024] [--basis-size 512] [--images 32] [--rounds 5]

One thread, in one process; a round runs every part once, and medians of the rounds are compared, because machines are
noisy. (e) Curation without reading and writing shards, which stores files as they are, or encodes them. The limit of
the former is decoding itself; that of the latter decoding and resizing, whatever the codec. Bar: 0.5 of decoding for
files that are stored as they are, and at most 1.3 times the bytes of lossless webp. (f) One pass of the basis step with
256 patches per image; bar: 0.7 of decoding. Its limit is the matrix products.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data import LATENT, decoder, make_shard, write_latents  # benchmarks/data.py

# isort: split
import torch

from asymflow.moments import PatchMoments
from pipelines.core import storage
from pipelines.data.basis.config import BasisSettings
from pipelines.data.basis.moments import PieceMoments
from pipelines.data.curate.compact import FileWriter, plan_files
from pipelines.data.curate.config import CurateSettings, Encoding
from pipelines.data.curate.filters import Filters
from pipelines.data.curate.report import Histograms
from pipelines.data.curate.samples import Columns, Sample
from pipelines.data.curate.shard import ShardCurator
from pipelines.data.curate.shard_reader import read_shard
from pipelines.data.curate.sources import find_source
from pipelines.data.datasets import cut_into_pieces
from pipelines.data.images import decode_image, fit_to_size

ENCODINGS = {
    "kept as they are": {"format": "webp"},
    "same size, webp": {"format": "webp", "keep_unchanged": False},
    "resized, webp": {"format": "webp"},
    "resized, webp, effort 1": {"format": "webp", "effort": 1},
    "resized, png": {"format": "png"},
    "resized, png, effort 1": {"format": "png", "effort": 1},
    "resized, jpeg": {"format": "jpeg"},
}


def interleaved(parts: dict[str, Callable[[], Any]], rounds: int, images: int) -> dict[str, float]:
    """Median processor milliseconds per image of each part; a round runs each part once."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, part in parts.items():
            started = time.process_time()
            part()
            if number:  # the first round is a warm-up
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(times) / images * 1e3 for name, times in seconds.items()}


def compare_curation(folder: Path, size: int, images: int, rounds: int) -> None:
    """Print the time of curation by encoding, and by what it does with the file, as a share of decoding."""
    make_shard(0, images, size, folder)
    samples = [s for s in read_shard(str(next(folder.rglob("*.tar"))), Columns()) if s.image]
    decoded = [decode_image(sample.image) for sample in samples]
    whole = []
    for sample, image in zip(samples, decoded, strict=True):
        buffer = io.BytesIO()
        fit_to_size(image, size, size).save(buffer, "JPEG", quality=92)
        whole.append(replace(sample, image=buffer.getvalue()))
    parts: dict[str, Callable[[], Any]] = {
        "decode, same size": lambda: [decode_image(sample.image) for sample in whole],
        "decode, larger": lambda: [decode_image(sample.image) for sample in samples],
        "decode and resize, larger": lambda: [fit_to_size(decode_image(s.image), size, size) for s in samples],
    }
    stored: dict[str, float] = {}
    for name, encoding in ENCODINGS.items():
        settings = CurateSettings(
            source="none", buckets=[(size, size)], filters=Filters(min_side=size),
            encoding=Encoding.model_validate(encoding),
        )  # fmt: skip
        worker, chosen = ShardCurator(settings, ""), samples if name.startswith("resized") else whole

        def curate(worker: ShardCurator = worker, chosen: list[Sample] = chosen) -> list[dict[str, Any]]:
            return [worker.curate(replace(sample), Histograms())[0] for sample in chosen]

        parts[name] = curate
        stored[name] = sum(len(row["image"]) for row in curate()) / len(samples) / 1e6
    found = interleaved(parts, rounds, len(samples))
    print(f"\n(e) {len(samples)} images curated to {size}x{size}, one thread, medians of {rounds} rounds")
    print(f"{'':28}{'ms per image':>14}{'of decoding':>13}{'MB stored':>11}{'of webp':>9}")
    for name, ms in found.items():
        base = found["decode, larger" if "larger" in name or "resized" in name else "decode, same size"]
        same = stored["resized, webp" if "resized" in name else "same size, webp"]
        size_columns = f"{stored[name]:>11.3f}{stored[name] / same:>9.2f}" if name in stored else ""
        print(f"{name:28}{ms:>14.1f}{base / ms:>13.2f}{size_columns}")


def multiply_upper_blocks(X: torch.Tensor, Z: torch.Tensor) -> list[torch.Tensor]:
    """Return the products that the sums of one update need."""
    return [*(X[:, a : a + 96].T @ X[:, a:] for a in range(0, X.shape[1], 96)), X.T @ Z]


def compare_basis(folder: Path, size: int, images: int, rounds: int) -> None:
    """Print the parts of (c) with 256 patches per image as processor time, beside decoding the same images."""
    curate = CurateSettings(
        source=str(folder / "crawl"), buckets=[(size, size)], filters=Filters(min_side=size),
        encoding=Encoding(format="webp"), near_duplicate_bits=None,
    )  # fmt: skip
    make_shard(1, images, size, folder / "crawl")
    out, encoded, patches = str(folder / "out"), str(folder / "encoded"), (size // 16) ** 2
    shards = find_source(str(folder / "crawl"), Columns()).shards
    for name, uri in shards.items():
        ShardCurator(curate, out)(json.dumps([name, uri, None]))
    for name, segments in plan_files(out, list(shards), None, images)["files"].items():
        FileWriter(out)(json.dumps([name, segments]))
    curated = storage.list_files(storage.join(out, "train"), ".parquet")
    write_latents(curated, encoded, patches)
    (piece,) = cut_into_pieces(curated, 1)
    worker = PieceMoments(BasisSettings(curated=out, patches_per_image=256), encoded, str(folder / "sums"))
    batches = list(worker.read(piece))
    chosen = [worker.choose(batch, latents) for batch, latents in batches]
    normalised = [(worker.normalised(tokens), latents, weight) for tokens, latents, weight in chosen]
    sums = PatchMoments(768, LATENT, torch.float32)
    X = normalised[0][0].reshape(-1, 768)
    Z = torch.randn(len(X), LATENT)
    parts: dict[str, Callable[[], Any]] = {
        "(a) decode": lambda: decoder()(piece.to_json()),
        "(c) one pass": lambda: worker(piece.to_json()),
        "    read images and latents": lambda: list(worker.read(piece)),
        "    choose patches": lambda: [worker.choose(batch, latents) for batch, latents in batches],
        "    Oklab": lambda: [worker.normalised(tokens) for tokens, _, _ in chosen],
        "    sums": lambda: [sums.update(*one) for one in normalised],
        "    of these, the matrix products alone": lambda: [multiply_upper_blocks(X, Z) for _ in batches],
    }
    found = interleaved(parts, rounds, piece.rows)
    print(f"\n(f) {piece.rows} images of {size}x{size}, 256 patches each, one thread, medians of {rounds} rounds")
    for name, ms in found.items():
        ratio = "" if name.startswith(" ") else f"{found['(a) decode'] / ms:>8.2f} of (a)"
        print(f"{name:42}{ms:>8.2f} ms per image{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curation-size", type=int, default=1024, help="side of the images (default: %(default)s)")
    parser.add_argument("--basis-size", type=int, default=512, help="side of the images (default: %(default)s)")
    parser.add_argument("--images", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        compare_curation(Path(scratch, "curation"), args.curation_size, args.images, args.rounds)
        compare_basis(Path(scratch, "basis"), args.basis_size, args.images, args.rounds)


if __name__ == "__main__":
    main()
