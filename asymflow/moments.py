"""Sums over a data set that are enough for colour statistics and for the basis, and that can be merged.

All sums are float64: a Gram matrix over millions of patches loses its small eigenvalues in float32. Workers
sum their shards apart and merge; the result is the same as one pass up to float64 rounding.
"""

from collections.abc import Mapping

import torch


def _as_finite_double(values: torch.Tensor, name: str) -> torch.Tensor:
    values = values.detach().to(torch.float64)
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"{name} hold {bad} NaN or infinite values of {values.numel()}; sums would be spoiled"
        )
    return values


class ChannelMoments:
    """Count, sum and sum of squares for each channel of images (B, C, H, W).

    `mean` and `std` are (C,). `shared_std` is one number, the root of the *mean of the channel variances*:
    dividing every channel by it makes the average channel variance 1. Variances are of the population
    (divided by count).
    """

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels
        self.count = 0  # pixels, the same for every channel
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.sum_squares = torch.zeros(channels, dtype=torch.float64)

    def update(self, images: torch.Tensor) -> None:
        """Add images (B, C, H, W). ValueError for another channel count, NaN or infinity."""
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, {self.channels}, H, W)")
        values = _as_finite_double(images, "images")
        self.count += values.shape[0] * values.shape[2] * values.shape[3]
        self.sum += values.sum(dim=(0, 2, 3)).cpu()
        self.sum_squares += values.square().sum(dim=(0, 2, 3)).cpu()

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


class PatchMoments:
    """Second moments of pixel tokens X and of their pairs with latent tokens Z; a column is a patch.

    pixel_gram = X X^T (D, D); cross_gram = X Z^T (D, d) and latent_norm_sq = ||Z||_F^2, both only with
    `latent_dim`; count = number of patches. Uncentred, as Eqs. 8-12 want them. Everything float64. The sums
    live on the device of the first update, so that a GPU can accumulate them; merging brings both sides
    there.
    """

    def __init__(self, patch_dim: int, latent_dim: int | None = None) -> None:
        self.patch_dim, self.latent_dim = patch_dim, latent_dim
        self.count = 0
        self.pixel_gram = torch.zeros(patch_dim, patch_dim, dtype=torch.float64)
        self.cross_gram = (
            None if latent_dim is None else torch.zeros(patch_dim, latent_dim, dtype=torch.float64)
        )
        self.latent_norm_sq = None if latent_dim is None else torch.zeros((), dtype=torch.float64)

    def update(self, pixel_tokens: torch.Tensor, latent_tokens: torch.Tensor | None = None) -> None:
        """Add pixel tokens (..., D) and, where there is a latent_dim, the paired latent tokens (..., d).

        ValueError for a wrong width, leading shapes that differ, missing or unexpected latents, NaN or
        infinity. Nothing is added when it raises.
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
        pixels = _as_finite_double(pixel_tokens, "pixel_tokens").reshape(-1, self.patch_dim)
        latents = None
        if latent_tokens is not None:
            expected = (*pixel_tokens.shape[:-1], self.latent_dim)
            if tuple(latent_tokens.shape) != expected:
                raise ValueError(
                    f"latent_tokens have shape {tuple(latent_tokens.shape)}; the pixel_tokens "
                    f"{tuple(pixel_tokens.shape)} pair with {expected}"
                )
            latents = _as_finite_double(latent_tokens, "latent_tokens").reshape(-1, latent_tokens.shape[-1])
        if self.count == 0:
            self._to(pixels.device)
        pixels = pixels.to(self.pixel_gram.device)
        self.pixel_gram += pixels.T @ pixels
        self.count += pixels.shape[0]
        if latents is not None and self.cross_gram is not None and self.latent_norm_sq is not None:
            latents = latents.to(self.pixel_gram.device)
            self.cross_gram += pixels.T @ latents
            self.latent_norm_sq += latents.square().sum()

    def _to(self, device: torch.device) -> None:
        for name in ("pixel_gram", "cross_gram", "latent_norm_sq"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).to(device))

    def merge(self, other: "PatchMoments") -> None:
        """Add the sums of `other` to these. ValueError if the dimensions differ."""
        if (other.patch_dim, other.latent_dim) != (self.patch_dim, self.latent_dim):
            raise ValueError(
                f"cannot merge moments of patch_dim={other.patch_dim}, latent_dim={other.latent_dim} into "
                f"patch_dim={self.patch_dim}, latent_dim={self.latent_dim}"
            )
        self.count += other.count
        for name in ("pixel_gram", "cross_gram", "latent_norm_sq"):
            if getattr(self, name) is not None:
                getattr(self, name).add_(getattr(other, name).to(self.pixel_gram.device))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Plain CPU tensors, ready for safetensors."""
        state = {"count": torch.tensor(self.count), "pixel_gram": self.pixel_gram.cpu().clone()}
        if self.cross_gram is not None and self.latent_norm_sq is not None:
            state |= {
                "cross_gram": self.cross_gram.cpu().clone(),
                "latent_norm_sq": self.latent_norm_sq.cpu().clone(),
            }
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor]) -> "PatchMoments":
        paired = "cross_gram" in state
        moments = cls(state["pixel_gram"].shape[0], state["cross_gram"].shape[1] if paired else None)
        moments.count = int(state["count"])
        for name in ("pixel_gram", "cross_gram", "latent_norm_sq") if paired else ("pixel_gram",):
            setattr(moments, name, state[name].to(torch.float64).clone())
        return moments
