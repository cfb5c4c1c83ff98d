"""Generation by an actor pool: every chunk of samples is a file of its own, made once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from asymflow.models.flux2 import PixelFlux2
from asymflow.models.latent import family_of
from asymflow.patches import patchify
from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.basis import load_subspace
from pipelines.datasets import RowWriter, read_images, rows_by_group
from pipelines.embeddings import TextSource, text_here
from pipelines.encode import load_unconditional
from pipelines.finetune.model import load_finetuned
from pipelines.images import encode_png
from pipelines.pictures import to_pictures
from pipelines.sampling import Guidance, pixel_noise, sample_latents, sample_pixels
from pipelines.tensors import read_group

MODELS = ("latent", "lifted", "trained")
SCHEMA = pa.schema({"index": pa.int32(), "seed": pa.int32(), "caption": pa.string(), "image": pa.binary()})


@dataclass(frozen=True)
class Prompts:
    """The first held-out rows: captions, their embeddings, and the real pictures."""

    curated: list[str]
    text: list[str]
    """The encode step's files of the same rows"""
    count: int

    def captions(self) -> list[str]:
        return list(self._column("caption"))

    def embeddings(self, source: TextSource) -> list[Tensor]:
        """(T_i, E) float32"""
        return [source.ask({source.column: value})().float() for value in self._column(source.column)]

    def _column(self, name: str) -> Iterator[Any]:
        groups = ((file, group) for file in self.text for group in range(len(rows_by_group(file))))
        return islice((value for place in groups for value in read_group(*place, [name])[name]), self.count)

    def images(self) -> Iterator[Tensor]:
        for file in self.curated:
            for rows in read_images(file):
                yield rows.images


def samples_file(folder: str, model: str, seed: int, start: int) -> str:
    return storage.join(folder, "samples", model, f"{seed}-{start}.parquet")


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
        if name != "latent":
            return sample_pixels(
                model, noise, text, self.unconditional, guidance, settings.steps, settings.shift
            ).cpu()
        transformer, encoder, subspace = model
        size = round((subspace.patch_dim / 3) ** 0.5)
        grid = (self.height // size, self.width // size)
        tokens = patchify(noise, size, subspace.layout) @ subspace.A.to(self.device)
        z_0 = sample_latents(
            transformer, tokens, text, self.unconditional, grid, guidance, settings.steps, settings.latent_shift
        )
        return encoder.decode(z_0, grid).cpu()

    def model(self, name: str) -> Any:
        """One model at a time is held."""
        if self.loaded[0] != name:
            self.loaded = ("", None)
            self.loaded = (name, self.load(name))
        return self.loaded[1]

    def load(self, name: str) -> Any:
        base, subspace = self.settings.base, load_subspace(self.inputs["basis"])
        if name == "latent":
            transformer = Flux2Transformer2DModel.from_pretrained(base, subfolder="transformer").float()
            encoder = family_of(base).load_image_encoder(base, self.device, torch.float32)
            return transformer.to(self.device).eval(), encoder, subspace
        if name == "lifted":
            transformer = Flux2Transformer2DModel.from_pretrained(base, subfolder="transformer").float()
            return PixelFlux2.from_latent(transformer, subspace).to(self.device).eval()
        return load_finetuned(self.inputs["finetuned"], subspace, base).to(self.device)
