"""Caption: a vision-language model describes every curated picture, row for row.

Each output file has the name, the rows and the order of a curated file. What is finished of a file lies in hidden
parts, a batch each, until all of them are there: a killed job goes on after the last one.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont, ImageOps

from asymflow.models.captioner import Caption, Captioner, QwenCaptioner
from asymflow.models.captioner_vllm import VllmCaptioner
from asymflow.outside_text import read_json_object
from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.core.map_items import by_name, item_name, map_items
from pipelines.core.step import Context, Step
from pipelines.data.config import CaptionSettings
from pipelines.data.datasets import RowWriter, read_rows
from pipelines.data.images import BadImage, decode_image

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
    check_model(settings.model)
    if settings.backend == "vllm":
        gpus = settings.resources.gpus
        if find_spec("vllm") is None:
            raise ConfigError(
                "backend='vllm': vLLM is not installed; `pip install 'asymflow[vllm]'`, or set backend=transformers"
            )
        if gpus < 1 or gpus % 1:
            raise ConfigError(f"resources.gpus_per_worker={gpus:g}: vLLM takes whole GPUs, 1 or more a worker")


def check_model(model: str) -> None:
    """Raise ConfigError unless `model` is a local folder with the whole of a Qwen2.5-VL model in safetensors."""
    folder = Path(model)
    how = f"get it whole, for example with `hf download {PUBLISHED} --local-dir {model}`"
    if not folder.is_dir():
        raise ConfigError(f"model={model!r}: no such folder; {how}")
    try:
        kind = _read_json(folder / "config.json").get("model_type")
        index = _read_json(folder / "model.safetensors.index.json")
    except ValueError as error:
        raise ConfigError(f"model={model!r}: {error}; {how}") from None
    weights = sorted(set(index.get("weight_map", {"": "model.safetensors"}).values()))
    needed = [("config.json",), ("tokenizer.json", "vocab.json"), ("preprocessor_config.json", "processor_config.json")]
    needed += [(name,) for name in weights]
    missing = [names[0] for names in needed if not any((folder / name).is_file() for name in names)]
    if missing:
        raise ConfigError(f"model={model!r}: it has no {', '.join(missing)}; {how}")
    if kind != "qwen2_5_vl":
        raise ConfigError(f"model={model!r}: config.json says model_type {kind!r}, not 'qwen2_5_vl'; {how}")


def _read_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file. Raises ValueError with its name."""
    try:
        return read_json_object(path) if path.is_file() else {}
    except ValueError:
        raise ValueError(f"{path.name} is broken") from None


def load_captioner(settings: CaptionSettings) -> Captioner:
    options = (settings.model, settings.prompt, settings.max_new_tokens, settings.max_pixels)
    if settings.backend == "vllm":
        return VllmCaptioner(*options, gpus=int(settings.resources.gpus))
    return QwenCaptioner(*options, device=settings.resources.device)


class ShardCaptioner:
    """One curated file to `SPLIT/NAME.parquet`; see `map_items`."""

    def __init__(self, settings: CaptionSettings, folder: str):
        self.settings, self.folder = settings, folder
        self.captioner = load_captioner(settings)

    def __call__(self, shard: str) -> dict[str, Any]:
        path = PurePosixPath(shard)
        target = storage.join(self.folder, path.parent.name, path.name)
        parts = storage.join(self.folder, ".parts", item_name(shard))
        if not storage.exists(target):
            finished = list(self.write_parts(shard, parts))
            storage.write_file(target, partial(_write_rows, rows=(row for p in finished for row in rows_of(p))))
        storage.delete_folder(parts)
        return summarise(target)

    def write_parts(self, shard: str, folder: str) -> Iterator[str]:
        """URIs of the parts in order: first those that an interrupted run left, then those that it did not reach."""
        start = 0
        for part, size in finished_parts(shard, folder):
            yield part
            start += size
        left = islice(rows_of(shard, ["key", "image", "caption", "width", "height"]), start, None)
        for batch in batches(left, self.settings.max_pixels, self.settings.resources.batch_pixels):
            part = part_file(folder, start)
            storage.write_file(part, partial(_write_rows, rows=self.caption(batch)))
            yield part
            start += len(batch)

    def caption(self, batch: Sequence[Row]) -> list[Row]:
        captions = self.captioner.caption([picture_of(row) for row in batch])
        return [captioned(row, caption) for row, caption in zip(batch, captions, strict=True)]


