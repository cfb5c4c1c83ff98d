"""Shapes of a JiT and its published sizes, readable without torch."""

from dataclasses import dataclass

FREQUENCIES = 256
"""Of the waves that encode the time"""


@dataclass(frozen=True)
class JiTConfig:
    """Shapes of a JiT.

    Raises:
        ValueError: On construction, if the shapes do not fit.
    """

    width: int
    """Width of a token"""
    depth: int
    """Number of blocks"""
    heads: int
    """Number of attention heads per block"""
    bottleneck: int
    """Width between a patch's values and the network's width"""
    context_from: int
    """First block (from 0) whose tokens include the class tokens"""
    context_tokens: int = 32
    """Class tokens in context; 0: the class enters only by the modulation"""
    dropout: float = 0.0
    """Dropout in the middle half of the blocks"""
    patch_size: int = 16
    """Side of a patch in pixels"""
    classes: int = 1000
    """Number of classes"""
    mlp_ratio: float = 4.0
    """Width of an MLP with as many parameters as a block's SwiGLU, over `width`"""
    attention_float32: bool = True
    """Compute attention in at least float32, whatever the type of the other products"""

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_width % 4:
            raise ValueError(f"width {self.width} over {self.heads} heads: a head needs a multiple of 4 values")
        if not 0 <= self.context_from <= self.depth:
            raise ValueError(f"context_from is {self.context_from}; allowed: 0 to {self.depth}")

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.width // self.heads

    @property
    def patch_dim(self) -> int:
        """Number of values per patch, D."""
        return 3 * self.patch_size**2

    @property
    def hidden(self) -> int:
        """Number of values inside a block's SwiGLU."""
        return int(self.mlp_ratio * self.width * 2 / 3)

    @property
    def parameters(self) -> int:
        """Number of parameters of a JiT of these shapes, computed without building one."""
        width, hidden = self.width, self.hidden
        attention = _linear(width, 3 * width) + 2 * self.head_width + _linear(width, width)
        mlp = _linear(width, 2 * hidden) + _linear(hidden, width)
        block = 2 * width + attention + mlp + _linear(width, 6 * width)
        embedding = self.patch_dim * self.bottleneck + _linear(self.bottleneck, width)
        condition = _linear(FREQUENCIES, width) + _linear(width, width) + (self.classes + 1) * width
        output = width + _linear(width, 2 * width) + _linear(width, self.patch_dim)
        return embedding + condition + self.context_tokens * width + self.depth * block + output


def _linear(inputs: int, outputs: int) -> int:
    """Return the number of parameters of a linear layer with a bias."""
    return inputs * outputs + outputs


SIZES = {
    "B": JiTConfig(width=768, depth=12, heads=12, bottleneck=128, context_from=4),
    "L": JiTConfig(width=1024, depth=24, heads=16, bottleneck=128, context_from=8),
    "H": JiTConfig(width=1280, depth=32, heads=16, bottleneck=256, context_from=10, dropout=0.2),
    "G": JiTConfig(width=1664, depth=40, heads=16, bottleneck=256, context_from=10, dropout=0.2),
}
"""Published sizes, for 16 x 16 patches"""
