"""Callback of samplers after each step."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

OnStep: TypeAlias = Callable[[int, Tensor | None], None] | None
"""Called after each step with its index and, by a pixel pipeline, the denoised images (B, 3, H, W), sRGB in [-1, 1]"""


def after_each(on_step: OnStep) -> Callable[[int, Tensor], None]:
    """Return a solver's callback that reports each step without an image."""
    return lambda step, x_t: None if on_step is None else on_step(step, None)
