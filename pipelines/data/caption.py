"""Caption step: a vision-language model writes a caption for every curated image; edits keep their instructions.

Each output file has the name, the rows and the row order of a curated file. Finished batches of a file are stored as
hidden parts until the file is complete, so that a killed job resumes after the last part.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont, ImageOps

from asymflow.text_files import read_json_object
from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.core.map_items import by_name, item_name, map_items
from pipelines.core.step import Context, Step
from pipelines.data.config import CaptionSettings
from pipelines.data.datasets import RowWriter, has_references, read_rows
from pipelines.data.images import BadImage, decode_image

if TYPE_CHECKING:
    from asymflow.models.captioner import Caption, Captioner

Row = dict[str, Any]

SCHEMA = pa.schema(
    {
        "key": pa.string(), "caption": pa.string(), "original": pa.string(), "source": pa.string(),
        "tokens": pa.int32(), "finished": pa.bool_(),
    }
)  # fmt: skip
PUBLISHED = "Qwen/Qwen2.5-VL-7B-Instruct"
SHOWN = 12
_WHOLE_SENTENCES = re.compile(r".*[.!?][\"'”’)\]]*(?=\s|$)")


def check(settings: CaptionSettings) -> None:
    """Check the model's folder and the backend. Raises ConfigError."""
    check_model(settings.model)
    if settings.backend == "vllm":
        gpus = settings.resources.gpus
        if find_spec("vllm") is None:
            raise ConfigError(
                "backend='vllm': vLLM is not installed; `pip install 'asymflow[vllm]'`, or set backend=transformers"
            )
        if gpus < 1 or gpus % 1:
            raise ConfigError(f"resources.gpus_per_worker={gpus:g}: vLLM needs whole GPUs, 1 or more per worker")


def check_model(model: str) -> None:
    """Raise ConfigError unless `model` is a local folder with a complete Qwen2.5-VL model in safetensors."""
    folder = Path(model)
    remedy = f"download the complete model, for example with `hf download {PUBLISHED} --local-dir {model}`"
    if not folder.is_dir():
        raise ConfigError(f"model={model!r}: no such folder; {remedy}")
    try:
        kind = _read_json(folder / "config.json").get("model_type")
        index = _read_json(folder / "model.safetensors.index.json")
    except ValueError as error:
        raise ConfigError(f"model={model!r}: {error}; {remedy}") from None
    weights = sorted(set(index.get("weight_map", {"": "model.safetensors"}).values()))
    needed = [("config.json",), ("tokenizer.json", "vocab.json"), ("preprocessor_config.json", "processor_config.json")]
    needed += [(name,) for name in weights]
    missing = [names[0] for names in needed if not any((folder / name).is_file() for name in names)]
    if missing:
        raise ConfigError(f"model={model!r}: it has no {', '.join(missing)}; {remedy}")
    if kind != "qwen2_5_vl":
        raise ConfigError(f"model={model!r}: config.json has model_type {kind!r}, not 'qwen2_5_vl'; {remedy}")


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, {} if there is no such file. Raises ValueError with the file's name."""
    try:
        return read_json_object(path) if path.is_file() else {}
    except ValueError:
        raise ValueError(f"{path.name} is not a JSON object") from None


def load_captioner(settings: CaptionSettings) -> "Captioner":
    """Load the captioning model with the configured backend."""
    from asymflow.models.captioner import QwenCaptioner  # in the workers alone: transformers takes seconds
    from asymflow.models.captioner_vllm import VllmCaptioner

    options = (settings.model, settings.prompt, settings.max_new_tokens, settings.max_pixels)
    if settings.backend == "vllm":
        return VllmCaptioner(*options, gpus=int(settings.resources.gpus))
    return QwenCaptioner(*options, device=settings.resources.device)


