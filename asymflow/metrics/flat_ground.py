"""Noise on plain backgrounds: the noise inside the evenly colored region around an object, in 8-bit levels.

A smooth color (a polynomial of degree two in the place, which includes slow gradients) is fitted to the image's border
without outliers. The background is the region of this color that touches the border, eroded by a margin. The measure is
the RMS of the high-pass residual there, scaled so that white noise of standard deviation sigma gives sigma; the
high-pass filter, `sliced_wasserstein.high_pass`, removes variations slower than about five pixels.
"""

import numpy as np
import torch
from torch import Tensor

from asymflow.metrics.sliced_wasserstein import high_pass

MARGIN = 3
"""Pixels between the ground and the object or the image's border: the filter reaches two, an antialiased edge one"""
SMALLEST = 0.02
"""Share of the image below which a ground is too small to be measured"""
_TAPS = np.array([1, 4, 6, 4, 1]) / 16
_BLURRED = float((_TAPS**2).sum())
"""What the blur leaves of white noise's standard deviation; squared, of its variance along each axis"""
_GAIN = float(np.sqrt(1 - 2 * _TAPS[2] ** 2 + _BLURRED**2))
"""What the high-pass filter leaves of it"""
_TOLERANCE, _DEVIATIONS, _ROUNDS, _CANDIDATES = 10.0, 5.0, 4, 500
_MAD = 1.4826  # times the median absolute deviation: the standard deviation of normal values


def flat_ground_noise(image: Tensor) -> float | None:
    """Return the noise on an image's plain background.

    Args:
        image: sRGB image, uint8 (3, H, W).

    Returns:
        Standard deviation in 8-bit levels; None if the background is too small.

    Raises:
        ValueError: For another image.
    """
    ground = plain_ground(image)
    if ground.mean() < SMALLEST:
        return None
    residual = _residual(image)[:, ground]
    return float(np.sqrt(np.square(residual).mean())) / _GAIN


def plain_ground(image: Tensor) -> np.ndarray:
    """Return the mask of an image's plain background, without the margin.

    Args:
        image: sRGB image, uint8 (3, H, W).

    Returns:
        Mask, bool (H, W).

    Raises:
        ValueError: For another image.
    """
    if image.ndim != 3 or len(image) != 3 or image.dtype != torch.uint8:
        raise ValueError(f"the image is {tuple(image.shape)} {image.dtype}; expected (3, H, W) uint8")
    smooth = image.numpy().astype(np.float64) - _residual(image)
    height, width = smooth.shape[1:]
    border = np.ones((height, width), dtype=bool)
    border[MARGIN:-MARGIN, MARGIN:-MARGIN] = False
    # more than the noise that the blur leaves, which an object on a part of the border does not change
    noise = _MAD * np.median(np.abs(_residual(image)[:, border]), axis=1).max() / _GAIN
    tolerance = max(_TOLERANCE, _DEVIATIONS * _BLURRED * noise)

    ground = border & _near(smooth, _commonest(smooth[:, border], tolerance), tolerance)
    for _ in range(_ROUNDS):
        if ground.sum() < 10:
            break
        ground = _touching_the_border(_near(smooth, _fit(smooth, ground), tolerance))
    from scipy import ndimage  # the pipeline's: the library is installed without

    return ndimage.binary_erosion(ground, np.ones((2 * MARGIN + 1,) * 2))


def _residual(image: Tensor) -> np.ndarray:
    return high_pass(image[None].double())[0].numpy()


def _commonest(colors: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the color (3, 1, 1) of some (3, N) that most of them are near to."""
    some = colors[:, :: -(-colors.shape[1] // _CANDIDATES)]
    near = (np.abs(some[:, :, None] - some[:, None]) < tolerance).all(axis=0)
    return some[:, near.sum(axis=1).argmax()][:, None, None]


def _near(smooth: np.ndarray, color: np.ndarray, tolerance: float) -> np.ndarray:
    return (np.abs(smooth - color) < tolerance).all(axis=0)


def _fit(smooth: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the polynomial of the second degree nearest to the values (3, H, W) at some places, at all places."""
    y, x = (np.linspace(-1, 1, side) for side in where.shape)
    x, y = np.meshgrid(x, y)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])
    coefficients = np.linalg.lstsq(terms[:, where].T, smooth[:, where].T, rcond=None)[0]
    return np.einsum("tc,thw->chw", coefficients, terms)


def _touching_the_border(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    regions, _ = ndimage.label(mask)
    edge = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    return mask & np.isin(regions, np.unique(edge[edge > 0]))
