"""Sliced Wasserstein distance (Rabin et al. 2011) between image patches: how close texture is to that of real images.

It needs no network. On the images themselves it measures color and structure; after `high_pass`, only noise and fine
detail. It is the mean over random unit directions of the one-dimensional Wasserstein-1 distance.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def high_pass(images: torch.Tensor) -> torch.Tensor:
    """Subtract the blur by the 5x5 binomial kernel, about a Gaussian of 1 pixel.

    Args:
        images: Images (B, C, H, W).

    Returns:
        Residuals of the same shape.
    """
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images.dtype, device=images.device) / 16
    channels = images.shape[1]
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    blurred = F.conv2d(padded, taps.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
    blurred = F.conv2d(blurred, taps.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return images - blurred


def patches_of(
    images: torch.Tensor, size: int = 7, per_image: int = 64, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return random patches of images, at uniform positions.

    Args:
        images: Images (B, C, H, W).
        size: Side of a patch in pixels.
        per_image: Patches per image.
        generator: Source of randomness, on the CPU.

    Returns:
        Patches (B * per_image, C * size**2).

    Raises:
        ValueError: If a patch does not fit into the images.
    """
    batch, channels, height, width = images.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(f"patch size is {size}; images are {height}x{width}")
    top = torch.randint(height - size + 1, (batch, per_image, 1, 1), generator=generator)
    left = torch.randint(width - size + 1, (batch, per_image, 1, 1), generator=generator)
    offset = torch.arange(size)
    flat = ((top + offset.view(size, 1)) * width + left + offset).reshape(batch, 1, -1).to(images.device)
    picked = images.flatten(2).gather(2, flat.expand(batch, channels, -1))
    picked = picked.view(batch, channels, per_image, size * size).transpose(1, 2)
    return picked.reshape(batch * per_image, channels * size * size)


def _pairing(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return indices into sorted samples of sizes n and m, and weights w: sum w |a - b| is their exact distance."""
    # Quantile levels in units of 1 / (n m), as integers: i m and j n, without rounding.
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    start = levels[:-1]
    return start // m, start // n, levels.diff().double() / (n * m)


@torch.no_grad()
def sliced_wasserstein(
    fake: torch.Tensor, real: torch.Tensor, projections: int = 256, seed: int = 0, chunk: int = 32
) -> float:
    """Return the sliced Wasserstein-1 distance between two sets of vectors, whose sizes may differ.

    Both are standardized per feature by the mean and standard deviation of `real`, so the unit is one standard
    deviation of the real data.

    Args:
        fake: Vectors (n, F).
        real: Vectors (m, F).
        projections: Number of directions.
        seed: Seed of the directions.
        chunk: Directions at a time, which bounds the memory.

    Returns:
        The distance; lower is better.

    Raises:
        ValueError: If shapes do not fit, or a set is empty.
    """
    return sliced_wasserstein_of_each([fake], real, projections, seed, chunk)[0]


@torch.no_grad()
def sliced_wasserstein_of_each(
    fakes: Sequence[torch.Tensor], real: torch.Tensor, projections: int = 256, seed: int = 0, chunk: int = 32
) -> list[float]:
    """Return the distances of several sets to one real set, which is projected and sorted once.

    Args:
        fakes: Sets of vectors (n, F).
        real: Vectors (m, F).
        projections: Number of directions.
        seed: Seed of the directions.
        chunk: Directions at a time, which bounds the memory.

    Returns:
        One distance per set, as in `sliced_wasserstein`.

    Raises:
        ValueError: If shapes do not fit, or a set is empty.
    """
    for fake in fakes:
        if fake.dim() != 2 or real.dim() != 2 or fake.shape[1] != real.shape[1] or not len(fake) or not len(real):
            raise ValueError(
                f"sets have shapes {tuple(fake.shape)} and {tuple(real.shape)}; expected (n, F) and (m, F)"
            )
    fakes, real = [standardised(fake, real) for fake in fakes], standardised(real, real)
    totals = [0.0] * len(fakes)
    for lines in directions(real.shape[1], projections, seed).to(real).split(chunk):
        ordered = (real @ lines.T).sort(dim=0).values
        for i, fake in enumerate(fakes):
            totals[i] += distance_on_lines(fake @ lines.T, ordered) * len(lines)
    return [total / projections for total in totals]


def standardised(vectors: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Standardize vectors per feature by the mean and standard deviation of the real ones.

    Args:
        vectors: Vectors (n, F).
        real: Vectors (m, F).

    Returns:
        Standardized vectors (n, F).
    """
    mean, std = real.mean(0), real.std(0, correction=0)
    # A feature that never varies in the real set has no unit; it keeps its own.
    return (vectors - mean) / torch.where(std > 1e-6, std, torch.ones_like(std))


def directions(width: int, projections: int, seed: int = 0) -> torch.Tensor:
    """Return random unit vectors.

    Args:
        width: Width of a vector.
        projections: Number of vectors.
        seed: Seed of the vectors.

    Returns:
        Vectors (projections, width), float64.
    """
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(projections, width, generator=generator, dtype=torch.float64)
    return found / found.norm(dim=1, keepdim=True)


def distance_on_lines(fake: torch.Tensor, real: torch.Tensor) -> float:
    """Return the mean over lines of the Wasserstein-1 distance between projected values.

    Args:
        fake: Values (n, k) on k lines.
        real: Values (m, k), sorted on each line.

    Returns:
        The distance.
    """
    of_fake, of_real, weights = (t.to(real.device) for t in _pairing(len(fake), len(real)))
    a, b = fake.sort(dim=0).values[of_fake], real[of_real]
    return float(((a - b).abs().double() * weights.unsqueeze(1)).sum()) / fake.shape[1]


def image_sliced_wasserstein(
    fake: torch.Tensor,
    real: torch.Tensor,
    size: int = 7,
    per_image: int = 64,
    projections: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """Return the distance between patches of two sets of images, before and after `high_pass`.

    Args:
        fake: Images (B, 3, H, W).
        real: Images (B', 3, H, W).
        size: Side of a patch in pixels.
        per_image: Patches per image.
        projections: Number of directions.
        seed: Seed of the positions and directions.

    Returns:
        {"raw": distance, "high_pass": distance}.
    """
    scores = {}
    for name, view in (("raw", lambda images: images), ("high_pass", high_pass)):
        # The same positions in both sets, so that equal images are at distance 0.
        of_fake, of_real = (
            patches_of(view(images), size, per_image, torch.Generator().manual_seed(seed)) for images in (fake, real)
        )
        scores[name] = sliced_wasserstein(of_fake, of_real, projections=projections, seed=seed)
    return scores
