"""What the pipelines of AsymFLUX.2 klein share: components, defaults, loading, prompts and the solver."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import (
    DEISMultistepScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Flux2KleinPipeline,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import Flux2LoraLoaderMixin
from diffusers.pipelines.flux2.pipeline_output import Flux2PipelineOutput
from torch import Tensor
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

from asymflow import samplers
from asymflow.adapters import SamplingDefaults, load_attached, load_merged
from asymflow.adapters.basis import LAYOUT, in_layout
from asymflow.adapters.hub import OPTIONS, local_folder
from asymflow.models.conditioned import encode_prompts
from asymflow.models.gguf_base import find_gguf
from asymflow.models.latent import load_transformer
from asymflow.models.pixel import AsymFlux2Transformer2DModel
from asymflow.models.text import MAX_TOKENS
from asymflow.multistep import UNIPC, Generator
from asymflow.pipeline_arguments import check_texts, choose_space
from asymflow.subspace import Subspace

PIPELINES = (
    "AsymFlux2KleinPipeline",
    "AsymFlux2KleinImg2ImgPipeline",
    "AsymFlux2KleinInpaintPipeline",
    "AsymFlux2KleinHiresPipeline",
)
"""Names of the pipelines' classes in `model_index.json`; each loads the folders of the others"""
SCHEDULERS = {
    "unipc": UniPCMultistepScheduler,
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
    "dpmsolver": DPMSolverMultistepScheduler,
    "deis": DEISMultistepScheduler,
    "sasolver": SASolverScheduler,
}
"""Scheduler of each solver in `asymflow.samplers`; the noise levels are always `asymflow.schedule.sampling_sigmas`"""
_SINGLE_STEP = ("euler", "heun")
Scheduler: TypeAlias = (
    UniPCMultistepScheduler
    | FlowMatchEulerDiscreteScheduler
    | FlowMatchHeunDiscreteScheduler
    | DPMSolverMultistepScheduler
    | DEISMultistepScheduler
    | SASolverScheduler
)


class PixelPipeline(DiffusionPipeline, Flux2LoraLoaderMixin):
    """Base of the pipelines that sample images from a pixel model made of FLUX.2 klein.

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
        orthogonal_guidance: Default fraction of the guidance along the denoised image that is removed.

    Raises:
        ValueError: If another color space than the transformer's is given, or an invalid default.
    """

    model_cpu_offload_seq = "text_encoder->transformer"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "x_0"]
    _optional_components = ["text_encoder", "tokenizer"]

    def __init__(
        self,
        scheduler: Scheduler,
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
        orthogonal_guidance: float | None = None,
    ):
        super().__init__()
        self.register_modules(
            scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
        )
        own = {
            "height": height, "width": width, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "shift": shift, "text_padding": text_padding,
            "orthogonal_guidance": orthogonal_guidance,
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
    ) -> "PixelPipeline":
        """Load base and adapter, or a folder that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: FLUX.2 klein, a folder or repository; or this pipeline's own folder. The
                transformer of a folder may be a GGUF file (`asymflow.models.gguf_base`), with `merge=False`.
            adapter: Folder or repository of an adapter in the released format or ComfyUI's.
            subspace: A subspace, or its file, to lift the base with instead of an adapter: the untrained pixel model.
            adapter_revision: Revision of the adapter's repository; `revision` is that of the base.
            merge: Merge the adapter into the base. If not, its LoRA stays apart, as the adapter named "asymflow"; the
                base may then be quantized (`quantization_config`).
            **kwargs: As for every diffusers pipeline (`text_encoder=None`, `cache_dir`, `token`, ...). `dtype` is the
                type of the parts, float32 by default. `transformer` is a pixel model instead of an adapter, such as
                `asymflow.adapters.load_single_file` returns, or a latent one in place of the base's.

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
        given = kwargs.get("transformer")
        if isinstance(given, AsymFlux2Transformer2DModel):
            if adapter is not None or subspace is not None:
                raise ValueError("the transformer is a pixel model already: leave out adapter and subspace")
            return cls._with_transformer(Flux2KleinPipeline.from_pretrained(base, vae=None, **kwargs), given)
        if adapter is None and subspace is None:
            options = {name: kwargs[name] for name in (*OPTIONS, "revision") if name in kwargs}
            found = cls.load_config(base, **options).get("_class_name")
            if found not in PIPELINES:
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
        if given is None and find_gguf(base):
            kwargs["transformer"] = load_transformer(base, kwargs.get("dtype") or kwargs["torch_dtype"])
        latent = Flux2KleinPipeline.from_pretrained(base, vae=None, **kwargs)
        if folder is None:
            basis = in_layout(subspace if isinstance(subspace, Subspace) else Subspace.load(str(subspace)), LAYOUT)
            transformer = AsymFlux2Transformer2DModel.from_latent(
                latent.transformer, basis, sampling=vars(SamplingDefaults())
            )
        else:
            transformer = (load_merged if merge else load_attached)(latent.transformer, folder)[0]
        return cls._with_transformer(latent, transformer)

    @classmethod
    def _with_transformer(cls, latent: Flux2KleinPipeline, transformer: AsymFlux2Transformer2DModel) -> "PixelPipeline":
        """Return a pipeline of a pixel model and the text encoder of its base."""
        shift = transformer.config.sampling["shift"]
        scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift, **UNIPC)
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

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> "PixelPipeline":
        """Return a pipeline of this class that shares the modules of another one, of this package's classes.

        Args:
            pipeline: The other pipeline.
            **kwargs: Components and settings that replace those of the other pipeline. With `dtype`, the modules of
                both are converted; diffusers converts them to float32 by default.

        Returns:
            The pipeline.

        Raises:
            ValueError: If the other pipeline is not one of a pixel model.
        """
        if not isinstance(pipeline, PixelPipeline):
            raise ValueError(
                f"the pipeline is a {type(pipeline).__name__}; from_pipe takes a pipeline of a pixel model, such as "
                "AsymFlux2KleinPipeline"
            )
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        parts = pipeline.components
        own = {name: value for name, value in pipeline.config.items() if name not in parts and name[0] != "_"}
        made = cls(**{**parts, **own, **kwargs})
        return made if dtype is None else made.to(dtype)

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the sampling."""
        return self._interrupt

    def solver(self, generator: Generator = None) -> Callable[..., Tensor]:
        """Return the solver of the scheduler.

        Args:
            generator: Source of the noise of each step, for solvers of the SDE.

        Returns:
            One of `asymflow.samplers.SOLVERS`, with the scheduler's options.

        Raises:
            ValueError: If SCHEDULERS does not have the scheduler's class.
        """
        for name, kind in SCHEDULERS.items():
            if isinstance(self.scheduler, kind):
                if name in _SINGLE_STEP:
                    return samplers.SOLVERS[name]
                return partial(samplers.SOLVERS[name], solver=self.scheduler.config, generator=generator)
        allowed = ", ".join(kind.__name__ for kind in SCHEDULERS.values())
        raise ValueError(f"the scheduler is a {type(self.scheduler).__name__}; allowed: {allowed}")

    def _finish(self, images: Any, return_dict: bool) -> Flux2PipelineOutput | tuple:
        self.maybe_free_model_hooks()
        return Flux2PipelineOutput(images=images) if return_dict else (images,)
