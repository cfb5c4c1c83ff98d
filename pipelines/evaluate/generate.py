"""Cached images: missing ones are sampled by a pool of actors.

They are in STORAGE/pictures/ID, where ID is a hash of everything that determines them; an image's name is its seed and
its prompt's hash. So evaluations with more prompts, other scorers or another suite reuse them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from asymflow.metrics.protocol import fingerprint
from pipelines.core import storage
from pipelines.core.map_items import process_items
from pipelines.data.images import encode_png
from pipelines.evaluate.image_sets import ImageSet, in_batches, keys_in
from pipelines.evaluate.prompts import Generation
from pipelines.sample.parameters import SamplingParameters
from pipelines.viz.image_grid import to_pil_images

if TYPE_CHECKING:  # only the workers load models
    from pipelines.evaluate.class_subject import ClassModel
    from pipelines.evaluate.subject import EvaluatedModel
    from pipelines.sample.sampler import ImageSampler


class Generator:
    """Samples a batch: JSON [model, folder, [[seed, prompt, key], ...]]. One model at a time is loaded."""

    def __init__(self, subject: "EvaluatedModel | ClassModel", parameters: SamplingParameters, device: str):
        self.subject, self.parameters, self.device = subject, parameters, device
        self.loaded: tuple[str, ImageSampler | None] = ("", None)

    def sampler(self, model: str) -> "ImageSampler":
        """Return the sampler of a model, loaded if it is not the present one."""
        if self.loaded[0] != model:
            self.loaded = ("", None)  # release the previous model first
            self.loaded = (model, self.subject.sampler(model, self.device))
        return cast("ImageSampler", self.loaded[1])

    def __call__(self, item: str) -> dict[str, Any]:
        """Sample and write the images of a batch."""
        model, folder, batch = json.loads(item)
        sample = self.sampler(model)
        images = sample([prompt for _, prompt, _ in batch], [seed for seed, _, _ in batch], self.parameters)
        for image, (seed, prompt, key) in zip(images, batch, strict=True):
            if not torch.isfinite(image).all():
                raise ValueError(f"the sampled image of {prompt!r}, seed {seed}, has NaN or infinite values")
            storage.write_bytes(storage.join(folder, f"{key}.png"), encode_png(to_pil_images(image[None])[0]))
        return {}


def generate(
    subject: "EvaluatedModel | ClassModel",
    models: Sequence[str],
    parameters: SamplingParameters,
    generations: Sequence[Generation],
    root: str,
    resources: Any,
) -> dict[str, ImageSet]:
    """Return one image per generation of each model.

    Args:
        subject: the evaluated model.
        models: its models to sample from.
        parameters: sampling parameters.
        generations: images to sample.
        root: the storage.
        resources: workers and batch size.

    Raises:
        ItemsFailed: images could not be sampled.
    """
    sets, items = {}, {}
    for model in models:
        protocol = {**subject.identity(model), "drawing": asdict(parameters)}
        protocol |= {"noise": "torch cpu generator of the seed", "precision": resources.precision}
        folder = storage.join(root, "pictures", fingerprint(protocol))
        storage.write_bytes(storage.join(folder, "protocol.json"), json.dumps(protocol, indent=1).encode())
        files = {generation.key: storage.join(folder, f"{generation.key}.png") for generation in generations}
        sets[model] = ImageSet(fingerprint(protocol), files, protocol)
        cached = keys_in(folder)
        missing = [[g.index, g.prompt.text, g.key] for g in generations if g.key not in cached]
        for batch in in_batches(missing, resources.batch):
            items[f"{model} {batch[0][2]}"] = json.dumps([model, folder, batch])
    make_worker = partial(Generator, subject, parameters, resources.device)
    process_items(items, make_worker, resources, "sample", unit="batch")
    return sets