def rows_of(uri: str, columns: Sequence[str] = SCHEMA.names) -> Iterator[Row]:
    for group in read_rows(uri, list(columns)):
        yield from (dict(zip(group, values, strict=True)) for values in zip(*group.values(), strict=True))


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    with RowWriter(path, SCHEMA) as writer:
        for row in rows:
            writer.add(row)


def part_file(folder: str, start: int) -> str:
    """The part whose first row is the file's row `start`."""
    return storage.join(folder, f"{start:05d}.parquet")


def finished_parts(shard: str, folder: str) -> Iterator[tuple[str, int]]:
    """(URI, number of rows) of the parts from row 0 on that join without a gap and hold this very file's keys."""
    keys = [row["key"] for row in rows_of(shard, ["key"])]
    start = 0
    while storage.exists(part := part_file(folder, start)):
        held = [row["key"] for row in rows_of(part, ["key"])]
        if held != keys[start : start + len(held)]:
            return
        yield part, len(held)
        start += len(held)


def batches(rows: Iterable[Row], max_pixels: int, batch_pixels: int) -> Iterator[list[Row]]:
    """Rows in order, as many together as have `batch_pixels` pixels where none has more than `max_pixels`."""
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


def picture_of(row: Row) -> Image.Image:
    try:
        return decode_image(row["image"])
    except BadImage as error:
        raise BadImage(f"{row['key']}: {error}") from None


def captioned(row: Row, caption: Caption) -> Row:
    """A curated row's caption and where it comes from; the original stays where the model wrote nothing."""
    text = clean_caption(caption)
    return {
        "key": row["key"],
        "caption": text or row["caption"],
        "original": row["caption"],
        "source": "model" if text else "original",
        "tokens": caption.tokens,
        "finished": caption.finished,
    }


def clean_caption(caption: Caption) -> str:
    """On one line, single spaces; what the limit of tokens cut ends with its last whole sentence, if it has one."""
    text = " ".join(caption.text.split())
    whole = None if caption.finished else _WHOLE_SENTENCES.match(text)
    return whole.group() if whole else text


def summarise(uri: str) -> dict[str, int]:
    """Sums over a file of captions."""
    rows = list(rows_of(uri, ["source", "tokens", "finished"]))
    return {
        "pictures": len(rows),
        "tokens": sum(row["tokens"] for row in rows),
        "cut": sum(not row["finished"] for row in rows),
        "kept_original": sum(row["source"] == "original" for row in rows),
    }


def build(settings: CaptionSettings, context: Context) -> dict[str, float]:
    curated = context.inputs["curated"]
    files = by_name(curated.files("train", ".parquet") + curated.files("held_out", ".parquet"))
    # workers have other working directories
    settings = settings.model_copy(update={"model": storage.absolute(settings.model)})
    make_worker = partial(ShardCaptioner, settings, context.folder)
    total: Counter[str] = Counter()
    for summary in map_items(files, make_worker, context.folder, settings.resources):
        total.update({name: summary[name] for name in ("pictures", "tokens", "cut", "kept_original")})
    show(curated.files("train", ".parquet")[0], context)
    tokens_mean = total.pop("tokens") / total["pictures"]
    return {**total, "tokens_mean": tokens_mean}


def show(shard: str, context: Context) -> None:
    """Log the first pictures of a curated file with their old and new captions."""
    captions = list(islice(rows_of(context.file("train", PurePosixPath(shard).name)), SHOWN))
    pictures = [picture_of(row) for row in islice(rows_of(shard, ["key", "image"]), SHOWN)]
    context.tracker.log_picture("captions", caption_sheet(pictures, captions))
    context.tracker.log_table("captions", {name: [row[name] for row in captions] for name in SCHEMA.names})


def caption_sheet(pictures: Sequence[Image.Image], captions: Sequence[Row], side: int = 256) -> Image.Image:
    """A picture a row, its longer side `side` pixels, with old and new caption beside it; no text is cut off."""
    font, gap = ImageFont.load_default(14), 12
    thumbnails = [ImageOps.contain(picture, (side, side)) for picture in pictures]
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
    decides=lambda settings, inputs: {"resources.precision": settings.resources.precision},
)
