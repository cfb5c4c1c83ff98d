"""sRGB <-> Oklab (Ottosson 2020) and the normalized Oklab space in which pixels are generated.

Every function keeps shape and dtype and takes images as (..., 3, H, W). A sampler passes through colors outside the
sRGB gamut, so both directions are defined everywhere: the transfer curve and the cube root are extended as odd
functions, and only the gamut clamp loses information. Gradients are finite everywhere, including at black.
"""

from dataclasses import dataclass

import torch

# Linear sRGB to cone responses, and cube-rooted cone responses to Lab: the published constants of Oklab. The
# inverses are computed from them in float64, so that a round trip is exact to rounding.
_LMS_FROM_RGB = torch.tensor(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    dtype=torch.float64,
)
_LAB_FROM_LMS = torch.tensor(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    dtype=torch.float64,
)
_RGB_FROM_LMS = torch.linalg.inv(_LMS_FROM_RGB)
_LMS_FROM_LAB = torch.linalg.inv(_LAB_FROM_LMS)

# Below this cone response the cube root is replaced by a straight line through zero, since its slope at zero
# is infinite. The darkest non-black 8-bit color lies four orders of magnitude above it.
_CBRT_LINEAR_BELOW = 1e-9


def _mix(matrix: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Apply a (3, 3) color matrix to the channel axis of (..., 3, H, W)."""
    red, green, blue = images.unbind(-3)
    # Written out rather than as a matrix product: under autocast, or with TF32, a product would lose precision.
    rows = [torch.add(torch.add(r * red, green, alpha=g), blue, alpha=b) for r, g, b in matrix.tolist()]
    return torch.stack(rows, dim=-3)


def _check_channels(images: torch.Tensor) -> None:
    if images.dim() < 3 or images.shape[-3] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (..., 3, H, W)")


def srgb_to_linear(values: torch.Tensor) -> torch.Tensor:
    """Undo the sRGB transfer curve (IEC 61966-2-1).

    Args:
        values: sRGB values in [0, 1], any shape; extended as an odd function outside.

    Returns:
        Linear values of the same shape.
    """
    magnitude = values.abs()
    # Clamping the argument keeps the gradient of the branch not taken finite.
    curve = ((magnitude.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(magnitude <= 0.04045, values / 12.92, values.sign() * curve)


def linear_to_srgb(values: torch.Tensor) -> torch.Tensor:
    """Apply the sRGB transfer curve (IEC 61966-2-1).

    Args:
        values: Linear values in [0, 1], any shape; extended as an odd function outside.

    Returns:
        sRGB values of the same shape.
    """
    magnitude = values.abs()
    curve = 1.055 * magnitude.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(magnitude <= 0.0031308, values * 12.92, values.sign() * curve)


def _cube_root(values: torch.Tensor) -> torch.Tensor:
    magnitude = values.abs()
    root = magnitude.clamp_min(_CBRT_LINEAR_BELOW) ** (1 / 3)
    line = values * _CBRT_LINEAR_BELOW ** (-2 / 3)
    return torch.where(magnitude <= _CBRT_LINEAR_BELOW, line, values.sign() * root)


def _linear_to_oklab(linear: torch.Tensor) -> torch.Tensor:
    return _mix(_LAB_FROM_LMS, _cube_root(_mix(_LMS_FROM_RGB, linear)))


def _oklab_to_linear(oklab: torch.Tensor) -> torch.Tensor:
    return _mix(_RGB_FROM_LMS, _mix(_LMS_FROM_LAB, oklab) ** 3)


def srgb_to_oklab(images: torch.Tensor) -> torch.Tensor:
    """Convert sRGB images to Oklab, not normalized.

    Args:
        images: sRGB (..., 3, H, W) in [-1, 1].

    Returns:
        Oklab (..., 3, H, W): L in [0, 1], |a| and |b| below 0.4.

    Raises:
        ValueError: If there are not three channels.
    """
    _check_channels(images)
    return _linear_to_oklab(srgb_to_linear((images + 1) / 2))


def srgb8_to_oklab(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Convert 8-bit sRGB images to Oklab, as `srgb_to_oklab(images / 127.5 - 1)` but several times faster.

    The transfer curve is a table of 256 values. Pieces that fit the processor's cache (such as 256 patches of 16 x 16)
    are faster still.

    Args:
        images: sRGB, uint8 (..., 3, H, W).
        dtype: Type of the result.

    Returns:
        Oklab (..., 3, H, W), not normalized.

    Raises:
        ValueError: If the images are not uint8, or there are not three channels.
    """
    _check_channels(images)
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; expected uint8")
    with torch.autocast(images.device.type, enabled=False):
        table = srgb_to_linear(torch.arange(256, dtype=torch.float64) / 255).to(images.device, dtype)
        linear = table.index_select(0, images.reshape(-1).int()).view(*images.shape[:-2], -1)
        cones = (_LMS_FROM_RGB.to(linear) @ linear).pow_(1 / 3)
        return (_LAB_FROM_LMS.to(linear) @ cones).view(images.shape)


def oklab_to_srgb(oklab: torch.Tensor, clamp: bool = True) -> torch.Tensor:
    """Convert Oklab images to sRGB.

    Args:
        oklab: Oklab (..., 3, H, W), not normalized.
        clamp: Clamp each linear RGB value to the gamut; a clamped value passes no gradient. Otherwise the odd extension
            of the transfer curve keeps a gradient for colors outside the gamut, and values may leave [-1, 1].

    Returns:
        sRGB (..., 3, H, W), in [-1, 1] if clamped.

    Raises:
        ValueError: If there are not three channels.
    """
    _check_channels(oklab)
    linear = _oklab_to_linear(oklab)
    if clamp:
        linear = linear.clamp(0, 1)
    return linear_to_srgb(linear) * 2 - 1


@dataclass(frozen=True)
class OklabSpace:
    """Oklab shifted by a mean and divided by a standard deviation.

    One shared standard deviation keeps the ratio of lightness and color differences, hence Oklab's uniformity. Tensors
    and lists are accepted and stored as plain numbers.

    Raises:
        ValueError: On construction, for another number of values, values that are not finite, or std <= 0.
    """

    mean: tuple[float, float, float]
    """Mean of each channel (L, a, b)"""
    std: float | tuple[float, float, float]
    """Standard deviation: one number for all channels, or three"""

    def __post_init__(self) -> None:
        mean = tuple(float(v) for v in torch.as_tensor(self.mean, dtype=torch.float64).flatten().tolist())
        std = tuple(float(v) for v in torch.as_tensor(self.std, dtype=torch.float64).flatten().tolist())
        if len(mean) != 3:
            raise ValueError(f"OklabSpace mean has {len(mean)} values; expected 3")
        if len(std) not in (1, 3):
            raise ValueError(f"OklabSpace std has {len(std)} values; expected 1 or 3")
        if not all(abs(v) < float("inf") for v in mean) or not all(0 < v < float("inf") for v in std):
            raise ValueError(f"OklabSpace mean {mean}, std {std}; they must be finite and std above 0")
        # Tensors and lists are accepted but plain numbers are kept, so that spaces compare and serialize.
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std[0] if len(std) == 1 else std)

    def _shift_and_scale(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        std = self.std if isinstance(self.std, tuple) else (self.std,) * 3
        shift = torch.tensor(self.mean, dtype=like.dtype, device=like.device).view(3, 1, 1)
        return shift, torch.tensor(std, dtype=like.dtype, device=like.device).view(3, 1, 1)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Convert sRGB images to normalized Oklab.

        Args:
            images: sRGB (..., 3, H, W) in [-1, 1].

        Returns:
            Normalized Oklab of the same shape.
        """
        mean, std = self._shift_and_scale(images)
        return (srgb_to_oklab(images) - mean) / std

    def encode8(self, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Convert 8-bit sRGB images to normalized Oklab; see `srgb8_to_oklab`.

        Args:
            images: sRGB, uint8 (..., 3, H, W).
            dtype: Type of the result.

        Returns:
            Normalized Oklab of the same shape.
        """
        oklab = srgb8_to_oklab(images, dtype)
        mean, std = self._shift_and_scale(oklab)
        return oklab.sub_(mean).div_(std)

    def decode(self, x: torch.Tensor, clamp: bool = True) -> torch.Tensor:
        """Convert normalized Oklab to sRGB images.

        Args:
            x: Normalized Oklab (..., 3, H, W).
            clamp: Clamp to the gamut, as in `oklab_to_srgb`.

        Returns:
            sRGB of the same shape, in [-1, 1] if clamped.
        """
        mean, std = self._shift_and_scale(x)
        return oklab_to_srgb(x * std + mean, clamp=clamp)

    def clamp_to_gamut(self, x: torch.Tensor) -> torch.Tensor:
        """Clamp colors to the sRGB gamut: encode(decode(x)) (App. B.2), without gradient.

        The transfer curve is left out, since encoding would undo it.

        Args:
            x: Normalized Oklab (..., 3, H, W).

        Returns:
            Normalized Oklab of the same shape.
        """
        mean, std = self._shift_and_scale(x)
        with torch.no_grad():
            linear = _oklab_to_linear(torch.addcmul(mean, x, std)).clamp_(0, 1)
            # inside the gamut no cone response is negative, so the plain root suffices
            return _mix(_LAB_FROM_LMS, _mix(_LMS_FROM_RGB, linear).pow_(1 / 3)).sub_(mean).div_(std)


# The constants of the released AsymFLUX.2 klein weights. Adapters trained with other numbers need their own.
RELEASED = OklabSpace(mean=(0.56, 0.0, 0.01), std=0.16)
