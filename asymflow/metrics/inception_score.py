"""Inception Score (Salimans et al. 2016): exp of the mutual information between image and class, from logits."""

import math

import numpy as np
import torch
from torch import Tensor


def inception_score(logits: Tensor, splits: int = 10, shuffle_seed: int | None = 2020) -> tuple[float, float]:
    """Return mean and population standard deviation of the Inception Score over parts.

    The order matters, since each part has its own class frequencies: samples sorted by class give parts of few classes
    and a score far too low.

    Args:
        logits: Logits (N, classes), without the output's bias.
        splits: Number of parts; part i begins at N * i // splits.
        shuffle_seed: Seed of the shuffle, as in torch-fidelity; None keeps the order.

    Returns:
        Mean, in [1, classes], higher is better; and standard deviation.

    Raises:
        ValueError: If there are fewer samples than splits, for another shape, or values that are not finite.
    """
    if logits.ndim != 2 or not logits.shape[1] or splits < 1 or len(logits) < splits:
        raise ValueError(f"logits are {tuple(logits.shape)}; expected (N, classes), N of at least {splits} splits")
    if not torch.isfinite(logits).all():
        raise ValueError("the logits hold NaN or infinite values")
    logits, count = logits.detach().cpu(), len(logits)
    if shuffle_seed is not None:
        logits = logits[torch.from_numpy(np.random.RandomState(shuffle_seed).permutation(count))]
    scores = [_score(logits[count * i // splits : count * (i + 1) // splits]) for i in range(splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: Tensor) -> float:
    # In float64 a part at a time: 40 MB of 50,000 x 1,008 in ten. The marginal is a sum of logs, so that a class of
    # which every probability underflows adds 0, where the logarithm of the mean would make 0 * inf of it.
    log_p = logits.double().log_softmax(1)
    log_marginal = log_p.logsumexp(0) - math.log(len(log_p))
    return float((log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp())
