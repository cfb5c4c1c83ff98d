"""One call of a pipeline: its arguments, their checks before any work, and the sampling."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from asymflow.guidance import Guidance, guided
from asymflow.models.conditioned import TextVelocity
from asymflow.models.text import MAX_TOKENS
from asymflow.pipeline_arguments import check_choices, check_count, check_fraction, check_sigmas, choose_texts
from asymflow.schedule import sampling_sigmas


@dataclass(frozen=True)
class Arguments:
    """Arguments that the calls of all pipelines share; `AsymFlux2KleinPipeline.__call__` describes them."""

    prompt: str | list[str] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | list[str] | None = None
    num_images_per_prompt: int = 1
    generator: torch.Generator | list[torch.Generator] | None = None
    latents: Tensor | None = None
    prompt_embeds: Tensor | list[Tensor] | None = None
    negative_prompt_embeds: Tensor | list[Tensor] | None = None
    output_type: str = "pil"
    return_dict: bool = True
    attention_kwargs: dict[str, Any] | None = None
    callback_on_step_end: Callable[[Any, int, float, dict], dict] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    max_sequence_length: int = MAX_TOKENS
    shift: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    orthogonal_guidance: float | None = None
    clamp_to_gamut: float = True
    sigmas: Sequence[float] | None = None
    shift_law: str = "sqrt"


class Run:
    """A checked call, ready to sample.

    Args:
        pipeline: The pipeline.
        arguments: Arguments of the call.
        size: Height and width of the samples, multiples of the patch size.
        references: Reference images (1, 3, H_i, W_i), sRGB in [-1, 1].
        strength: Fraction of the steps that are left, from an image; None: from noise.

    Raises:
        ValueError: If an argument is invalid; before any work.
    """

    def __init__(
        self,
        pipeline: Any,
        arguments: Arguments,
        size: tuple[int, int],
        references: Sequence[Tensor] = (),
        strength: float | None = None,
    ):
        given, defaults = arguments, pipeline.defaults
        self.pipeline, self.arguments, self.size, self.references = pipeline, arguments, size, references
        choices = given.output_type, given.guidance_interval, given.generator
        check_choices({"return_dict": given.return_dict}, *choices)
        orthogonal = defaults.orthogonal_guidance if given.orthogonal_guidance is None else given.orthogonal_guidance
        fractions = {"orthogonal_guidance": orthogonal, "clamp_to_gamut": given.clamp_to_gamut}
        for name, value in {**fractions, "strength": 1.0 if strength is None else strength}.items():
            check_fraction(name, value)
        check_sigmas(given.sigmas)
        steps = defaults.num_inference_steps if given.sigmas is None else len(given.sigmas)
        steps = steps if given.num_inference_steps is None else given.num_inference_steps
        counts = {
            "num_images_per_prompt": given.num_images_per_prompt,
            "max_sequence_length": given.max_sequence_length,
            "num_inference_steps": steps,
        }
        for name, value in counts.items():
            check_count(name, value)
        scale = defaults.guidance_scale if given.guidance_scale is None else given.guidance_scale
        self.guidance = Guidance(scale, orthogonal, given.guidance_interval)
        shift = defaults.shift_at(*size, given.shift_law) if given.shift is None else given.shift
        self.sigmas = sampling_sigmas(steps, shift, 1.0 if strength is None else strength, given.sigmas)
        if strength is None and self.sigmas[0] != 1:
            raise ValueError(f"sigmas begins at {given.sigmas[0]}; without an image it begins at 1")  # type: ignore[index]
        self.solve = pipeline.solver(given.generator)
        self._check_texts(pipeline.transformer.config.joint_attention_dim)
        self.shape = (len(self.texts) * given.num_images_per_prompt, 3, *size)
        self._check_noise()
        inputs, known = given.callback_on_step_end_tensor_inputs, pipeline._callback_tensor_inputs
        unknown = set(inputs if isinstance(inputs, list | tuple) else [str(inputs)]) - set(known)
        if unknown:
            named = ", ".join(sorted(unknown))
            raise ValueError(f"callback_on_step_end_tensor_inputs has {named}; allowed: {', '.join(known)}")

    def _check_texts(self, embedding_dim: int) -> None:
        given = self.arguments
        self.texts = choose_texts(given.prompt, given.prompt_embeds, "prompt", embedding_dim)
        negative = given.negative_prompt
        if given.negative_prompt_embeds is None and (negative is None or isinstance(negative, str)):
            negative = [negative or ""] * len(self.texts)
        self.negatives = choose_texts(negative, given.negative_prompt_embeds, "negative_prompt", embedding_dim)
        if len(self.negatives) != len(self.texts):
            raise ValueError(f"{len(self.negatives)} negative prompts were given for {len(self.texts)} prompts")

    def _check_noise(self) -> None:
        generator, latents = self.arguments.generator, self.arguments.latents
        if isinstance(generator, list) and len(generator) != self.shape[0]:
            raise ValueError(f"{len(generator)} generators were given for {self.shape[0]} images")
        if latents is not None and (not isinstance(latents, Tensor) or latents.shape != self.shape):
            found = tuple(latents.shape) if isinstance(latents, Tensor) else latents
            raise ValueError(f"latents are {found}; expected the starting noise, a tensor {self.shape}")

    def for_each_sample(self, name: str, items: Sequence[Any]) -> list[Any]:
        """Return one item per sample: of one item for all prompts, or one per prompt.

        Args:
            name: Name of the argument.
            items: The items.

        Returns:
            Items, as many as samples.

        Raises:
            ValueError: For another number of items.
        """
        prompts, each = len(self.texts), self.arguments.num_images_per_prompt
        if len(items) not in (1, prompts):
            raise ValueError(f"{name} has {len(items)} images for {prompts} prompts; give one, or one per prompt")
        return [items[i // each if len(items) > 1 else 0] for i in range(prompts * each)]

    def _velocity(self, texts: list[str] | list[Tensor], branch: str, clean: list[Tensor]) -> TextVelocity:
        pipeline, given, device = self.pipeline, self.arguments, self.pipeline._execution_device
        if isinstance(texts[0], str):
            texts = pipeline.encode_prompt(texts, device, given.max_sequence_length)
        embeddings = [text.to(device) for text in texts for _ in range(given.num_images_per_prompt)]  # type: ignore[union-attr]
        return TextVelocity(pipeline.transformer, self.size, embeddings, clean, given.attention_kwargs, branch)

    def __call__(self, known: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Sample.

        Args:
            known: Images (B, 3, H, W) to start from, in normalized Oklab.
            mask: Weights (B, 1, H, W) in [0, 1]: each denoised image but the last is blended with `known`, which keeps
                its part of the noisy image on the straight line from its noise. None: 1.

        Returns:
            Denoised images (B, 3, H, W) in normalized Oklab; of an interrupted run, the noisy ones.
        """
        pipeline, given, device = self.pipeline, self.arguments, self.pipeline._execution_device
        if given.latents is None:
            x_t = randn_tensor(self.shape, generator=given.generator, device=device, dtype=torch.float32)
        else:
            x_t = given.latents.to(device, torch.float32)
        if known is not None and self.sigmas[0] < 1:
            x_t = torch.lerp(known, x_t, float(self.sigmas[0]))
        clean = [pipeline.space.encode(reference[0].to(device, torch.float32)) for reference in self.references]
        conditional = self._velocity(self.texts, "cond", clean)
        unconditional = self._velocity(self.negatives, "uncond", clean) if self.guidance.scale != 1 else conditional
        pipeline._interrupt, steps = False, len(self.sigmas) - 1
        first_clamped, step, x_0 = steps - math.ceil(steps * given.clamp_to_gamut - 1e-9), 0, x_t

        def transform(denoised: Tensor) -> Tensor:
            nonlocal x_0
            x_0 = pipeline.space.clamp_to_gamut(denoised) if step >= first_clamped else denoised
            if known is not None and mask is not None and step < steps - 1:
                x_0 = torch.lerp(known, x_0, mask)
            return x_0

        def after_step(done: int, x_t: Tensor) -> Tensor:
            nonlocal step
            step = done + 1
            progress.update()
            if given.callback_on_step_end is not None:
                tensors = {"latents": x_t, "prompt_embeds": conditional.text, "x_0": x_0}
                selected = {name: tensors[name] for name in given.callback_on_step_end_tensor_inputs}
                changed = given.callback_on_step_end(pipeline, done, 1000 * float(self.sigmas[done]), selected) or {}
                x_t, conditional.text = changed.get("latents", x_t), changed.get("prompt_embeds", conditional.text)
            if pipeline._interrupt:
                raise _Interrupted(x_t)
            return x_t

        velocity = guided(conditional, unconditional, self.guidance)
        with pipeline.progress_bar(total=steps) as progress:
            try:
                return self.solve(
                    velocity, x_t, steps, transform_x_0=transform, callback=after_step, sigmas=self.sigmas
                )
            except _Interrupted as interrupted:
                return interrupted.x_t


class _Interrupted(Exception):
    def __init__(self, x_t: Tensor):
        self.x_t = x_t
