"""What is watched while training: steps without a finite gradient, spikes of the loss, hangs, and speed."""

import faulthandler
import logging
import resource
import statistics
import sys
import time
from collections import deque

import torch

from pipelines.train.config import Watch

LOGGER = logging.getLogger(__name__)
_STDERR = 2  # the descriptor: Ray sends it to the worker's log
_REMEMBERED, _ENOUGH = 100, 20


class GiveUp(RuntimeError):
    """Training cannot go on; the message says why. Starting again from a checkpoint would not help."""


class Health:
    """Skipped steps and spikes. All ranks count them alike; one of them warns."""

    def __init__(self, settings: Watch, warns: bool = True):
        self.settings, self.warns = settings, warns
        self.in_a_row = 0
        self.losses: deque[float] = deque(maxlen=_REMEMBERED)

    def skipped(self, step: int, keys: list[str]) -> None:
        """A step whose loss or gradient was not finite. Raises GiveUp after too many in a row."""
        self.in_a_row += 1
        if self.warns:
            shown = ", ".join(keys)
            LOGGER.warning("step %d skipped: its loss or gradient is not finite; its pictures: %s", step, shown)
        if self.in_a_row >= self.settings.skips:
            raise GiveUp(
                f"stopped at step {step}: {self.in_a_row} steps in a row had no finite loss or gradient; the log names "
                "their pictures. Lower the rates, or look at the latents of these pictures"
            )

    def took(self, step: int, loss: float) -> bool:
        """A step that was taken; whether its loss is a spike."""
        self.in_a_row = 0
        usual = statistics.median(self.losses) if len(self.losses) >= _ENOUGH else float("inf")
        self.losses.append(loss)
        spike = loss > self.settings.spike * usual
        if spike and self.warns:
            LOGGER.warning("step %d: a loss of %.4g, %.1f times the usual", step, loss, loss / usual)
        return spike


class HangAlarm:
    """Ends the process, with the stacks of all threads on stderr, when it is not put off in time."""

    def __init__(self, settings: Watch):
        self.seconds = 60 * settings.hang_minutes

    def put_off(self) -> None:
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=_STDERR)

    def cancel(self) -> None:
        faulthandler.cancel_dump_traceback_later()


class Speedometer:
    """Rates of the last step, of all workers together."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def restart(self) -> None:
        """What was done since the last step is not part of the next one."""
        self.since = time.monotonic()

    def step(self, pictures: int, tokens: int, waited: float) -> dict[str, float]:
        """Metrics of the step that ended now; `waited`: seconds for its data."""
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        return {
            "train/speed/seconds_per_step": seconds,
            "train/speed/images_per_second": pictures / seconds,
            "train/speed/tokens_per_second": tokens / seconds,
            "train/speed/data_wait_seconds": waited,
            "train/speed/memory_gib": memory_gib(),
        }


def memory_gib() -> float:
    """The most that this process held: of its GPU where it has one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
