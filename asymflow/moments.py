"""Sums over a data set that determine the color statistics and the basis, and that can be merged.

All sums are float64: in float32 a Gram matrix over millions of patches loses its small eigenvalues. Workers sum their
shards separately and merge; the result is the same as one pass up to float64 rounding.
"""

from collections.abc import Mapping

import torch


def _check_finite(values: torch.Tensor, name: str, sums: torch.Tensor) -> None:
    """Raise ValueError if `sums`, the sums of squares, show that `values` are not finite or overflow."""
    if torch.isfinite(sums).all():
        return
    bad = int((~torch.isfinite(values)).sum())
    found = f"{bad} NaN or infinite values" if bad else "values whose squares overflow"
    raise ValueError(f"{name} hold {found} of {values.numel()}; they cannot be summed: remove these images")


class ChannelMoments:
    """Count, sum and sum of squares for each channel of images. Variances are of the population (divided by count).

    Args:
        channels: Number of channels, C.
    """

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels
        self.count: float = 0  # pixels, the same for every channel
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.sum_squares = torch.zeros(channels, dtype=torch.float64)

    def update(self, images: torch.Tensor) -> None:
        """Add images.

        Args:
            images: Images (B, C, H, W).

        Raises:
            ValueError: For another number of channels, NaN or infinity.
        """
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, {self.channels}, H, W)")
        values = images.detach().to(torch.float64)
        sum_squares = values.square().sum(dim=(0, 2, 3)).cpu()
        _check_finite(images, "images", sum_squares)
        self.count += values.shape[0] * values.shape[2] * values.shape[3]
        self.sum += values.sum(dim=(0, 2, 3)).cpu()
        self.sum_squares += sum_squares

    def merge(self, other: "ChannelMoments") -> None:
        """Add the sums of other moments to these.

        Args:
            other: Moments of as many channels.

        Raises:
            ValueError: If the numbers of channels differ.
        """
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
        """Mean of each channel (C,), float64.

        Raises:
            ValueError: If no images were added.
        """
        self._require_data()
        return self.sum / self.count

    @property
    def variance(self) -> torch.Tensor:
        """Variance of each channel (C,), float64."""
        return (self.sum_squares / self.count - self.mean.square()).clamp_min(0)

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation of each channel (C,), float64.

        Raises:
            ValueError: If no images were added.
        """
        self._require_data()
        return self.variance.sqrt()

    @property
    def shared_std(self) -> float:
        """Root of the mean of the channel variances: dividing by it makes the average channel variance 1.

        Raises:
            ValueError: If no images were added.
        """
        self._require_data()
        return float(self.variance.mean().sqrt())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the sums, ready for safetensors.

        Returns:
            `count`, `sum` and `sum_squares`.
        """
        return {
            "count": torch.tensor(self.count),
            "sum": self.sum.clone(),
            "sum_squares": self.sum_squares.clone(),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor]) -> "ChannelMoments":
        """Return the moments that `state_dict` described.

        Args:
            state: Result of `state_dict`.

        Returns:
            The moments.
        """
        moments = cls(state["sum"].numel())
        moments.count = int(state["count"])
        moments.sum = state["sum"].to(torch.float64).clone()
        moments.sum_squares = state["sum_squares"].to(torch.float64).clone()
        return moments


class ChannelHistogram:
    """Histograms of the values of each channel; values outside the range count in the end bins.

    Args:
        low: Lower end of the range of each channel, C numbers.
        high: Upper end of the range of each channel, C numbers.
        bins: Number of bins. `counts` is int64 (C, bins).
    """

    def __init__(self, low: tuple[float, ...], high: tuple[float, ...], bins: int = 256) -> None:
        self.low, self.high, self.bins = low, high, bins
        self.counts = torch.zeros(len(low), bins, dtype=torch.int64)

    def update(self, images: torch.Tensor) -> None:
        """Add images.

        Args:
            images: Images (B, C, H, W).
        """
        for channel, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            bins = (images[:, channel] - low) * (self.bins / (high - low))
            bins = bins.clamp_(0, self.bins - 1).to(torch.int32).flatten()
            self.counts[channel] += torch.bincount(bins, minlength=self.bins).cpu()

    def merge(self, counts: torch.Tensor) -> None:
        """Add the counts of another histogram.

        Args:
            counts: Counts (C, bins).
        """
        self.counts += counts


