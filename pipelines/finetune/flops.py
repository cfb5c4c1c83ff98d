"""Floating-point operations of a training step, and what devices can do: for the share that is used.

Two shares are usual. MFU (model FLOPs utilization) divides what the method asks for, HFU (hardware) what is executed;
with gradient checkpointing the second has the blocks' forward pass once more. Neither counts the encoders beside the
training, validation, or the optimizer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from asymflow.models.geometry import Flops, Network, count_flops, ddt_head, network
from pipelines.finetune.config import FinetuneSettings


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
}


class Device(NamedTuple):
    """What one worker runs on."""

    name: str
    tflops: float | None
    """Peak of bfloat16 products without sparsity, summed in float32; None where it is not known"""
    gib: float | None = None
    """Memory"""


GPUS = (  # by a part of their name in torch.cuda.get_device_name; peaks of their makers' data sheets
    Device("GB200", 2500),
    Device("B200", 2250),
    Device("H200 NVL", 835),
    Device("H200", 989),
    Device("GH200", 989),
    Device("H100 PCIe", 756),
    Device("H100 NVL", 835),
    Device("H100", 989),
    Device("H800", 989),
    Device("H20", 148),
    Device("A100", 312),
    Device("A800", 312),
    Device("A40", 150),
    Device("RTX A6000", 155),
    Device("A10G", 70),
    Device("A10", 125),
    Device("L40S", 362),
    Device("L40", 181),
    Device("L4", 121),
    Device("RTX 6000 Ada", 364),
    Device("RTX 5090", 210),
    Device("RTX 4090", 165),
    Device("RTX 3090", 71),
)
PLANNED_FOR = Device("an H100, as no GPU is here", 989, 79.6)


def peak_tflops(device_name: str) -> float | None:
    """Dense bfloat16 peak of a GPU by its name, in TFLOP/s; None for one that is not in the table."""
    return next((device.tflops for device in GPUS if _is_part(device.name, device_name)), None)


def _is_part(name: str, device_name: str) -> bool:
    """Whole words, or such as A100-SXM4."""
    words, wanted = device_name.replace("-", " ").split(), name.split()
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))


def device_of(settings: FinetuneSettings) -> Device:
    """This machine's GPU; where it has none, an H100 stands for those of the cluster."""
    known = settings.resources.peak_tflops
    if not settings.resources.use_gpu:
        return Device("this CPU", known)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return Device(name, known or peak_tflops(name), torch.cuda.get_device_properties(0).total_memory / 2**30)
    return Device("resources.peak_tflops", known) if known else PLANNED_FOR


class PictureFlops(NamedTuple):
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


def picture_flops(
    settings: FinetuneSettings, transformer_config: Mapping[str, Any], image_tokens: int, text_tokens: int
) -> PictureFlops:
    """`transformer_config` are the latent model's settings, `text_tokens` are counted with their padding."""
    loss, judge = settings.loss, 0.0
    variance_reduced = loss.kind == "variance_reduced"
    if variance_reduced and loss.perceptual:
        judge = JUDGES[loss.perceptual.net].flops_a_pixel * image_tokens * settings.pixels.patch_size**2
    teacher = count_flops(network(transformer_config), image_tokens, text_tokens).forward
    return PictureFlops(
        student=count_flops(student_network(settings, transformer_config), image_tokens, text_tokens),
        teacher=teacher if variance_reduced else 0.0,
        judge=judge,
        checkpointing=settings.resources.gradient_checkpointing,
    )


def student_network(settings: FinetuneSettings, transformer_config: Mapping[str, Any]) -> Network:
    patch_dim = transformer_config["in_channels"] if settings.model == "latent" else 3 * settings.pixels.patch_size**2
    rank = settings.lora.rank if settings.lora else 0
    if settings.model != "ddt":
        return network(transformer_config, patch_dim, rank)
    ddt = settings.ddt
    head = ddt_head(transformer_config, patch_dim, ddt.blocks, ddt.heads, ddt.head_width)
    return network(transformer_config, patch_dim, rank, head=True) + head


def step_flops(
    settings: FinetuneSettings,
    transformer_config: Mapping[str, Any],
    image_tokens: int,
    text_tokens: int,
    pictures: int,
) -> float:
    """Model FLOPs (for MFU) of a step on so many pictures of one size; see `picture_flops` for what is executed."""
    return pictures * picture_flops(settings, transformer_config, image_tokens, text_tokens).model
