"""Training monitor: steps without a finite gradient, spikes of the loss, hangs, and speed."""

import faulthandler
import logging
import resource
import statistics
import sys
import time
from collections import deque

import torch

from pipelines.train.config import Monitoring

LOGGER = logging.getLogger(__name__)
_STDERR = 2  # file descriptor: Ray redirects it to the worker's log
_REMEMBERED, _ENOUGH = 100, 20


class GiveUp(RuntimeError):
    """Training cannot continue; the message says why. Restarting from a checkpoint would not help."""


class StepMonitor:
    """Counts skipped steps and detects loss spikes. All ranks count alike; one of them warns."""

    def __init__(self, settings: Monitoring, warns: bool = True):
        self.settings, self.warns = settings, warns
        self.in_a_row = 0
        self.losses: deque[float] = deque(maxlen=_REMEMBERED)

    def record_skip(self, step: int, keys: list[str]) -> None:
        """Count a step whose loss or gradient was not finite.

        Raises:
            GiveUp: after `skips` such steps in a row.
        """
        self.in_a_row += 1
        if self.warns:
            shown = ", ".join(keys)
            LOGGER.warning("step %d skipped: its loss or gradient is not finite; its images: %s", step, shown)
        if self.in_a_row >= self.settings.skips:
            raise GiveUp(
                f"stopped at step {step}: {self.in_a_row} steps in a row had no finite loss or gradient; the log names "
                "their images. Lower the learning rates, or check the latents of these images"
            )

    def record_step(self, step: int, loss: float) -> bool:
        """Count an applied step. Returns whether its loss is a spike."""
        self.in_a_row = 0
        usual = statistics.median(self.losses) if len(self.losses) >= _ENOUGH else float("inf")
        self.losses.append(loss)
        spike = loss > self.settings.spike * usual
        if spike and self.warns:
            LOGGER.warning("step %d: loss spike: %.4g, %.1f times the median", step, loss, loss / usual)
        return spike


class Watchdog:
    """Ends the process, with the stack traces of all threads on stderr, unless it is reset in time."""

    def __init__(self, settings: Monitoring):
        self.seconds = 60 * settings.hang_minutes

    def reset(self) -> None:
        """Restart the countdown."""
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=_STDERR)

    def cancel(self) -> None:
        """Stop the countdown."""
        faulthandler.cancel_dump_traceback_later()


class StepTimer:
    """Measures the throughput of the last step, over all workers."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def restart(self) -> None:
        """Start the next step's time now."""
        self.since = time.monotonic()

    def step(self, images: int, tokens: int, waited: float) -> dict[str, float]:
        """Return the metrics of the step that ended now.

        Args:
            images: images of the step.
            tokens: tokens of the step.
            waited: seconds spent waiting for data.
        """
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        return {
            "train/speed/seconds_per_step": seconds,
            "train/speed/images_per_second": images / seconds,
            "train/speed/tokens_per_second": tokens / seconds,
            "train/speed/data_wait_seconds": waited,
            "train/speed/memory_gib": memory_gib(),
        }


def memory_gib() -> float:
    """Return this process's peak memory in GiB: of its GPU if it has one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