class PatchMoments:
    """First and second moments of pixel tokens X and of their pairs with latent tokens Z; a column is a patch.

    `pixel_gram` is X X^T, `cross_gram` X Z^T; uncentered, as Eqs. 8-12 need them. `count` is the number of patches. The
    sums are on the device of the first update, so that a GPU can accumulate them; merging moves both sides there.

    Args:
        patch_dim: Width of a pixel token, D.
        latent_dim: Width of a latent token, d; None: no latent tokens.
        products: Precision of the products inside one update. float32 is twice as fast on a CPU; its rounding
            (relative 1e-7) does not grow with the number of updates.
    """

    _BLOCKS = 8  # of the Gram matrix; only the blocks on and above its diagonal are multiplied and summed

    def __init__(self, patch_dim: int, latent_dim: int | None = None, products: torch.dtype = torch.float64) -> None:
        self.patch_dim, self.latent_dim, self.products = patch_dim, latent_dim, products
        self.count: float = 0
        shapes = {"pixel_gram": (patch_dim, patch_dim), "pixel_sum": (patch_dim,)}
        if latent_dim is not None:
            shapes |= {"cross_gram": (patch_dim, latent_dim), "latent_sum": (latent_dim,), "latent_norm_sq": ()}
        self._sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        self._is_mirrored = True

    @property
    def pixel_gram(self) -> torch.Tensor:
        """X X^T (D, D), float64."""
        gram = self._sums["pixel_gram"]
        if not self._is_mirrored:
            for a, b in self._block_edges():
                gram[b:, a:b] = gram[a:b, b:].T
            self._is_mirrored = True
        return gram

    @property
    def pixel_sum(self) -> torch.Tensor:
        """Sum of the pixel tokens (D,), float64."""
        return self._sums["pixel_sum"]

    @property
    def cross_gram(self) -> torch.Tensor | None:
        """X Z^T (D, d), float64; None without latent tokens."""
        return self._sums.get("cross_gram")

    @property
    def latent_sum(self) -> torch.Tensor | None:
        """Sum of the latent tokens (d,), float64; None without latent tokens."""
        return self._sums.get("latent_sum")

    @property
    def latent_norm_sq(self) -> torch.Tensor | None:
        """||Z||_F^2, a float64 scalar; None without latent tokens."""
        return self._sums.get("latent_norm_sq")

    def update(self, pixel_tokens: torch.Tensor, latent_tokens: torch.Tensor | None = None, weight: float = 1) -> None:
        """Add pixel tokens and their paired latent tokens. Nothing is added when it raises.

        Args:
            pixel_tokens: Pixel tokens (..., D).
            latent_tokens: Latent tokens (..., d); required if and only if there is a `latent_dim`.
            weight: Number of times that each token counts. n of N patches chosen at random with weight N / n give sums
                whose expectation is that of all N.

        Raises:
            ValueError: For another width, leading shapes that differ, missing or unexpected latent tokens, NaN or
                infinity.
        """
        if pixel_tokens.dim() < 1 or pixel_tokens.shape[-1] != self.patch_dim:
            raise ValueError(f"pixel_tokens have shape {tuple(pixel_tokens.shape)}; expected (..., {self.patch_dim})")
        if (latent_tokens is None) != (self.latent_dim is None):
            have = "missing" if latent_tokens is None else "given"
            raise ValueError(f"latent_tokens are {have} but latent_dim is {self.latent_dim}")
        X = pixel_tokens.detach().reshape(-1, self.patch_dim).to(self.products)
        ones = X.new_ones(X.shape[0])  # a matrix product with ones is faster than a sum over rows
        # X^T X from its upper blocks: 56 % of the operations of the whole product
        blocks = {(a, b): X[:, a:b].T @ X[:, a:] for a, b in self._block_edges()}
        sums = {"pixel_sum": ones @ X}
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
        _check_finite(pixel_tokens, "pixel_tokens", torch.cat([block.diagonal() for block in blocks.values()]))
        if self.count == 0:
            self._sums = {name: total.to(X.device) for name, total in self._sums.items()}
        self.count += X.shape[0] * weight
        for name, value in sums.items():
            self._sums[name].add_(value.to(self._sums[name]), alpha=weight)
        for (a, b), block in blocks.items():
            self._sums["pixel_gram"][a:b, a:].add_(block.to(self._sums["pixel_gram"]), alpha=weight)
        self._is_mirrored = False

    def _block_edges(self) -> list[tuple[int, int]]:
        """Return the first and last row (exclusive) of each block row of the Gram matrix."""
        edges = [self.patch_dim * i // self._BLOCKS for i in range(self._BLOCKS + 1)]
        return list(zip(edges, edges[1:], strict=False))

    def merge(self, other: "PatchMoments") -> None:
        """Add the sums of other moments to these.

        Args:
            other: Moments of the same dimensions.

        Raises:
            ValueError: If the dimensions differ.
        """
        if (other.patch_dim, other.latent_dim) != (self.patch_dim, self.latent_dim):
            raise ValueError(
                f"cannot merge moments of patch_dim={other.patch_dim}, latent_dim={other.latent_dim} into "
                f"patch_dim={self.patch_dim}, latent_dim={self.latent_dim}"
            )
        self.count += other.count
        for name, total in self._whole_sums().items():
            total.add_(other._whole_sums()[name].to(total.device))

    def _whole_sums(self) -> dict[str, torch.Tensor]:
        """Return the sums by name, the Gram matrix with both of its triangles."""
        return self._sums | {"pixel_gram": self.pixel_gram}

    def affine(self, scale: torch.Tensor, shift: torch.Tensor) -> "PatchMoments":
        """Return the moments of the pixel tokens `scale * x + shift`, computed from the sums alone.

        Args:
            scale: Factor of each value of a token (D,).
            shift: Shift of each value of a token (D,).

        Returns:
            New moments.
        """
        scale, shift = scale.to(self.pixel_sum), shift.to(self.pixel_sum)
        moments = PatchMoments(self.patch_dim, self.latent_dim, self.products)
        moments.count, moments._sums = self.count, {name: total.clone() for name, total in self._whole_sums().items()}
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
        """Return the color statistics of the same pixels.

        Args:
            channels: Number of channels of the tokens, which must be packed channel first.

        Returns:
            The moments of each channel.
        """
        moments = ChannelMoments(channels)
        moments.count = self.count * (self.patch_dim // channels)
        moments.sum = self.pixel_sum.view(channels, -1).sum(1).cpu()
        moments.sum_squares = self.pixel_gram.diagonal().reshape(channels, -1).sum(1).cpu()
        return moments

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the sums, ready for safetensors.

        Returns:
            CPU tensors: `count`, `pixel_gram`, `pixel_sum`, and those of the latent tokens if there are any.
        """
        count = torch.tensor(self.count, dtype=torch.float64)
        return {"count": count} | {name: total.cpu().clone() for name, total in self._whole_sums().items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor]) -> "PatchMoments":
        """Return the moments that `state_dict` described.

        Args:
            state: Result of `state_dict`.

        Returns:
            The moments, on the device of the state.
        """
        latent_dim = state["cross_gram"].shape[1] if "cross_gram" in state else None
        moments = cls(state["pixel_gram"].shape[0], latent_dim)
        count = state["count"].item()
        moments.count = int(count) if count == int(count) else count
        moments._sums = {name: state[name].to(torch.float64).clone() for name in moments._sums}
        return moments
