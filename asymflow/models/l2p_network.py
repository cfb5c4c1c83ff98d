"""Matrices of the L2P baseline (`asymflow.models.l2p`) from settings of its transformer; importable without torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from asymflow.models.backbone import Backbone
from asymflow.models.network import Linear, Network

WIDEST = 8
"""The detailer's largest number of channels, over that at full resolution"""
KERNEL = 3 * 3
"""Pixels of the kernel of a convolution"""


def detailer_channels(patch_size: int, channels: int) -> tuple[int, ...]:
    """Return the detailer's channels by level: full resolution first, each next level at half the resolution.

    Args:
        patch_size: Side of a patch in pixels.
        channels: Channels at full resolution.

    Returns:
        Channels of log2(patch_size) levels, doubled from level to level up to WIDEST times `channels`.

    Raises:
        ValueError: If the patch size is not a power of two, or below 2.
    """
    levels = patch_size.bit_length() - 1
    if patch_size != 2**levels or not levels:
        raise ValueError(f"patches of {patch_size} pixels; the detailer needs 2, 4, 8 or a higher power of two")
    return tuple(channels * min(2**level, WIDEST) for level in range(levels))


def shallow_layers(backbone: Backbone, config: Mapping[str, Any], blocks: int) -> re.Pattern[str]:
    """Return the pattern of the layers that are trained inside the first and last blocks.

    Args:
        backbone: The family's transformer.
        config: Its settings.
        blocks: Number of blocks at each end.

    Returns:
        Pattern of whole names, of layers, and of their parameters.

    Raises:
        ValueError: If the transformer has fewer blocks.
    """
    names = "|".join(map(re.escape, backbone.end_blocks(config, blocks)))
    return re.compile(rf"(?!(?:{backbone.unused(config)})(?:\.|$))(?:{names})\..+")


def shallow_network(
    backbone: Backbone, config: Mapping[str, Any], patch_size: int, blocks: int, channels: int
) -> Network:
    """Return the matrices of the L2P model.

    Args:
        backbone: The family's transformer.
        config: Its settings.
        patch_size: Side of a patch in pixels.
        blocks: Number of trained blocks at each end.
        channels: Channels of the detailer at full resolution.

    Returns:
        The network.

    Raises:
        ValueError: If the transformer has fewer blocks, or the patch size is not a power of two.
    """
    trained = shallow_layers(backbone, config, blocks)
    base = backbone.network(config, 3 * patch_size**2)
    features = next(layer.inputs for layer in base.linears if layer.name == backbone.last)
    linears = (
        layer._replace(
            trained=layer.trained or bool(trained.fullmatch(layer.name)),
            first=layer.first or bool(re.fullmatch(backbone.image_free, layer.name)),
        )
        for layer in base.linears
        if layer.name not in (backbone.last, "A^T", "A")
    )
    attentions = (attention._replace(first=attention.stream == "text") for attention in base.attentions)
    vectors = (part._replace(trained=bool(trained.fullmatch(part.name))) for part in base.vectors)
    body = Network(tuple(linears), tuple(attentions), tuple(vectors))
    return body + Network(tuple(_detailer(patch_size, features, channels)), ())


def _detailer(patch_size: int, features: int, channels: int) -> Iterator[Linear]:
    widths, inputs = detailer_channels(patch_size, channels), 3

    def convolution(name: str, inputs: int, outputs: int, level: int, first: bool = False) -> Linear:
        pixels = (patch_size // 2**level) ** 2
        return Linear(f"detailer.{name}", inputs, outputs, "image", first, trained=True, bias=True, uses=pixels)

    for level, width in enumerate(widths):
        yield convolution(f"encode.{level}", KERNEL * inputs, width, level, first=level == 0)
        inputs = width
    yield convolution("fuse", inputs + features, inputs, len(widths))
    for level in reversed(range(len(widths))):
        width = widths[level]
        yield convolution(f"expand.{level}", KERNEL * width, width, level)
        yield convolution(f"decode.{level}", KERNEL * 2 * width, widths[max(level - 1, 0)], level)
    yield convolution("last", widths[0], 3, 0)


def detailer_values_kept(patch_size: int, features: int, channels: int) -> float:
    """Return the values per token that the detailer stores for its backward pass, in float32.

    Stored are the inputs of convolutions, of SiLU and of pooling, and the pooled positions as 64-bit integers. In
    bfloat16 the last weigh twice as much, which is not counted.

    Args:
        patch_size: Side of a patch in pixels.
        features: Width of a feature, F.
        channels: Channels at full resolution.

    Returns:
        The values per token.
    """
    widths = detailer_channels(patch_size, channels)
    pixels = [(patch_size // 2**level) ** 2 for level in range(len(widths) + 1)]
    kept = 3.0 * pixels[0] + 2 * widths[-1] + features + widths[0] * pixels[0]
    for level, width in enumerate(widths):
        after = widths[max(level - 1, 0)]
        kept += pixels[level] * (2 * width + width + 2 * width + after)  # downwards two, upwards three inputs
        kept += pixels[level + 1] * (2 + (level + 1 < len(widths))) * width  # positions, and what the next level takes
    return kept
