"""Pictures from prompts and seeds, by a model of any kind: pixel or latent, finetuned, untrained or as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.utils.logging import disable_progress_bar
from torch import Tensor

from asymflow.adapters import COMFYUI, WEIGHTS, SamplingDefaults, kind_of, read_adapter, read_defaults, restore
from asymflow.adapters.basis import LAYOUT, in_layout
from asymflow.adapters.hub import local_folder
from asymflow.content import sha256_of
from asymflow.devices import default_dtype
from asymflow.diffusers_pipeline import SCHEDULERS, AsymFlux2KleinPipeline
from asymflow.guidance import Guidance
from asymflow.models import latent
from asymflow.models.latent import ImageEncoder, family_of
from asymflow.models.lifted import LatentModel, PixelModel
from asymflow.models.text import MAX_TOKENS
from asymflow.patches import patchify
from asymflow.samplers import SOLVERS
from asymflow.sampling import Predict, latent_velocity, text_guided
from asymflow.subspace import Subspace
from pipelines.core import storage
from pipelines.sample.parameters import SamplingParameters

disable_progress_bar()  # of loading
OnStep = Callable[[int], None]
"""Told of each step, 0 .. steps - 1, once it is done"""
Encode = Callable[[Sequence[str]], list[Tensor]]
"""Prompts to embeddings (T_i, E)"""


class ImageSampler(Protocol):
    """(B, 3, H, W) sRGB in [-1, 1]: one picture a prompt, from the noise of its seed."""

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], drawing: SamplingParameters, on_step: OnStep = ...
    ) -> Tensor: ...


def _ignore(step: int) -> None: ...


class PixelSampler:
    """By our pipeline."""

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(disable=True)

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], drawing: SamplingParameters, on_step: OnStep = _ignore
    ) -> Tensor:
        self.pipeline.scheduler = SCHEDULERS[drawing.solver]()
        images = self.pipeline(
            list(prompts),
            height=drawing.height,
            width=drawing.width,
            num_inference_steps=drawing.steps,
            guidance_scale=drawing.guidance,
            negative_prompt=drawing.negative_prompt,
            latents=drawing.noise(list(seeds)),
            output_type="pt",
            shift=drawing.shift,
            guidance_interval=drawing.interval,
            orthogonal_guidance=drawing.orthogonal,
            clamp_to_gamut=drawing.clamp,
            callback_on_step_end=lambda pipeline, step, *_: on_step(step),
        ).images
        return 2 * images.float().cpu() - 1


class LatentSampler:
    """By a model that samples latent tokens, from the projection of the same noise; its pictures are decoded."""

    def __init__(
        self, predict_on: Callable[[tuple[int, int]], Predict], decoder: ImageEncoder, encode: Encode,
        A: Tensor, s: float, patch_size: int,
    ):  # fmt: skip
        self.predict_on, self.decoder, self.encode = predict_on, decoder, encode
        self.A, self.s, self.patch_size = A, s, patch_size  # channel first

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], drawing: SamplingParameters, on_step: OnStep = _ignore
    ) -> Tensor:
        grid = (drawing.height // self.patch_size, drawing.width // self.patch_size)
        velocity = _guided(self.predict_on(grid), self.encode, prompts, drawing)
        noise = patchify(drawing.noise(list(seeds)).to(self.A.device), self.patch_size) @ self.A
        shift = drawing.latent_shift or drawing.shift / self.s
        solve = SOLVERS[drawing.solver]
        z_0 = solve(velocity, noise, drawing.steps, shift, callback=lambda step, z_t: on_step(step))
        return self.decoder.decode(z_0, grid).float().cpu()


class ModelSampler:
    """By a pixel model of ours: the DDT baseline, and the models of families without a pipeline."""

    def __init__(self, model: Any, encode: Encode):
        self.model, self.encode = model, encode

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], drawing: SamplingParameters, on_step: OnStep = _ignore
    ) -> Tensor:
        space = self.model.subspace.space
        velocity = _guided(self.model, self.encode, prompts, drawing)
        noise = drawing.noise(list(seeds)).to(self.model.A.device)
        clamp = space.clamp_to_gamut if drawing.clamp else None
        solve = SOLVERS[drawing.solver]
        x_0 = solve(velocity, noise, drawing.steps, drawing.shift, clamp, lambda step, x_t: on_step(step))
        return space.decode(x_0).float().cpu()


def _guided(predict: Predict, encode: Encode, prompts: Sequence[str], drawing: SamplingParameters):
    texts = encode([*prompts, drawing.negative_prompt])
    guidance = Guidance(drawing.guidance, drawing.orthogonal, drawing.interval)
    return text_guided(predict, texts[:-1], texts[-1], guidance)


class PipelineSampler:
    """Holds the pixel model of an adapter on its base, or a merged pipeline without an adapter; and, once it is asked
    for, the latent model.

    `base` is a local folder, `adapter` a folder, S3 URI or repository, or empty. On a GPU all is in bfloat16.
    """

    def __init__(self, base: str, adapter: str = "", device: str = "cpu"):
        self.base, self.adapter, self.device = base, adapter, device
        with adapter_files(adapter) as folder:
            pipeline = AsymFlux2KleinPipeline.from_pretrained(base, adapter=folder, dtype=default_dtype(device))
            self.adapter_sha256 = weights_sha256(folder) if folder else ""
        self.pipeline: Any = pipeline.to(device)
        self.pixel = PixelSampler(self.pipeline)

    @property
    def defaults(self) -> SamplingDefaults:
        return self.pipeline.defaults

    @property
    def patch_size(self) -> int:
        return self.pipeline.patch_size

    @cached_property
    def latent(self) -> LatentSampler:
        """Loaded when it is first asked for."""
        transformer, pixels = load_transformer(self.base, self.device), self.pipeline.transformer
        A, s, size = pixels.proj_buffer, float(pixels.scale_buffer), pixels.config.patch_size
        decoder = load_decoder(self.base, self.device)
        return LatentSampler(partial(latent_velocity, transformer), decoder, self.pipeline.encode_prompt, A, s, size)


class AdapterSampler:
    """The same of a family without a pipeline: the model of an adapter, with its base as the frozen teacher."""

    def __init__(self, base: str, adapter: str, device: str = "cpu"):
        self.base, self.adapter, self.device = base, adapter, device
        with adapter_files(adapter) as folder:
            if folder is None:
                raise ValueError("adapter: missing; the base alone is a latent model")
            if (kind := kind_of(read_adapter(folder)[1])) != "asymflow":
                raise ValueError(f"adapter={adapter!r}: a model of kind {kind}; only asymflow is sampled here")
            self.model: Any = restore(load_transformer(base, device), folder).to(device)
            self.defaults, self.adapter_sha256 = read_defaults(folder), weights_sha256(folder)
        self.patch_size: int = self.model.patch_size
        self.encode = load_encode(base, self.defaults.text_padding, device)
        self.pixel = ModelSampler(self.model, self.encode)

    @cached_property
    def latent(self) -> LatentSampler:
        """Its decoder is loaded when it is first asked for."""
        A = in_layout(self.model.subspace, LAYOUT).A.float().to(self.device)
        decoder = load_decoder(self.base, self.device)
        return LatentSampler(self._teacher, decoder, self.encode, A, self.model.s, self.patch_size)

    def _teacher(self, grid: tuple[int, int]) -> Predict:
        predict = latent_velocity(self.model.transformer, grid)

        def run(*arguments: Tensor) -> Tensor:
            with self.model.teacher_view():
                return predict(*arguments)

        return run


BothSampler = PipelineSampler | AdapterSampler
"""Of a pixel model and its base"""


def open_sampler(base: str, adapter: str = "", device: str = "cpu") -> BothSampler:
    """The sampler of a base with an adapter, or of a merged pipeline."""
    if adapter and not family_of(base).pixel_pipeline:
        return AdapterSampler(base, adapter, device)
    return PipelineSampler(base, adapter, device)


def load_sampler(
    model: str, base: str, adapter: Path | None, subspace: Subspace | None, defaults: SamplingDefaults, device: str
) -> ImageSampler:
    """One model alone: `trained` is the adapter's on its base, `lifted` the untrained pixel model of a subspace, and
    `latent` the base. `subspace` (channel first) is not needed where the adapter has its own, but for `trained`.

    Raises:
        ValueError: files that are missing or do not fit.
    """
    dtype = default_dtype(device)
    if model == "trained" and adapter is None:  # a merged pipeline
        return _pipeline_sampler(AsymFlux2KleinPipeline.from_pretrained(base, dtype=dtype), device)
    has_pipeline = family_of(base).pixel_pipeline
    kind = kind_of(read_adapter(adapter)[1]) if model == "trained" and adapter is not None else None
    if has_pipeline and kind == "asymflow":
        return _pipeline_sampler(AsymFlux2KleinPipeline.from_pretrained(base, adapter=adapter, dtype=dtype), device)
    if model == "lifted" and has_pipeline:
        pipeline = AsymFlux2KleinPipeline.from_pretrained(base, subspace=subspace, dtype=dtype)
        pipeline.defaults = defaults  # of how prompts are padded; the rest is the drawing's
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
        raise ValueError("a latent model is given the pixel model's noise, which needs a subspace: give a basis")
    A = subspace.A.float().to(device)
    return LatentSampler(predict_on, load_decoder(base, device), encode, A, float(subspace.s), subspace.patch_size)


def _pipeline_sampler(pipeline: Any, device: str) -> PixelSampler:
    return PixelSampler(pipeline.to(device))


@contextmanager
def adapter_files(adapter: str) -> Iterator[Path | None]:
    """A local folder of the adapter at a path, S3 URI or in a repository; None for the empty name."""
    if adapter.startswith("s3://"):
        with storage.local_folder(adapter) as folder:
            yield folder
    else:
        yield local_folder(adapter) if adapter else None


def load_transformer(base: str, device: str) -> Any:
    return latent.load_transformer(base, default_dtype(device)).to(device).eval()


def load_encode(base: str, padding: str, device: str) -> Encode:
    """The family's text encoder. Prompts are cut at `MAX_TOKENS`."""
    dtype = default_dtype(device)
    return family_of(base).load_text_encoder(base, device, dtype, MAX_TOKENS, padding).encode


def load_decoder(base: str, device: str) -> ImageEncoder:
    return family_of(base).load_image_encoder(base, device, default_dtype(device))


def weights_sha256(adapter: Path) -> str:
    """Of the adapter's tensors."""
    read_defaults(adapter)  # which says what is missing
    path = next(path for path in (adapter / WEIGHTS, adapter / COMFYUI) if path.is_file())
    return sha256_of(path)
