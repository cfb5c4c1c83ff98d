"""Samplers: images from prompts and seeds, by pixel or latent models, finetuned or untrained."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.utils.logging import disable_progress_bar
from torch import Tensor

from asymflow.adapters import SamplingDefaults, kind_of, read_adapter, read_defaults, restore
from asymflow.adapters.basis import LAYOUT, in_layout
from asymflow.devices import default_dtype
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline
from asymflow.guidance import Guidance
from asymflow.models import latent
from asymflow.models.gguf_base import find_gguf
from asymflow.models.latent import ImageEncoder, family_of
from asymflow.models.lifted import LatentModel, PixelModel
from asymflow.models.text import MAX_TOKENS
from asymflow.patches import patchify
from asymflow.samplers import SOLVERS
from asymflow.sampling import Predict, latent_velocity, text_guided
from asymflow.subspace import Subspace
from pipelines.sample.adapter_files import adapter_files, weights_sha256
from pipelines.sample.edits import LatentEditor, PixelEditor
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.pixel_samplers import PixelSampler
from pipelines.sample.step_callback import OnStep, after_each

disable_progress_bar()  # of model loading
Encode = Callable[[Sequence[str]], list[Tensor]]
"""Encodes prompts to embeddings (T_i, E)"""


class ImageSampler(Protocol):
    """Samples one image per prompt, from the noise of its seed: (B, 3, H, W) sRGB in [-1, 1]."""

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], parameters: SamplingParameters, on_step: OnStep = ...
    ) -> Tensor:
        """Return the images of the prompts, from the noise of their seeds."""
        ...


class LatentSampler:
    """Samples latent tokens from the projection of the same noise, and decodes them."""

    def __init__(
        self, predict_on: Callable[[tuple[int, int]], Predict], decoder: ImageEncoder, encode: Encode,
        A: Tensor, s: float, patch_size: int,
    ):  # fmt: skip
        self.predict_on, self.decoder, self.encode = predict_on, decoder, encode
        self.A, self.s, self.patch_size = A, s, patch_size  # channel first

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], parameters: SamplingParameters, on_step: OnStep = None
    ) -> Tensor:
        """Return images; see `ImageSampler`."""
        grid = (parameters.height // self.patch_size, parameters.width // self.patch_size)
        velocity = _guided(self.predict_on(grid), self.encode, prompts, parameters)
        noise = patchify(parameters.noise(list(seeds)).to(self.A.device), self.patch_size) @ self.A
        shift = parameters.latent_shift or parameters.shift / self.s
        solve = SOLVERS[parameters.solver]
        z_0 = solve(velocity, noise, parameters.steps, shift, callback=after_each(on_step))
        return self.decoder.decode(z_0, grid).float().cpu()


class ModelSampler:
    """Samples by a pixel model of the project: the DDT baseline, or a model of a family without a pipeline."""

    def __init__(self, model: Any, encode: Encode):
        self.model, self.encode = model, encode

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], parameters: SamplingParameters, on_step: OnStep = None
    ) -> Tensor:
        """Return images; see `ImageSampler`."""
        space = self.model.subspace.space
        velocity = _guided(self.model, self.encode, prompts, parameters)
        noise = parameters.noise(list(seeds)).to(self.model.A.device)
        clamp = space.clamp_to_gamut if parameters.clamp else None
        solve = SOLVERS[parameters.solver]
        x_0 = solve(velocity, noise, parameters.steps, parameters.shift, clamp, after_each(on_step))
        return space.decode(x_0).float().cpu()


def _guided(predict: Predict, encode: Encode, prompts: Sequence[str], parameters: SamplingParameters):
    texts = encode([*prompts, parameters.negative_prompt])
    guidance = Guidance(parameters.guidance, parameters.orthogonal, parameters.interval)
    return text_guided(predict, texts[:-1], texts[-1], guidance)


class PipelineSampler:
    """Samplers of an adapter's pixel model (or a merged pipeline) and, loaded on first use, of its latent base.

    `base` is a local folder, `adapter` a folder, S3 URI or repository, or empty. On a GPU all weights are bfloat16.
    """

    def __init__(self, base: str, adapter: str = "", device: str = "cpu"):
        self.base, self.adapter, self.device = base, adapter, device
        with adapter_files(adapter) as folder:
            pipeline = load_pipeline(base, folder, default_dtype(device))
            self.adapter_sha256 = weights_sha256(folder) if folder else ""
        self.pipeline: Any = pipeline.to(device)
        self.pixel = PixelSampler(self.pipeline)

    @property
    def defaults(self) -> SamplingDefaults:
        """Return the model's default sampling parameters."""
        return self.pipeline.defaults

    @property
    def patch_size(self) -> int:
        """Return the pixel model's patch size."""
        return self.pipeline.patch_size

    @cached_property
    def latent(self) -> LatentSampler:
        """Return the sampler of the latent base, loaded on first use."""
        pixels, predict = self.pipeline.transformer, partial(latent_velocity, self._latent_transformer)
        A, s, size = pixels.proj_buffer, float(pixels.scale_buffer), pixels.config.patch_size
        return LatentSampler(predict, self._decoder, self.pipeline.encode_prompt, A, s, size)

    @cached_property
    def edit_pixel(self) -> PixelEditor:
        """Return the editor by the pixel model."""
        return PixelEditor(self.pipeline)

    @cached_property
    def edit_latent(self) -> LatentEditor:
        """Return the editor by the latent base, which shares the modules of `latent`."""
        text = self.pipeline.text_encoder, self.pipeline.tokenizer
        return LatentEditor(self.base, self._latent_transformer, self._decoder.autoencoder, *text)

    @cached_property
    def _latent_transformer(self) -> Any:
        return load_transformer(self.base, self.device)

    @cached_property
    def _decoder(self) -> Any:
        return load_decoder(self.base, self.device)


