"""Generation by an actor pool: every chunk of samples is a file of its own, made once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor

from asymflow.models.autoencoder import decode_latents
from asymflow.models.flux2 import PixelFlux2
from asymflow.patches import patchify
from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.basis import load_subspace
from pipelines.datasets import RowWriter, read_images, read_rows
from pipelines.encode import from_bf16_bytes, load_unconditional
from pipelines.finetune.model import load_finetuned
from pipelines.images import encode_png
from pipelines.pictures import to_pictures
from pipelines.sampling import Guidance, pixel_noise, sample_latents, sample_pixels

MODELS = ("latent", "lifted", "trained")
SCHEMA = pa.schema({"index": pa.int32(), "seed": pa.int32(), "caption": pa.string(), "image": pa.binary()})


@dataclass(frozen=True)
class Prompts:
    """The first held-out rows: captions, their embeddings, and the real pictures."""

    curated: list[str]
    encoded: list[str]
    count: int

    def captions(self) -> list[str]:
        return [c for f in self.curated for rows in read_rows(f, ["caption"]) for c in rows["caption"]][: self.count]

    def embeddings(self, width: int) -> list[Tensor]:
        data = [t for f in self.encoded for rows in read_rows(f, ["text"]) for t in rows["text"]][: self.count]
        return [from_bf16_bytes(d, width) for d in data]

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
        self.unconditional, _ = load_unconditional(inputs["encoded"])
        self.captions = prompts.captions()
        self.embeddings = prompts.embeddings(self.unconditional.shape[-1])
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
        transformer, autoencoder, subspace = model
        size = round((subspace.patch_dim / 3) ** 0.5)
        grid = (self.height // size, self.width // size)
        tokens = patchify(noise, size, subspace.layout) @ subspace.A.to(self.device)
        z_0 = sample_latents(
            transformer, tokens, text, self.unconditional, grid, guidance, settings.steps, settings.latent_shift
        )
        return decode_latents(autoencoder, z_0, grid).cpu()

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
            autoencoder = AutoencoderKLFlux2.from_pretrained(base, subfolder="vae").float()
            return transformer.to(self.device).eval(), autoencoder.to(self.device).eval(), subspace
        if name == "lifted":
            transformer = Flux2Transformer2DModel.from_pretrained(base, subfolder="transformer").float()
            return PixelFlux2.from_latent(transformer, subspace).to(self.device).eval()
        return load_finetuned(self.inputs["finetuned"], subspace, base).to(self.device)
