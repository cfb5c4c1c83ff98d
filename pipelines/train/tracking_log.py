"""MLflow logging of rank 0: metrics by step, images, and the keys of skipped samples."""

import json
from collections.abc import Iterable
from contextlib import suppress

from PIL import Image

from pipelines.core import storage
from pipelines.core.tracking import MetricsRow, Tracker
from pipelines.train.devices import device_of
from pipelines.train.metrics_log import MetricsLog
from pipelines.train.monitoring import StepTimer
from pipelines.train.task import Task, Tokens
from pipelines.train.tracking_sender import TrackingSender


class TrackingLog:
    """Logs metrics by step (`train/` the loss and its terms, `train/speed/` throughput) and images by step.

    No call waits for the server.
    """

    def __init__(self, tracker: Tracker, task: Task, workers: int):
        self.task = task
        self.sender = TrackingSender(tracker)
        self.timer = StepTimer()
        peak = device_of(task.settings.resources).tflops
        self.flops = 1e12 * peak * workers if peak else None

    def start(self, unsent: Iterable[MetricsRow]) -> None:
        """Start sending, with the rows that an earlier attempt could not send; sent steps are not logged twice."""
        self.sender.start(unsent)
        self.timer.restart()

    def step(
        self, step: int, metrics_log: MetricsLog, tokens: Tokens, waited: float, norm: float, skipped: bool, spike: bool
    ) -> None:
        """Log a step's terms, gradient norm, throughput and events."""
        rates = self.timer.step(self.task.settings.optim.batch, tokens.all, waited)
        if self.flops:
            could_do = rates["train/speed/seconds_per_step"] * self.flops
            rates["train/speed/mfu"] = self.task.step_flops(tokens) / could_do
        terms = {f"train/{name}": value for name, value in metrics_log.last().items()}
        events = {"train/skipped": float(len(metrics_log.skipped))} if skipped else {}
        if spike:
            events["train/spike"] = metrics_log.last()["loss"]
        self.sender.add(step, {**terms, "train/gradient_norm": norm, **rates, **events})

    def skipped_keys(self, step: int, keys: list[str]) -> None:
        """Log the keys of a skipped step's samples as a file of the run."""
        text = "".join(f"{key}\n" for key in keys)
        self.sender.send(lambda tracker: tracker.log_text(text, f"skipped/step-{step:08}.txt"))

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Log an image at a step."""
        self.sender.send(lambda tracker: tracker.log_image_at_step(name, image, step))

    def pause_ended(self) -> None:
        """Exclude the time since the last step from the next one."""
        self.timer.restart()


def unsent_file(folder: str) -> str:
    """Return the file of a run's unsent metrics, written with each checkpoint to survive the workers."""
    return storage.join(folder, ".train", "unsent.json")


def write_unsent(folder: str, rows: Iterable[MetricsRow]) -> None:
    """Write the rows that were not sent."""
    storage.write_bytes(unsent_file(folder), json.dumps([list(row) for row in rows]).encode())


def read_unsent(folder: str) -> list[MetricsRow]:
    """Return the rows that the last attempt may not have sent."""
    with suppress(FileNotFoundError):
        return [MetricsRow(*row) for row in json.loads(storage.read_bytes(unsent_file(folder)))]
    return []


def send_unsent(tracker: Tracker, folder: str) -> None:
    """Send the rows of a finished training that the server does not have."""
    if rows := read_unsent(folder):
        last = tracker.last_step("train/loss")
        tracker.log_rows(row for row in rows if row.step > last)
