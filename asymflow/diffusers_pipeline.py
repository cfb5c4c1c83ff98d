"""AsymFLUX.2 klein as a diffusers pipeline: prompts and reference images to pixels, without an autoencoder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Flux2KleinPipeline,
    UniPCMultistepScheduler,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import Flux2LoraLoaderMixin
from diffusers.pipelines.flux2.pipeline_output import Flux2PipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

from asymflow import samplers
from asymflow.adapters import SamplingDefaults, load_attached, load_merged
from asymflow.adapters.basis import LAYOUT, in_layout
from asymflow.adapters.hub import OPTIONS, local_folder
from asymflow.guidance import Guidance, guided
from asymflow.models.conditioned import TextVelocity, encode_prompts, prepare_references
from asymflow.models.pixel import AsymFlux2Transformer2DModel
from asymflow.models.text import MAX_TOKENS
from asymflow.pipeline_arguments import (
    check_choices,
    check_count,
    check_references,
    check_texts,
    choose_size,
    choose_space,
    choose_texts,
)
from asymflow.schedule import sampling_sigmas
from asymflow.subspace import Subspace

SCHEDULERS = {
    "unipc": UniPCMultistepScheduler,
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
}
"""Scheduler of each solver in `asymflow.samplers`; the noise levels are always `asymflow.schedule.sampling_sigmas`"""


class AsymFlux2KleinPipeline(DiffusionPipeline, Flux2LoraLoaderMixin):
    """Pipeline that samples images from a pixel model made of FLUX.2 klein.

    The adapter is merged by default, so it cannot be switched off by accident; add LoRAs of styles with
    `load_lora_weights`. Each sampling default is the transformer's own (`transformer.config.sampling`), unless it is
    given here.

    Args:
        scheduler: Scheduler whose class selects the solver (SCHEDULERS).
        text_encoder: FLUX.2 klein's text encoder; None: prompts are given as embeddings.
        tokenizer: Its tokenizer.
        transformer: The pixel model.
        oklab_mean: Mean of the Oklab space, for a transformer of an older file; None: the transformer's own.
        oklab_std: Standard deviation of the Oklab space, likewise.
        height: Default height in pixels.
        width: Default width in pixels.
        num_inference_steps: Default number of steps.
        guidance_scale: Default guidance scale.
        shift: Default shift at one megapixel and below.
        text_padding: One of `asymflow.models.text.PADDINGS`.

    Raises:
        ValueError: If another color space than the transformer's is given, or an invalid default.

    Examples:
        >>> pipeline = AsymFlux2KleinPipeline.from_pretrained("models/toy_klein", adapter="models/toy_asymflow")
        >>> pipeline("an emoji of grinning face on light blue").images[0].save("smile.png")
    """

    model_cpu_offload_seq = "text_encoder->transformer"
    _callback_tensor_inputs = ["latents", "prompt_embeds"]
    _optional_components = ["text_encoder", "tokenizer"]

    def __init__(
        self,
        scheduler: UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler,
        text_encoder: Qwen3ForCausalLM | None,
        tokenizer: Qwen2TokenizerFast | None,
        transformer: AsymFlux2Transformer2DModel,
        oklab_mean: list | tuple | None = None,
        oklab_std: float | list | tuple | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        shift: float | None = None,
        text_padding: str | None = None,
    ):
        super().__init__()
        self.register_modules(
            scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
        )
        own = {
            "height": height, "width": width, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "shift": shift, "text_padding": text_padding,
        }  # fmt: skip
        given = {name: value for name, value in own.items() if value is not None}
        self.space, known = choose_space(transformer.config, oklab_mean, oklab_std), transformer.config.sampling
        self.defaults = SamplingDefaults(**{name: (known or {})[name] for name in own if name in (known or {})} | given)
        if known is None:  # an older file stores them beside the transformer
            space = {"oklab_mean": self.space.mean, "oklab_std": self.space.std}
            transformer.register_to_config(sampling=dict(vars(self.defaults)), **space)
        self.register_to_config(oklab_mean=oklab_mean, oklab_std=oklab_std, **own)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.patch_size)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter: str | Path | None = None,
        *,
        subspace: Subspace | str | Path | None = None,
        adapter_revision: str | None = None,
        merge: bool = True,
        **kwargs: Any,
    ) -> "AsymFlux2KleinPipeline":
        """Load base and adapter, or a folder that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: FLUX.2 klein, a folder or repository; or this pipeline's own folder.
            adapter: Folder or repository of an adapter in the released format or ComfyUI's.
            subspace: A subspace, or its file, to lift the base with instead of an adapter: the untrained pixel model.
            adapter_revision: Revision of the adapter's repository; `revision` is that of the base.
            merge: Merge the adapter into the base. If not, its LoRA stays apart, as the adapter named "asymflow"; the
                base may then be quantized (`quantization_config`).
            **kwargs: As for every diffusers pipeline (`text_encoder=None`, `cache_dir`, `token`, ...). `dtype` is the
                type of the parts, float32 by default.

        Returns:
            The pipeline.

        Raises:
            ValueError: If both of `adapter` and `subspace` are given, neither is given for a latent model, or one does
                not fit the base.
        """
        base = str(pretrained_model_name_or_path)
        if "torch_dtype" not in kwargs:  # its older name
            kwargs.setdefault("dtype", torch.float32)
        if adapter is not None and subspace is not None:
            raise ValueError("give an adapter, which has its own subspace, or a subspace, not both")
        if adapter is None and subspace is None:
            options = {name: kwargs[name] for name in (*OPTIONS, "revision") if name in kwargs}
            found = cls.load_config(base, **options).get("_class_name")
            if found != cls.__name__:
                raise ValueError(
                    f"{base} is a {found}, a latent model: give adapter=FOLDER_OR_REPOSITORY to make it a pixel model, "
                    "or subspace=FILE for the untrained one"
                )
            return super().from_pretrained(base, **kwargs)
        if kwargs.get("quantization_config") is not None and (merge or adapter is None):
            raise ValueError(
                "an adapter is merged into full weights: give merge=False, or save the pipeline, and quantize what was "
                "saved"
            )
        folder = None if adapter is None else local_folder(adapter, adapter_revision, kwargs)
        latent = Flux2KleinPipeline.from_pretrained(base, vae=None, **kwargs)
        if folder is None:
            basis = in_layout(subspace if isinstance(subspace, Subspace) else Subspace.load(str(subspace)), LAYOUT)
            transformer = AsymFlux2Transformer2DModel.from_latent(
                latent.transformer, basis, sampling=vars(SamplingDefaults())
            )
        else:
            transformer = (load_merged if merge else load_attached)(latent.transformer, folder)[0]
        shift = transformer.config.sampling["shift"]
        scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift, **samplers.UNIPC)
        return cls(scheduler, latent.text_encoder, latent.tokenizer, transformer)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.transformer.config.patch_size

    def encode_prompt(
        self, prompt: str | Sequence[str], device: torch.device | None = None, max_sequence_length: int = MAX_TOKENS
    ) -> list[Tensor]:
        """Return one embedding per prompt.

        Args:
            prompt: One prompt, or several.
            device: Device of the embeddings; None: the pipeline's.
            max_sequence_length: Longer prompts are cut.

        Returns:
            Embeddings (T_i, E); all T_i are `max_sequence_length` if the model attends to padding.

        Raises:
            ValueError: If the pipeline has no text encoder, or a prompt is not a text.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("this pipeline was loaded without a text encoder: give prompt_embeds")
        prompts = check_texts(prompt, "prompt")
        device = device or self._execution_device
        padding = self.defaults.text_padding
        return encode_prompts(self.text_encoder, self.tokenizer, prompts, padding, device, max_sequence_length)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | list[Image.Image] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | list[Tensor] | None = None,
        negative_prompt_embeds: Tensor | list[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, float, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = MAX_TOKENS,
        shift: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        orthogonal_guidance: bool = True,
        clamp_to_gamut: bool = True,
    ) -> Flux2PipelineOutput | tuple:
        """Sample images. Each image is the same in any batch.

        Args:
            prompt: One prompt, or a list.
            image: Reference images for all samples, as in FLUX.2.
            height: Height in pixels, a multiple of the patch size; None: that of the first reference image, else the
                default.
            width: Width in pixels, likewise.
            num_inference_steps: Number of steps; None: the default.
            guidance_scale: Guidance scale; 1: no guidance; None: the default.
            negative_prompt: Prompt of the unconditional velocity, one for all or a list; None: empty.
            num_images_per_prompt: Images per prompt.
            generator: Source of the starting noise, or a list of one per image.
            latents: Starting noise (B, 3, H, W), instead of `generator`'s.
            prompt_embeds: Embeddings (B, T, E), or a list of (T_i, E), instead of `prompt`.
            negative_prompt_embeds: Embeddings instead of `negative_prompt`.
            output_type: `pil`; `np` or `pt` (values in [0, 1]); or `latent`: normalized Oklab, not clamped again.
            return_dict: Return a Flux2PipelineOutput instead of a tuple.
            attention_kwargs: Further `joint_attention_kwargs` of the transformer.
            callback_on_step_end: Called with (pipeline, step, timestep, tensors) after each step; tensors that it
                returns replace them. `latents` are the noisy images (B, 3, H, W) in normalized Oklab. If it sets
                `pipeline._interrupt`, sampling ends with the current images.
            callback_on_step_end_tensor_inputs: Names of the tensors for the callback: `latents`, `prompt_embeds`.
            max_sequence_length: Longer prompts are cut.
            shift: Shift of the noise levels; None: the model's, which grows with the side above one megapixel.
            guidance_interval: Noise levels in [0, 1], both ends included, at which guidance is applied.
            orthogonal_guidance: Remove the component of the guidance along the denoised image (APG).
            clamp_to_gamut: Clamp each denoised image to the sRGB gamut (App. B.2).

        Returns:
            The images, as `images` of a Flux2PipelineOutput, or in a tuple.

        Raises:
            ValueError: If a size is not a multiple of the patch, or another argument is invalid; before any work.
        """
        defaults, device = self.defaults, self._execution_device
        flags = {"orthogonal_guidance": orthogonal_guidance, "clamp_to_gamut": clamp_to_gamut}
        check_choices({**flags, "return_dict": return_dict}, output_type, guidance_interval, generator)
        check_references(image)
        references = prepare_references(image, self.patch_size)
        followed = references[0].shape[-2:] if references else None
        default = (defaults.height, defaults.width)
        height, width = choose_size(height, width, followed, default, self.patch_size)
        steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        counts = {"num_images_per_prompt": num_images_per_prompt, "max_sequence_length": max_sequence_length}
        for name, value in {**counts, "num_inference_steps": steps}.items():
            check_count(name, value)
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        guidance = Guidance(scale, orthogonal_guidance, guidance_interval)
        shift = defaults.shift_at(height, width) if shift is None else shift
        sigmas, solve = sampling_sigmas(steps, shift), self._solver()

        embedding_dim = self.transformer.config.joint_attention_dim
        texts = choose_texts(prompt, prompt_embeds, "prompt", embedding_dim)
        if negative_prompt_embeds is None and (negative_prompt is None or isinstance(negative_prompt, str)):
            negative_prompt = [negative_prompt or ""] * len(texts)
        negatives = choose_texts(negative_prompt, negative_prompt_embeds, "negative_prompt", embedding_dim)
        if len(negatives) != len(texts):
            raise ValueError(f"{len(negatives)} negative prompts were given for {len(texts)} prompts")
        shape = (len(texts) * num_images_per_prompt, 3, height, width)
        noise = self._prepare_latents(shape, latents, generator, device)
        inputs = callback_on_step_end_tensor_inputs
        unknown = set(inputs if isinstance(inputs, list | tuple) else [str(inputs)]) - set(self._callback_tensor_inputs)
        if unknown:
            allowed = f"allowed: {', '.join(self._callback_tensor_inputs)}"
            raise ValueError(f"callback_on_step_end_tensor_inputs has {', '.join(sorted(unknown))}; {allowed}")

        clean = [self.space.encode(reference[0].to(device, torch.float32)) for reference in references]

        def velocity_of(texts: list[str] | list[Tensor], branch: str) -> TextVelocity:
            embeddings = self.encode_prompt(texts, device, max_sequence_length) if isinstance(texts[0], str) else texts
            embeddings = [embedding.to(device) for embedding in embeddings for _ in range(num_images_per_prompt)]
            return TextVelocity(self.transformer, (height, width), embeddings, clean, attention_kwargs, branch)

        conditional = velocity_of(texts, "cond")
        unconditional = velocity_of(negatives, "uncond") if guidance.scale != 1 else conditional
        self._interrupt = False

        def after_step(step: int, x_t: Tensor) -> Tensor:
            progress.update()
            if callback_on_step_end is not None:
                tensors = {"latents": x_t, "prompt_embeds": conditional.text}
                selected = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                changed = callback_on_step_end(self, step, 1000 * float(sigmas[step]), selected) or {}
                x_t, conditional.text = changed.get("latents", x_t), changed.get("prompt_embeds", conditional.text)
            if self._interrupt:
                raise _Interrupted(x_t)
            return x_t

        with self.progress_bar(total=steps) as progress:
            try:
                gamut = self.space.clamp_to_gamut if clamp_to_gamut else None
                x_0 = solve(guided(conditional, unconditional, guidance), noise, steps, shift, gamut, after_step)
            except _Interrupted as interrupted:
                x_0 = interrupted.x_t
        decoded = x_0 if output_type == "latent" else self.space.decode(x_0)
        images = self.image_processor.postprocess(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return Flux2PipelineOutput(images=images) if return_dict else (images,)

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the sampling."""
        return self._interrupt

    def _solver(self) -> Callable[..., Tensor]:
        """Return the solver of the scheduler; raise ValueError if SCHEDULERS has none."""
        for name, kind in SCHEDULERS.items():
            if isinstance(self.scheduler, kind):
                own = {"solver": self.scheduler.config} if name == "unipc" else {}
                return partial(samplers.SOLVERS[name], **own)
        allowed = ", ".join(kind.__name__ for kind in SCHEDULERS.values())
        raise ValueError(f"the scheduler is a {type(self.scheduler).__name__}; allowed: {allowed}")

    def _prepare_latents(
        self,
        shape: tuple[int, ...],
        latents: Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
    ) -> Tensor:
        """Return the starting noise, float32 on the device."""
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators were given for {shape[0]} images")
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if not isinstance(latents, Tensor) or latents.shape != shape:
            found = tuple(latents.shape) if isinstance(latents, Tensor) else latents
            raise ValueError(f"latents are {found}; expected the starting noise, a tensor {shape}")
        return latents.to(device, torch.float32)


class _Interrupted(Exception):
    def __init__(self, x_t: Tensor):
        self.x_t = x_t
