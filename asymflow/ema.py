"""Exponential moving averages of weights: with a power-law profile (Karras et al. 2024), or with a constant decay."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

Named = Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]
"""Tensors by name, as a mapping or as `named_parameters()` gives them"""


def karras_beta(t: int, gamma: float = 7.0) -> float:
    """Return the decay of the power-law profile (Karras et al. 2024), (1 - 1/t)^(gamma + 1).

    Args:
        t: Number of the averaged step, counted from 1.
        gamma: Exponent of the profile; the memory grows with the run.

    Returns:
        The decay in [0, 1).

    Raises:
        ValueError: If t is below 1.
    """
    if t < 1:
        raise ValueError(f"t is {t}; averaging steps are counted from 1")
    return (1 - 1 / t) ** (gamma + 1)


class MovingAverage:
    """Float32 moving average of named tensors, with a decay that a subclass defines.

    The decay depends only on the step, so the averaged tensors are the whole state.

    Args:
        tensors: Tensors to average, the default of `update` and `swap`. Others of the same names and shapes can be
            passed to these, such as tensors gathered from ZeRO partitions.

    Raises:
        ValueError: If there are no tensors.
    """

    def __init__(self, tensors: Named) -> None:
        self._tensors = dict(tensors)
        if not self._tensors:
            raise ValueError("no tensors to average")
        self.average = {name: tensor.detach().float().clone() for name, tensor in self._tensors.items()}

    def decay_at(self, step: int) -> float:
        """Return the factor of the old average at an optimizer step.

        Args:
            step: Optimizer step, counted from 1.

        Returns:
            The decay in [0, 1).

        Raises:
            NotImplementedError: In this base class.
        """
        raise NotImplementedError

    def _checked(self, tensors: Named | None) -> dict[str, torch.Tensor]:
        tensors = self._tensors if tensors is None else dict(tensors)
        odd = sorted(tensors.keys() ^ self.average.keys())
        if odd:
            raise ValueError(f"{len(odd)} names differ from the averaged ones, first {odd[0]!r}")
        for name, tensor in tensors.items():
            if tensor.shape != self.average[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, its average {tuple(self.average[name].shape)}"
                )
        return tensors

    @torch.no_grad()
    def update(self, step: int, tensors: Named | None = None) -> float:
        """Update the average with the weights after an optimizer step.

        Args:
            step: Optimizer step, counted from 1.
            tensors: The weights; None: those given at construction.

        Returns:
            The decay used.

        Raises:
            ValueError: If names or shapes differ from the average's.
        """
        beta = self.decay_at(step)
        live = self._checked(tensors)
        averages = list(self.average.values())
        weights = [
            live[name].detach().to(device=average.device, dtype=torch.float32) for name, average in self.average.items()
        ]
        torch._foreach_lerp_(averages, weights, 1 - beta)  # on a GPU a few kernels for all tensors
        return beta

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the whole state.

        Returns:
            Copies of the averaged tensors by name, float32.
        """
        return {name: tensor.clone() for name, tensor in self.average.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Replace the average.

        Args:
            state: Result of `state_dict`.

        Raises:
            ValueError: If names or shapes differ from the average's.
        """
        for name, tensor in self._checked(state).items():
            self.average[name].copy_(tensor)

    @contextmanager
    def swap(self, tensors: Named | None = None) -> Iterator[None]:
        """Write the average into the live tensors for the length of a `with`; then restore them bit by bit.

        Args:
            tensors: The live tensors, changed in place; None: those given at construction.

        Yields:
            Nothing.

        Raises:
            ValueError: If names or shapes differ from the average's.
        """
        live = self._checked(tensors)
        kept = {name: tensor.detach().clone() for name, tensor in live.items()}
        try:
            self._write(live, self.average)
            yield
        finally:
            self._write(live, kept)

    @staticmethod
    @torch.no_grad()
    def _write(live: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in live.items():
            tensor.copy_(values[name])


class PowerEMA(MovingAverage):
    """Moving average with the power-law profile of `karras_beta`; a copy of the weights up to `start_step`.

    Args:
        tensors: Tensors to average.
        gamma: Exponent of the profile.
        start_step: Optimizer step that counts as t = 1.

    Raises:
        ValueError: If there are no tensors.
    """

    def __init__(self, tensors: Named, gamma: float = 7.0, start_step: int = 100) -> None:
        super().__init__(tensors)
        self.gamma, self.start_step = gamma, start_step

    def decay_at(self, step: int) -> float:
        """Return `karras_beta` for the steps since `start_step`.

        Args:
            step: Optimizer step, counted from 1.

        Returns:
            The decay in [0, 1); 0 up to `start_step`.
        """
        return karras_beta(max(step - self.start_step + 1, 1), self.gamma)


class ConstantEMA(MovingAverage):
    """Moving average with a constant decay, from the initial weights.

    Args:
        tensors: Tensors to average.
        decay: Factor of the old average at each step.

    Raises:
        ValueError: If there are no tensors, or the decay is outside [0, 1).
    """

    def __init__(self, tensors: Named, decay: float = 0.9999) -> None:
        super().__init__(tensors)
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """Return the constant decay.

        Args:
            step: Optimizer step; it has no effect.

        Returns:
            The decay in [0, 1).
        """
        return self.decay
