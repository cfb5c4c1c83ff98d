"""Floating-point operations of a finetuning step, for model FLOPs utilization.

MFU (model FLOPs utilization) counts the operations that the method needs, HFU (hardware) those that are executed: with
gradient checkpointing the blocks' forward pass once more. Neither counts the encoders beside the training, validation,
or the optimizer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from asymflow.models.geometry import ddt_head
from asymflow.models.l2p_network import shallow_network
from asymflow.models.latent import backbone_of_config
from asymflow.models.network import Flops, Network, count_flops
from pipelines.core.base_models import check_kind
from pipelines.core.config import ConfigError
from pipelines.train.finetune.config import FinetuneSettings


class PerceptualCost(NamedTuple):
    """Cost of the perceptual network on two images with a backward pass through one, measured at 1024 x 1024."""

    values: int
    """Parameters"""
    flops_per_pixel: float
    bytes_per_pixel: float
    """Kept per pixel for the backward pass, in float32"""


PERCEPTUAL_COSTS = {
    "vgg": PerceptualCost(14_714_688, 1_835_136, 1951),
    "alex": PerceptualCost(2_469_696, 85_554, 116),
    "squeeze": PerceptualCost(722_496, 33_667, 559),
    "efficientnet": PerceptualCost(2_958_848, 43_507, 1595),
}


class ImageFlops(NamedTuple):
    """FLOPs per image of a training step."""

    student: Flops
    teacher: float
    perceptual: float
    """Perceptual network"""
    checkpointing: bool

    @property
    def model(self) -> float:
        """Return the FLOPs that the method needs, which MFU counts."""
        return self.student.forward + self.student.backward + self.teacher + self.perceptual

    @property
    def executed(self) -> float:
        """Return the FLOPs including the recomputation of gradient checkpointing, which HFU counts."""
        return self.model + self.checkpointing * self.student.recomputed


def image_flops(
    settings: FinetuneSettings,
    transformer_config: Mapping[str, Any],
    image_tokens: int,
    text_tokens: int,
    reference_tokens: int = 0,
) -> ImageFlops:
    """Return the FLOPs per image of a training step.

    Args:
        settings: settings of the finetune.
        transformer_config: configuration of the latent model's transformer.
        image_tokens: image tokens per image.
        text_tokens: text tokens per image, including padding.
        reference_tokens: tokens of reference images per image.
    """
    loss, perceptual = settings.loss, 0.0
    variance_reduced = loss.kind == "variance_reduced"
    if variance_reduced and loss.perceptual:
        pixels = image_tokens * settings.pixels.patch_size**2
        perceptual = PERCEPTUAL_COSTS[loss.perceptual.net].flops_per_pixel * pixels
    latent = backbone_of_config(transformer_config).network(transformer_config)
    all_tokens = image_tokens + reference_tokens
    teacher = count_flops(latent, all_tokens, text_tokens).forward
    return ImageFlops(
        student=count_flops(student_network(settings, transformer_config), all_tokens, text_tokens),
        teacher=teacher if variance_reduced else 0.0,
        perceptual=perceptual,
        checkpointing=settings.resources.gradient_checkpointing,
    )


def check_model(settings: FinetuneSettings, transformer_config: Mapping[str, Any]) -> None:
    """Check that the family supports this kind of model, with these settings.

    Args:
        settings: settings of the finetune.
        transformer_config: configuration of the latent model's transformer.

    Raises:
        ConfigError: it does not.
    """
    check_kind(settings.model, backbone_of_config(transformer_config))
    if settings.model == "l2p":
        try:
            student_network(settings, backbone_of_config(transformer_config).complete(transformer_config))
        except ValueError as error:
            raise ConfigError(f"model=l2p, l2p.blocks={settings.l2p.blocks}: {error}") from None


def student_network(settings: FinetuneSettings, transformer_config: Mapping[str, Any]) -> Network:
    """Return the matrices of the trained model; `_class_name` of `transformer_config` determines the family."""
    backbone = backbone_of_config(transformer_config)
    width = backbone.token_width(transformer_config)
    patch_dim = width if settings.model == "latent" else 3 * settings.pixels.patch_size**2
    rank = settings.lora.rank if settings.lora else 0
    if settings.model == "l2p":
        l2p = settings.l2p
        return shallow_network(backbone, transformer_config, settings.pixels.patch_size, l2p.blocks, l2p.channels)
    if settings.model != "ddt":
        return backbone.network(transformer_config, patch_dim, rank)
    ddt = settings.ddt
    head = ddt_head(transformer_config, patch_dim, ddt.blocks, ddt.heads, ddt.head_width)
    return backbone.network(transformer_config, patch_dim, rank, head=True) + head


def step_flops(
    settings: FinetuneSettings,
    transformer_config: Mapping[str, Any],
    image_tokens: int,
    text_tokens: int,
    images: int,
    reference_tokens: int = 0,
) -> float:
    """Return the model FLOPs (for MFU) of a step on `images` of one size."""
    return images * image_flops(settings, transformer_config, image_tokens, text_tokens, reference_tokens).model
