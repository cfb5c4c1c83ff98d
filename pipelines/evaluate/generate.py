"""Pictures of the models: every missing one is drawn, once, by a pool of actors.

They lie in STORAGE/pictures/ID, where ID is a hash of all that decides them; a picture's name is its seed and its
prompt's hash. So evaluations with more prompts, other scorers or another suite find what stands.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, cast

import torch

from asymflow.metrics.protocol import fingerprint
from pipelines import storage
from pipelines.evaluate.prompts import Shot
from pipelines.evaluate.subject import Subject
from pipelines.images import decode_image, encode_png
from pipelines.pictures import to_pictures
from pipelines.sample.drawing import Drawing
from pipelines.sample.painter import Paint
from pipelines.shards import do_items


@dataclass(frozen=True)
class PictureSet:
    """Pictures, and by what they are known."""

    id: str
    files: Mapping[str, str]
    """{key: URI}, in order"""
    protocol: Mapping[str, Any]


class Generator:
    """Draws a batch: JSON [model, folder, [[seed, prompt, key], ...]]. One model at a time is held."""

    def __init__(self, subject: Subject, drawing: Drawing, device: str):
        self.subject, self.drawing, self.device = subject, drawing, device
        self.loaded: tuple[str, Paint | None] = ("", None)

    def painter(self, model: str) -> Paint:
        if self.loaded[0] != model:
            self.loaded = ("", None)  # the one before goes first
            self.loaded = (model, self.subject.painter(model, self.device))
        return cast(Paint, self.loaded[1])

    def __call__(self, item: str) -> dict[str, Any]:
        model, folder, batch = json.loads(item)
        paint = self.painter(model)
        images = paint([prompt for _, prompt, _ in batch], [seed for seed, _, _ in batch], self.drawing)
        for image, (seed, prompt, key) in zip(images, batch, strict=True):
            if not torch.isfinite(image).all():
                raise ValueError(f"the model's picture of {prompt!r}, seed {seed}, holds NaN or infinite values")
            storage.write_bytes(storage.join(folder, f"{key}.png"), encode_png(to_pictures(image[None])[0]))
        return {}


def generate(
    subject: Subject, models: Sequence[str], drawing: Drawing, shots: Sequence[Shot], root: str, resources: Any
) -> dict[str, PictureSet]:
    """One picture a shot of each model. `root` is the storage; `resources` have workers and a batch.

    Raises ItemsFailed where some could not be drawn.
    """
    sets, items = {}, {}
    for model in models:
        protocol = {**subject.identity(model), "drawing": asdict(drawing), "noise": "torch cpu generator of the seed"}
        protocol["precision"] = "bfloat16" if resources.device == "cuda" else "float32"
        folder = storage.join(root, "pictures", fingerprint(protocol))
        storage.write_bytes(storage.join(folder, "protocol.json"), json.dumps(protocol, indent=1).encode())
        files = {shot.key: storage.join(folder, f"{shot.key}.png") for shot in shots}
        sets[model] = PictureSet(fingerprint(protocol), files, protocol)
        standing = keys_in(folder)
        missing = [[shot.index, shot.prompt.text, shot.key] for shot in shots if shot.key not in standing]
        for batch in in_batches(missing, resources.batch):
            items[f"{model} {batch[0][2]}"] = json.dumps([model, folder, batch])
    make_worker = partial(Generator, subject, drawing, resources.device)
    do_items(items, make_worker, resources, "draw", unit="batch")
    return sets


def keys_in(folder: str) -> set[str]:
    return {PurePosixPath(uri).stem for uri in storage.list_files(folder, ".png")}


def in_batches(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def store_pictures(encoded: Iterable[bytes], protocol: Mapping[str, Any], count: int, root: str) -> PictureSet:
    """Real pictures, which lie in other files, as files of their own; `encoded` is read only where some are missing."""
    folder = storage.join(root, "pictures", fingerprint(protocol))
    files = {f"{i:06}": storage.join(folder, f"{i:06}.png") for i in range(count)}
    standing = keys_in(folder)
    if not files.keys() <= standing:
        for (key, uri), data in zip(files.items(), encoded, strict=True):
            if key not in standing:
                storage.write_bytes(uri, encode_png(decode_image(data)))
    return PictureSet(fingerprint(protocol), files, protocol)


def found_pictures(uri: str, shots: Sequence[Shot]) -> PictureSet:
    """Pictures from elsewhere, by name in the order of the shots. Raises ValueError for another number of them."""
    files = picture_files(uri)
    if len(files) != len(shots):
        raise ValueError(f"there are {len(files)} pictures in {uri}, the suite asks for {len(shots)}")
    protocol = {"pictures": storage.absolute(uri), "files": fingerprint({"names": files})}
    return PictureSet(fingerprint(protocol), dict(zip((s.key for s in shots), files, strict=True)), protocol)


def reference_pictures(uri: str) -> PictureSet:
    """Real ones of any number and size. Raises ValueError where there are none."""
    files = picture_files(uri)
    if not files:
        raise ValueError(f"there are no pictures in {uri}")
    protocol = {"reference": storage.absolute(uri), "files": fingerprint({"names": files})}
    return PictureSet(fingerprint(protocol), {f"{i:06}": file for i, file in enumerate(files)}, protocol)


def picture_files(uri: str) -> list[str]:
    return [f for f in storage.list_files(uri) if PurePosixPath(f).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")]
