"""Moving averages of weights: with a power-law profile, whose memory grows with the run (Karras et al. 2024), or with
one decay."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

Named = Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


def karras_beta(t: int, gamma: float = 7.0) -> float:
    """Decay (1 - 1/t)^(gamma + 1) of the t-th averaged step, t = 1, 2, ...; ValueError below 1."""
    if t < 1:
        raise ValueError(f"t is {t}; averaging steps are counted from 1")
    return (1 - 1 / t) ** (gamma + 1)


class MovingAverage:
    """Float32 moving average of named tensors; `decay_at` says how.

    The decay depends on the step alone, so the averaged tensors are the whole state. Tensors can be handed over
    explicitly (gathered from ZeRO partitions, say); those given at construction are the default.
    """

    def __init__(self, tensors: Named) -> None:
        self._tensors = dict(tensors)
        if not self._tensors:
            raise ValueError("no tensors to average")
        self.average = {name: tensor.detach().float().clone() for name, tensor in self._tensors.items()}

    def decay_at(self, step: int) -> float:
        """What the average keeps of itself at optimizer step `step`, counted from 1."""
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
        """Take the weights after optimizer step `step` into the average; returns the decay used."""
        beta = self.decay_at(step)
        for name, tensor in self._checked(tensors).items():
            average = self.average[name]
            average.lerp_(tensor.detach().to(device=average.device, dtype=torch.float32), 1 - beta)
        return beta

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged tensors by name, float32 copies."""
        return {name: tensor.clone() for name, tensor in self.average.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Replace the average. ValueError unless names and shapes are the same."""
        for name, tensor in self._checked(state).items():
            self.average[name].copy_(tensor)

    @contextmanager
    def swap(self, tensors: Named | None = None) -> Iterator[None]:
        """Put the average into the live tensors, in place, for the length of a `with`; they come back bit by
        bit.
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
    """Up to and at `start_step` a copy of the weights; the step `start_step` is t = 1 of `karras_beta`."""

    def __init__(self, tensors: Named, gamma: float = 7.0, start_step: int = 100) -> None:
        super().__init__(tensors)
        self.gamma, self.start_step = gamma, start_step

    def decay_at(self, step: int) -> float:
        return karras_beta(max(step - self.start_step + 1, 1), self.gamma)


class ConstantEMA(MovingAverage):
    """One decay for all steps, from the weights that training begins with. ValueError outside [0, 1)."""

    def __init__(self, tensors: Named, decay: float = 0.9999) -> None:
        super().__init__(tensors)
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay

    def decay_at(self, step: int) -> float:
        return self.decay
