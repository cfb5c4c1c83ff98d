"""Floating-point operations of a JiT, in the paper's convention (Table 2): two per multiply-add of every product."""

from asymflow.models.jit_config import JiTConfig


def forward_flops(config: JiTConfig, image_tokens: int) -> float:
    """Return the FLOPs of one image's forward pass: linear layers and attention.

    Operations per image rather than per token (the modulations, 0.2 %) are not counted: the paper's 363 and 766 GFLOP
    of H/16 and G/16 exclude them.
    """
    return linear_flops(config, image_tokens) + attention_flops(config, image_tokens)


def training_flops(config: JiTConfig, image_tokens: int) -> float:
    """Return the FLOPs of one image's forward and backward pass, the latter twice the former."""
    return 3 * forward_flops(config, image_tokens)


def linear_flops(config: JiTConfig, image_tokens: int) -> float:
    """Return the FLOPs of one image's linear layers."""
    width, depth = config.width, config.depth
    tokens = config.context_from * image_tokens + (depth - config.context_from) * (image_tokens + config.context_tokens)
    a_token = 4 * width**2 + 3 * width * config.hidden
    ends = image_tokens * (config.patch_dim * (config.bottleneck + width) + config.bottleneck * width)
    return 2.0 * (tokens * a_token + ends)


def attention_flops(config: JiTConfig, image_tokens: int) -> float:
    """Return the FLOPs of one image's attention products, which `attention_float32` computes in float32."""
    both = [image_tokens] * config.context_from
    both += [image_tokens + config.context_tokens] * (config.depth - config.context_from)
    return 2.0 * sum(2 * n**2 * config.width for n in both)
