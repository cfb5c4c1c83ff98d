"""Sliced Wasserstein distance between image patches: does local texture look like the real one?

Needs no network. Run on the images themselves it sees colour and structure; run after `high_pass` it sees
noise and fine detail only. It is the mean over random unit directions of the one-dimensional Wasserstein-1
distance.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def high_pass(images: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) minus their blur by the 5x5 binomial kernel, about a Gaussian of 1 pixel."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images.dtype, device=images.device) / 16
    channels = images.shape[1]
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    blurred = F.conv2d(padded, taps.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
    blurred = F.conv2d(blurred, taps.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return images - blurred


def patches_of(
    images: torch.Tensor, size: int = 7, per_image: int = 64, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Random patches of images (B, C, H, W) at `per_image` uniform places each: (B * per_image, C * size**2).

    The generator must be on the CPU. ValueError when a patch does not fit into the images.
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
    """Indices into sorted samples of sizes n and m, and weights w: sum w |a - b| is their exact distance."""
    # Quantile levels in units of 1 / (n m), as integers: i m and j n, without rounding.
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    start = levels[:-1]
    return start // m, start // n, levels.diff().double() / (n * m)


@torch.no_grad()
def sliced_wasserstein(
    fake: torch.Tensor, real: torch.Tensor, projections: int = 256, seed: int = 0, chunk: int = 32
) -> float:
    """Sliced Wasserstein-1 distance between two sets of vectors (n, F) and (m, F); the sizes may differ.

    Both are first standardised, feature by feature, by the mean and std of `real`, so the unit is one
    standard deviation of the real data. Deterministic in `seed`. Memory is bounded by `chunk` projections at
    a time.
    """
    return sliced_wasserstein_of_each([fake], real, projections, seed, chunk)[0]


@torch.no_grad()
def sliced_wasserstein_of_each(
    fakes: Sequence[torch.Tensor], real: torch.Tensor, projections: int = 256, seed: int = 0, chunk: int = 32
) -> list[float]:
    """That of each of several sets to one real set, which is projected and sorted once."""
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
    """Vectors (n, F) in units of the real ones' (m, F) deviations from their mean, feature by feature."""
    mean, std = real.mean(0), real.std(0, correction=0)
    # A feature that never varies in the real set has no unit; it keeps its own.
    return (vectors - mean) / torch.where(std > 1e-6, std, torch.ones_like(std))


def directions(width: int, projections: int, seed: int = 0) -> torch.Tensor:
    """Random unit vectors (projections, width), float64."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(projections, width, generator=generator, dtype=torch.float64)
    return found / found.norm(dim=1, keepdim=True)


def distance_on_lines(fake: torch.Tensor, real: torch.Tensor) -> float:
    """Mean over k lines of the Wasserstein-1 distance between values (n, k), and (m, k) sorted on each line."""
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
    """{"raw": ..., "high_pass": ...}: the distance between patches of two image sets (B, 3, H, W), before and
    after `high_pass`.
    """
    scores = {}
    for name, view in (("raw", lambda images: images), ("high_pass", high_pass)):
        # The same places in both sets, so that equal images are at distance 0.
        of_fake, of_real = (
            patches_of(view(images), size, per_image, torch.Generator().manual_seed(seed))
            for images in (fake, real)
        )
        scores[name] = sliced_wasserstein(of_fake, of_real, projections=projections, seed=seed)
    return scores
