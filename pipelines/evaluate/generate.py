"""Generation by an actor pool: every chunk of samples is a file of its own, made once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from asymflow.models.flux2 import LatentFlux2, PixelFlux2
from asymflow.models.latent import ImageEncoder, family_of
from asymflow.patches import patchify
from asymflow.subspace import Subspace
from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.basis import load_subspace
from pipelines.datasets import RowWriter
from pipelines.embeddings import text_here
from pipelines.encode import load_unconditional
from pipelines.finetune.model import load_finetuned
from pipelines.images import encode_png
from pipelines.pictures import to_pictures
from pipelines.prompts import Prompts
from pipelines.sampling import Guidance, Predict, latent_velocity, pixel_noise, sample_latents, sample_pixels

MODELS = ("latent", "lifted", "trained")
SCHEMA = pa.schema({"index": pa.int32(), "seed": pa.int32(), "caption": pa.string(), "image": pa.binary()})


def samples_file(folder: str, model: str, seed: int, start: int) -> str:
    return storage.join(folder, "samples", model, f"{seed}-{start}.parquet")


@dataclass(frozen=True)
class LatentSampler:
    """A model that samples latents, and what decodes them."""

    predict: Callable[[tuple[int, int]], Predict]
    """Its velocity on a grid (h, w)"""
    encoder: ImageEncoder
    subspace: Subspace


class Generator:
    """Samples one chunk of one model and seed; see `map_items`."""

    def __init__(self, settings: Any, inputs: dict[str, Artifact], prompts: Prompts, folder: str):
        self.settings, self.inputs, self.folder = settings, inputs, folder
        self.device = settings.resources.device
        self.unconditional = load_unconditional(inputs["encoded"]).float()
        self.captions = prompts.captions()
        self.embeddings = prompts.embeddings(text_here(inputs["encoded"], settings.base, self.device))
        first = next(prompts.images())
        self.height, self.width = first.shape[-2:]
        self.loaded: tuple[str, Any] = ("", None)

    def __call__(self, item: str) -> dict[str, Any]:
        model, seed, start, stop = json.loads(item)
        images = self.sample(model, seed, list(range(start, stop)))

        def write(local) -> None:
            with RowWriter(local, SCHEMA) as writer:
                for index, picture in zip(range(start, stop), to_pictures(images), strict=True):
                    caption = self.captions[index]
                    writer.add({"index": index, "seed": seed, "caption": caption, "image": encode_png(picture)})

        storage.write_file(samples_file(self.folder, model, seed, start), write)
        return {}

    def sample(self, name: str, seed: int, indices: list[int]) -> Tensor:
        """(B, 3, H, W) in [-1, 1]. All models get the same noise: the latent one gets its projection."""
        settings = self.settings
        noise = pixel_noise(seed, indices, self.height, self.width).to(self.device)
        text = [self.embeddings[i] for i in indices]
        guidance = Guidance(settings.guidance, settings.orthogonal)
        model = self.model(name)
        if not isinstance(model, LatentSampler):
            return sample_pixels(
                model, noise, text, self.unconditional, guidance, settings.steps, settings.shift
            ).cpu()
        subspace = model.subspace
        size = subspace.patch_size
        grid = (self.height // size, self.width // size)
        tokens = patchify(noise, size, subspace.layout) @ subspace.A.to(self.device)
        z_0 = sample_latents(
            model.predict(grid), tokens, text, self.unconditional, guidance, settings.steps, settings.latent_shift
        )
        return model.encoder.decode(z_0, grid).cpu()

    def model(self, name: str) -> Any:
        """One model at a time is held."""
        if self.loaded[0] != name:
            self.loaded = ("", None)
            self.loaded = (name, self.load(name))
        return self.loaded[1]

    def load(self, name: str) -> Any:
        base, subspace = self.settings.base, load_subspace(self.inputs["basis"])
        if name == "trained":
            model = load_finetuned(self.inputs["finetuned"], subspace, base).to(self.device)
            if not isinstance(model, LatentFlux2):
                return model
            return LatentSampler(lambda grid: partial(model, grid=grid), self.image_encoder(), subspace)
        transformer = Flux2Transformer2DModel.from_pretrained(base, subfolder="transformer").float()
        if name == "latent":
            transformer = transformer.to(self.device).eval()
            return LatentSampler(partial(latent_velocity, transformer), self.image_encoder(), subspace)
        return PixelFlux2.from_latent(transformer, subspace).to(self.device).eval()

    def image_encoder(self) -> ImageEncoder:
        base = self.settings.base
        return family_of(base).load_image_encoder(base, self.device, torch.float32)
