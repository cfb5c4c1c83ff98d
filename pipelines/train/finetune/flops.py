"""Floating-point operations of a training step, and what devices can do: for the share that is used.

Two shares are usual. MFU (model FLOPs utilization) divides what the method asks for, HFU (hardware) what is executed;
with gradient checkpointing the second has the blocks' forward pass once more. Neither counts the encoders beside the
training, validation, or the optimizer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from asymflow.models.geometry import ddt_head
from asymflow.models.latent import backbone_of_config
from asymflow.models.network import Flops, Network, count_flops
from pipelines.train.finetune.config import FinetuneSettings


class Judge(NamedTuple):
    """LPIPS on two pictures and backward through one: what it takes a pixel, counted on 1024 x 1024."""

    values: int
    """Parameters"""
    flops_a_pixel: float
    bytes_a_pixel: float
    """Kept for the backward pass, in float32"""


JUDGES = {
    "vgg": Judge(14_714_688, 1_835_136, 1951),
    "alex": Judge(2_469_696, 85_554, 116),
    "squeeze": Judge(722_496, 33_667, 559),
    "efficientnet": Judge(2_958_848, 43_507, 1595),
}


class ImageFlops(NamedTuple):
    """Of one picture in a training step."""

    student: Flops
    teacher: float
    judge: float
    """The perceptual network"""
    checkpointing: bool

    @property
    def model(self) -> float:
        """What the method asks for; MFU counts it."""
        return self.student.forward + self.student.backward + self.teacher + self.judge

    @property
    def executed(self) -> float:
        """With what gradient checkpointing computes again; HFU counts it."""
        return self.model + self.checkpointing * self.student.recomputed


def image_flops(
    settings: FinetuneSettings, transformer_config: Mapping[str, Any], image_tokens: int, text_tokens: int
) -> ImageFlops:
    """`transformer_config` are the latent model's settings, `text_tokens` are counted with their padding."""
    loss, judge = settings.loss, 0.0
    variance_reduced = loss.kind == "variance_reduced"
    if variance_reduced and loss.perceptual:
        judge = JUDGES[loss.perceptual.net].flops_a_pixel * image_tokens * settings.pixels.patch_size**2
    latent = backbone_of_config(transformer_config).network(transformer_config)
    teacher = count_flops(latent, image_tokens, text_tokens).forward
    return ImageFlops(
        student=count_flops(student_network(settings, transformer_config), image_tokens, text_tokens),
        teacher=teacher if variance_reduced else 0.0,
        judge=judge,
        checkpointing=settings.resources.gradient_checkpointing,
    )


def student_network(settings: FinetuneSettings, transformer_config: Mapping[str, Any]) -> Network:
    """The matrices of `settings.model`; `transformer_config` tells the family by its `_class_name`."""
    backbone = backbone_of_config(transformer_config)
    width = backbone.token_width(transformer_config)
    patch_dim = width if settings.model == "latent" else 3 * settings.pixels.patch_size**2
    rank = settings.lora.rank if settings.lora else 0
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
    pictures: int,
) -> float:
    """Model FLOPs (for MFU) of a step on so many pictures of one size; see `image_flops` for what is executed."""
    return pictures * image_flops(settings, transformer_config, image_tokens, text_tokens).model