class ShardCaptioner:
    """Worker of `map_items` that captions one curated file and writes `SPLIT/NAME.parquet`."""

    def __init__(self, settings: CaptionSettings, folder: str):
        self.settings, self.folder = settings, folder
        self.captioner = load_captioner(settings)

    def __call__(self, shard: str) -> dict[str, Any]:
        """Caption a curated file, resuming from finished parts; return its counts."""
        path = PurePosixPath(shard)
        target = storage.join(self.folder, path.parent.name, path.name)
        parts = storage.join(self.folder, ".parts", item_name(shard))
        if not storage.exists(target):
            finished = list(self.write_parts(shard, parts))
            storage.write_file(target, partial(_write_rows, rows=(row for p in finished for row in rows_of(p))))
        storage.delete_folder(parts)
        return summarize(target)

    def write_parts(self, shard: str, folder: str) -> Iterator[str]:
        """Yield the URIs of a file's parts in order: first those of an interrupted run, then newly captioned ones."""
        start = 0
        for part, size in finished_parts(shard, folder):
            yield part
            start += size
        caption, columns = self.caption, ["key", "image", "caption", "width", "height"]
        if has_references(shard):
            caption, columns = keep_captions, [name for name in columns if name != "image"]
        remaining = islice(rows_of(shard, columns), start, None)
        for batch in batches(remaining, self.settings.max_pixels, self.settings.resources.batch_pixels):
            part = part_file(folder, start)
            storage.write_file(part, partial(_write_rows, rows=caption(batch)))
            yield part
            start += len(batch)

    def caption(self, batch: Sequence[Row]) -> list[Row]:
        """Caption a batch of curated rows."""
        captions = self.captioner.caption([decode_row(row) for row in batch])
        return [to_caption_row(row, caption) for row, caption in zip(batch, captions, strict=True)]


def rows_of(uri: str, columns: Sequence[str] = SCHEMA.names) -> Iterator[Row]:
    """Yield the rows of a parquet file."""
    for group in read_rows(uri, list(columns)):
        yield from (dict(zip(group, values, strict=True)) for values in zip(*group.values(), strict=True))


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    with RowWriter(path, SCHEMA) as writer:
        for row in rows:
            writer.add(row)


def part_file(folder: str, start: int) -> str:
    """Return the URI of the part that begins with the file's row `start`."""
    return storage.join(folder, f"{start:05d}.parquet")


def finished_parts(shard: str, folder: str) -> Iterator[tuple[str, int]]:
    """Yield (URI, number of rows) of the contiguous parts from row 0 whose keys are those of the file."""
    keys = [row["key"] for row in rows_of(shard, ["key"])]
    start = 0
    while storage.exists(part := part_file(folder, start)):
        part_keys = [row["key"] for row in rows_of(part, ["key"])]
        if part_keys != keys[start : start + len(part_keys)]:
            return
        yield part, len(part_keys)
        start += len(part_keys)


def batches(rows: Iterable[Row], max_pixels: int, batch_pixels: int) -> Iterator[list[Row]]:
    """Group rows, in order, into batches of at most `batch_pixels` pixels, but at least one row.

    Args:
        rows: Rows with width and height.
        max_pixels: Larger images count as this many pixels, since they are downscaled.
        batch_pixels: Pixels per batch.
    """
    batch: list[Row] = []
    pixels = 0
    for row in rows:
        size = min(row["width"] * row["height"], max_pixels)
        if batch and pixels + size > batch_pixels:
            yield batch
            batch, pixels = [], 0
        batch.append(row)
        pixels += size
    if batch:
        yield batch


def decode_row(row: Row) -> Image.Image:
    """Decode a curated row's image. Raises BadImage with the row's key."""
    try:
        return decode_image(row["image"])
    except BadImage as error:
        raise BadImage(f"{row['key']}: {error}") from None


def to_caption_row(row: Row, caption: "Caption") -> Row:
    """Return the output row of a curated row. If the model's caption is empty, the original one is kept."""
    text = clean_caption(caption)
    return {
        "key": row["key"],
        "caption": text or row["caption"],
        "original": row["caption"],
        "source": "model" if text else "original",
        "tokens": caption.tokens,
        "finished": caption.finished,
    }


