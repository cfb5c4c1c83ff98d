"""Sums over a data set that are enough for colour statistics and for the basis, and that can be merged.

All sums are float64: a Gram matrix over millions of patches loses its small eigenvalues in float32. Workers
sum their shards apart and merge; the result is the same as one pass up to float64 rounding.
"""

from collections.abc import Mapping

import torch


def _check_finite(values: torch.Tensor, name: str, sums: torch.Tensor) -> None:
    """ValueError where the sums of squares show that `values` hold what no sum survives."""
    if torch.isfinite(sums).all():
        return
    bad = int((~torch.isfinite(values)).sum())
    found = f"{bad} NaN or infinite values" if bad else "values whose squares overflow"
    raise ValueError(f"{name} hold {found} of {values.numel()}; sums would be spoiled")


class ChannelMoments:
    """Count, sum and sum of squares for each channel of images (B, C, H, W).

    `mean` and `std` are (C,). `shared_std` is one number, the root of the *mean of the channel variances*:
    dividing every channel by it makes the average channel variance 1. Variances are of the population
    (divided by count).
    """

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels
        self.count: float = 0  # pixels, the same for every channel
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.sum_squares = torch.zeros(channels, dtype=torch.float64)

    def update(self, images: torch.Tensor) -> None:
        """Add images (B, C, H, W). ValueError for another channel count, NaN or infinity."""
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, {self.channels}, H, W)")
        values = images.detach().to(torch.float64)
        sum_squares = values.square().sum(dim=(0, 2, 3)).cpu()
        _check_finite(images, "images", sum_squares)
        self.count += values.shape[0] * values.shape[2] * values.shape[3]
        self.sum += values.sum(dim=(0, 2, 3)).cpu()
        self.sum_squares += sum_squares

    def merge(self, other: "ChannelMoments") -> None:
        """Add the sums of `other` to these."""
        if other.channels != self.channels:
            raise ValueError(f"cannot merge moments of {other.channels} channels into {self.channels}")
        self.count += other.count
        self.sum += other.sum
        self.sum_squares += other.sum_squares

    def _require_data(self) -> None:
        if self.count == 0:
            raise ValueError("no pixels were added, so there is no mean or std")

    @property
    def mean(self) -> torch.Tensor:
        self._require_data()
        return self.sum / self.count

    @property
    def variance(self) -> torch.Tensor:
        return (self.sum_squares / self.count - self.mean.square()).clamp_min(0)

    @property
    def std(self) -> torch.Tensor:
        self._require_data()
        return self.variance.sqrt()

    @property
    def shared_std(self) -> float:
        self._require_data()
        return float(self.variance.mean().sqrt())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Plain tensors, ready for safetensors."""
        return {
            "count": torch.tensor(self.count),
            "sum": self.sum.clone(),
            "sum_squares": self.sum_squares.clone(),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor]) -> "ChannelMoments":
        moments = cls(state["sum"].numel())
        moments.count = int(state["count"])
        moments.sum = state["sum"].to(torch.float64).clone()
        moments.sum_squares = state["sum_squares"].to(torch.float64).clone()
        return moments


class ChannelHistogram:
    """Counts (C, bins) of the values of each channel over [low, high); what lies outside is in the end bins."""

    def __init__(self, low: tuple[float, ...], high: tuple[float, ...], bins: int = 256) -> None:
        self.low, self.high, self.bins = low, high, bins
        self.counts = torch.zeros(len(low), bins, dtype=torch.int64)

    def update(self, images: torch.Tensor) -> None:
        """Add images (B, C, H, W)."""
        for channel, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            places = (images[:, channel] - low) * (self.bins / (high - low))
            places = places.clamp_(0, self.bins - 1).to(torch.int32).flatten()
            self.counts[channel] += torch.bincount(places, minlength=self.bins).cpu()

    def merge(self, counts: torch.Tensor) -> None:
        self.counts += counts


class PatchMoments:
    """First and second moments of pixel tokens X and of their pairs with latent tokens Z; a column is a patch.

    pixel_gram = X X^T (D, D), pixel_sum (D,); only with `latent_dim`: cross_gram = X Z^T (D, d), latent_sum (d,) and
    latent_norm_sq = ||Z||_F^2. count = number of patches. Uncentred, as Eqs. 8-12 want them. Every sum is float64.
    `products` is the precision of the products inside one update: float32 is twice as fast on a CPU, and its
    rounding (relative 1e-7) does not grow with the number of updates. The sums live on the device of the first
    update, so that a GPU can accumulate them; merging brings both sides there.
    """

    _BLOCKS = 8  # of the Gram matrix; only the blocks on and above its diagonal are multiplied

    def __init__(
        self, patch_dim: int, latent_dim: int | None = None, products: torch.dtype = torch.float64
    ) -> None:
        self.patch_dim, self.latent_dim, self.products = patch_dim, latent_dim, products
        self.count: float = 0
        shapes = {"pixel_gram": (patch_dim, patch_dim), "pixel_sum": (patch_dim,)}
        if latent_dim is not None:
            shapes |= {"cross_gram": (patch_dim, latent_dim), "latent_sum": (latent_dim,), "latent_norm_sq": ()}
        self._sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    @property
    def pixel_gram(self) -> torch.Tensor:
        return self._sums["pixel_gram"]

    @property
    def pixel_sum(self) -> torch.Tensor:
        return self._sums["pixel_sum"]

    @property
    def cross_gram(self) -> torch.Tensor | None:
        return self._sums.get("cross_gram")

    @property
    def latent_sum(self) -> torch.Tensor | None:
        return self._sums.get("latent_sum")

    @property
    def latent_norm_sq(self) -> torch.Tensor | None:
        return self._sums.get("latent_norm_sq")

    def update(
        self, pixel_tokens: torch.Tensor, latent_tokens: torch.Tensor | None = None, weight: float = 1
    ) -> None:
        """Add pixel tokens (..., D) and, where there is a latent_dim, the paired latent tokens (..., d).

        Each token counts `weight` times: n of N patches drawn at random with weight N / n give sums whose
        expectation is that of all N. ValueError for a wrong width, leading shapes that differ, missing or
        unexpected latents, NaN or infinity. Nothing is added when it raises.
        """
        if pixel_tokens.dim() < 1 or pixel_tokens.shape[-1] != self.patch_dim:
            raise ValueError(
                f"pixel_tokens have shape {tuple(pixel_tokens.shape)}; expected (..., {self.patch_dim})"
            )
        if (latent_tokens is None) != (self.latent_dim is None):
            have = "missing" if latent_tokens is None else "given"
            raise ValueError(
                f"latent_tokens are {have} but these moments were made with latent_dim={self.latent_dim}"
            )
        X = pixel_tokens.detach().reshape(-1, self.patch_dim).to(self.products)
        ones = X.new_ones(X.shape[0])  # a product with these is the faster sum over rows
        sums = {"pixel_gram": self._gram(X), "pixel_sum": ones @ X}
        if latent_tokens is not None:
            expected = (*pixel_tokens.shape[:-1], self.latent_dim)
            if tuple(latent_tokens.shape) != expected:
                raise ValueError(
                    f"latent_tokens have shape {tuple(latent_tokens.shape)}; the pixel_tokens "
                    f"{tuple(pixel_tokens.shape)} pair with {expected}"
                )
            Z = latent_tokens.detach().reshape(X.shape[0], -1).to(X)
            sums |= {
                "cross_gram": X.T @ Z,
                "latent_sum": ones @ Z,
                "latent_norm_sq": Z.square().sum(),
            }
            _check_finite(latent_tokens, "latent_tokens", sums["latent_norm_sq"])
        _check_finite(pixel_tokens, "pixel_tokens", sums["pixel_gram"].diagonal())
        if self.count == 0:
            self._sums = {name: total.to(X.device) for name, total in self._sums.items()}
        self.count += X.shape[0] * weight
        for name, value in sums.items():
            self._sums[name].add_(value.to(self._sums[name]), alpha=weight)

    def _gram(self, X: torch.Tensor) -> torch.Tensor:
        """X^T X by its upper blocks: 56 % of the work of the whole product."""
        gram = X.new_empty(self.patch_dim, self.patch_dim)
        edges = [self.patch_dim * i // self._BLOCKS for i in range(self._BLOCKS + 1)]
        for a, b in zip(edges, edges[1:], strict=False):
            gram[a:b, a:] = X[:, a:b].T @ X[:, a:]
            gram[b:, a:b] = gram[a:b, b:].T
        return gram

    def merge(self, other: "PatchMoments") -> None:
        """Add the sums of `other` to these. ValueError if the dimensions differ."""
        if (other.patch_dim, other.latent_dim) != (self.patch_dim, self.latent_dim):
            raise ValueError(
                f"cannot merge moments of patch_dim={other.patch_dim}, latent_dim={other.latent_dim} into "
                f"patch_dim={self.patch_dim}, latent_dim={self.latent_dim}"
            )
        self.count += other.count
        for name, total in self._sums.items():
            total.add_(other._sums[name].to(total.device))

    def affine(self, scale: torch.Tensor, shift: torch.Tensor) -> "PatchMoments":
        """The moments of the pixel tokens `scale * x + shift` (both (D,)), without another look at the data."""
        scale, shift = scale.to(self.pixel_sum), shift.to(self.pixel_sum)
        moments = PatchMoments(self.patch_dim, self.latent_dim, self.products)
        moments.count, moments._sums = self.count, {name: total.clone() for name, total in self._sums.items()}
        scaled_sum = scale * self.pixel_sum
        crossed = torch.outer(scaled_sum, shift)
        outer = torch.outer(shift, shift)
        moments._sums["pixel_gram"] = torch.outer(scale, scale) * self.pixel_gram + crossed + crossed.T
        moments._sums["pixel_gram"] += self.count * outer
        moments._sums["pixel_sum"] = scaled_sum + self.count * shift
        if self.cross_gram is not None and self.latent_sum is not None:
            moments._sums["cross_gram"] = scale[:, None] * self.cross_gram + torch.outer(shift, self.latent_sum)
        return moments

    def channels(self, channels: int = 3) -> ChannelMoments:
        """Colour statistics of the same pixels; the tokens must be packed channel first."""
        moments = ChannelMoments(channels)
        moments.count = self.count * (self.patch_dim // channels)
        moments.sum = self.pixel_sum.view(channels, -1).sum(1).cpu()
        moments.sum_squares = self.pixel_gram.diagonal().reshape(channels, -1).sum(1).cpu()
        return moments

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Plain CPU tensors, ready for safetensors."""
        count = torch.tensor(self.count, dtype=torch.float64)
        return {"count": count} | {name: total.cpu().clone() for name, total in self._sums.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor]) -> "PatchMoments":
        latent_dim = state["cross_gram"].shape[1] if "cross_gram" in state else None
        moments = cls(state["pixel_gram"].shape[0], latent_dim)
        count = state["count"].item()
        moments.count = int(count) if count == int(count) else count
        moments._sums = {name: state[name].to(torch.float64).clone() for name in moments._sums}
        return moments