class AdapterSampler:
    """The same for what has no pipeline, a family or a baseline: the model's frozen teacher is the latent base."""

    def __init__(self, base: str, adapter: str, device: str = "cpu"):
        self.base, self.adapter, self.device = base, adapter, device
        with adapter_files(adapter) as folder:
            if folder is None:
                raise ValueError("adapter: missing; the base alone is a latent model")
            if kind_of(read_adapter(folder)[1]) == "latent":
                raise ValueError(f"adapter={adapter!r}: a latent model; only pixel models are sampled here")
            self.model: Any = restore(load_transformer(base, device), folder).to(device)
            self.defaults, self.adapter_sha256 = read_defaults(folder), weights_sha256(folder)
        self.patch_size: int = self.model.patch_size
        self.encode = load_encode(base, self.defaults.text_padding, device)
        self.pixel = ModelSampler(self.model, self.encode)

    @cached_property
    def latent(self) -> LatentSampler:
        """Return the sampler of the latent base, whose decoder is loaded on first use."""
        A = in_layout(self.model.subspace, LAYOUT).A.float().to(self.device)
        decoder = load_decoder(self.base, self.device)
        return LatentSampler(self._teacher, decoder, self.encode, A, self.model.s, self.patch_size)

    def _teacher(self, grid: tuple[int, int]) -> Predict:
        predict = latent_velocity(self.model.transformer, grid)

        def run(*arguments: Tensor) -> Tensor:
            with self.model.teacher_view():
                return predict(*arguments)

        return run


PairSampler = PipelineSampler | AdapterSampler
"""Samples by a pixel model and by its latent base"""


def open_sampler(base: str, adapter: str = "", device: str = "cpu") -> PairSampler:
    """Return the sampler of a base with an adapter, or of a merged pipeline."""
    if adapter and not family_of(base).pixel_pipeline:
        return AdapterSampler(base, adapter, device)
    with adapter_files(adapter) as folder:
        kind = "asymflow" if folder is None else kind_of(read_adapter(folder)[1])
    return PipelineSampler(base, adapter, device) if kind == "asymflow" else AdapterSampler(base, adapter, device)


def load_sampler(
    model: str, base: str, adapter: Path | None, subspace: Subspace | None, defaults: SamplingDefaults, device: str
) -> ImageSampler:
    """Return the sampler of one model.

    Args:
        model: `trained` is the adapter on its base, `lifted` the untrained pixel model of a subspace, `latent` the
            base.
        base: folder of the latent model.
        adapter: folder of the adapter, for `trained`.
        subspace: channel first; not needed for `trained` if the adapter has its own.
        defaults: default sampling parameters.
        device: device of the model.

    Raises:
        ValueError: files are missing or do not fit.
    """
    dtype = default_dtype(device)
    if model == "trained" and adapter is None:  # a merged pipeline
        return _pipeline_sampler(AsymFlux2KleinPipeline.from_pretrained(base, dtype=dtype), device)
    has_pipeline = family_of(base).pixel_pipeline
    kind = kind_of(read_adapter(adapter)[1]) if model == "trained" and adapter is not None else None
    if has_pipeline and kind == "asymflow":
        return _pipeline_sampler(load_pipeline(base, adapter, dtype), device)
    if model == "lifted" and has_pipeline:
        pipeline = AsymFlux2KleinPipeline.from_pretrained(base, subspace=subspace, dtype=dtype)
        pipeline.defaults = defaults  # for the padding of prompts; the rest is in the sampling parameters
        return _pipeline_sampler(pipeline, device)
    encode, transformer = load_encode(base, defaults.text_padding, device), load_transformer(base, device)
    predict_on: Callable[[tuple[int, int]], Predict] = partial(latent_velocity, transformer)
    if model == "trained" and adapter is not None:
        found: Any = restore(transformer, adapter, subspace).to(device)
        if not isinstance(found, LatentModel):
            return ModelSampler(found, encode)

        def predict_on(grid: tuple[int, int]) -> Predict:
            return partial(found, grid=grid)

    if model == "lifted" and subspace is not None:
        return ModelSampler(PixelModel.from_latent(transformer, subspace).to(device).eval(), encode)
    if subspace is None:
        raise ValueError("a latent model is sampled from projected pixel noise, which needs a subspace: give a basis")
    A = subspace.A.float().to(device)
    return LatentSampler(predict_on, load_decoder(base, device), encode, A, float(subspace.s), subspace.patch_size)


def load_pipeline(base: str, adapter: Any, dtype: torch.dtype) -> Any:
    """Return the pipeline of base and adapter. A full base is merged with it; a GGUF base has it attached."""
    merge = find_gguf(base) is None
    return AsymFlux2KleinPipeline.from_pretrained(base, adapter=adapter, merge=merge, dtype=dtype)


def _pipeline_sampler(pipeline: Any, device: str) -> PixelSampler:
    return PixelSampler(pipeline.to(device))


def load_transformer(base: str, device: str) -> Any:
    """Return the base's transformer in evaluation mode."""
    return latent.load_transformer(base, default_dtype(device)).to(device).eval()


def load_encode(base: str, padding: str, device: str) -> Encode:
    """Return the family's text encoder. It truncates prompts to `MAX_TOKENS`."""
    dtype = default_dtype(device)
    return family_of(base).load_text_encoder(base, device, dtype, MAX_TOKENS, padding).encode


def load_decoder(base: str, device: str) -> ImageEncoder:
    """Return the base's image encoder and decoder."""
    return family_of(base).load_image_encoder(base, device, default_dtype(device))