def keep_captions(batch: Sequence[Row]) -> list[Row]:
    """Return the output rows of edits, whose captions are instructions."""
    kept = {"source": "original", "tokens": 0, "finished": True}
    return [{"key": row["key"], "caption": row["caption"], "original": row["caption"], **kept} for row in batch]


def clean_caption(caption: "Caption") -> str:
    """Normalize whitespace, and shorten a caption that reached the token limit to its complete sentences, if any."""
    text = " ".join(caption.text.split())
    sentences = None if caption.finished else _WHOLE_SENTENCES.match(text)
    return sentences.group() if sentences else text


def summarize(uri: str) -> dict[str, int]:
    """Count the images, tokens, cut captions and kept original captions of a file."""
    rows = list(rows_of(uri, ["source", "tokens", "finished"]))
    return {
        "pictures": len(rows),
        "tokens": sum(row["tokens"] for row in rows),
        "cut": sum(not row["finished"] for row in rows),
        "kept_original": sum(row["source"] == "original" for row in rows),
    }


def build(settings: CaptionSettings, context: Context) -> dict[str, float]:
    """Caption all curated files; see `pipelines.core.step.Step`."""
    curated = context.inputs["curated"]
    files = by_name(curated.files("train", ".parquet") + curated.files("held_out", ".parquet"))
    # workers have other working directories
    settings = settings.model_copy(update={"model": storage.absolute(settings.model)})
    make_worker = partial(ShardCaptioner, settings, context.folder)
    total: Counter[str] = Counter()
    for summary in map_items(files, make_worker, context.folder, settings.resources):
        total.update({name: summary[name] for name in ("pictures", "tokens", "cut", "kept_original")})
    log_examples(min(curated.files("train", ".parquet"), key=has_references), context)
    tokens_mean = total.pop("tokens") / total["pictures"]
    return {**total, "tokens_mean": tokens_mean}


def log_examples(shard: str, context: Context) -> None:
    """Log the first images of a curated file with their old and new captions."""
    captions = list(islice(rows_of(context.file("train", PurePosixPath(shard).name)), SHOWN))
    images = [decode_row(row) for row in islice(rows_of(shard, ["key", "image"]), SHOWN)]
    context.tracker.log_image("captions", caption_sheet(images, captions))
    context.tracker.log_table("captions", {name: [row[name] for row in captions] for name in SCHEMA.names})


def caption_sheet(images: Sequence[Image.Image], captions: Sequence[Row], side: int = 256) -> Image.Image:
    """Return a contact sheet with one image per row, and the complete old and new captions beside it.

    Args:
        images: Images in any size.
        captions: Output row of each image.
        side: Longer side of a thumbnail in pixels.
    """
    font, gap = ImageFont.load_default(14), 12
    thumbnails = [ImageOps.contain(image, (side, side)) for image in images]
    lines = [(f"Old: {row['original']}", f"New: {row['caption']}") for row in captions]
    texts = ["\n\n".join(textwrap.fill(line, 90) for line in pair) for pair in lines]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    sizes = [measure.multiline_textbbox((0, 0), text, font)[2:] for text in texts]
    heights = [max(t.height, round(size[1])) + gap for t, size in zip(thumbnails, sizes, strict=True)]
    width = side + round(max(size[0] for size in sizes)) + 3 * gap
    sheet = Image.new("RGB", (width, sum(heights) + gap), "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for thumbnail, text, height in zip(thumbnails, texts, heights, strict=True):
        sheet.paste(thumbnail, (gap, top))
        draw.multiline_text((side + 2 * gap, top), text, "black", font)
        top += height
    return sheet


STEP = Step(
    "caption",
    CaptionSettings,
    build,
    inputs=CaptionSettings.inputs,
    check=check,
    contents=("model",),
    hash_overrides=lambda settings, inputs: {"resources.precision": settings.resources.precision},
)
