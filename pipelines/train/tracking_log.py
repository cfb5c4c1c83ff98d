"""What rank 0 logs to MLflow: metrics by step, images, and the keys of skipped samples."""

import json
from collections.abc import Iterable
from contextlib import suppress

from PIL import Image

from pipelines.core import storage
from pipelines.core.tracking import MetricsRow, Tracker
from pipelines.train.devices import device_of
from pipelines.train.metrics_log import Record
from pipelines.train.monitoring import Speedometer
from pipelines.train.task import Task, Tokens
from pipelines.train.tracking_sender import Sender


class Log:
    """Metrics by step: `train/` the loss and its terms, `train/speed/` rates and waits; images by step. Nothing here
    waits for the server."""

    def __init__(self, tracker: Tracker, task: Task, workers: int):
        self.task = task
        self.sender = Sender(tracker)
        self.speed = Speedometer()
        peak = device_of(task.settings.resources).tflops
        self.flops = 1e12 * peak * workers if peak else None

    def start(self, unsent: Iterable[MetricsRow]) -> None:
        """Begin with what an earlier attempt could not send; steps that it did send are not logged twice."""
        self.sender.start(unsent)
        self.speed.restart()

    def step(
        self, step: int, record: Record, tokens: Tokens, waited: float, norm: float, skipped: bool, spike: bool
    ) -> None:
        rates = self.speed.step(self.task.settings.optim.batch, tokens.all, waited)
        if self.flops:
            could_do = rates["train/speed/seconds_per_step"] * self.flops
            rates["train/speed/mfu"] = self.task.step_flops(tokens) / could_do
        terms = {f"train/{name}": value for name, value in record.last().items()}
        events = {"train/skipped": float(len(record.skipped))} if skipped else {}
        if spike:
            events["train/spike"] = record.last()["loss"]
        self.sender.add(step, {**terms, "train/gradient_norm": norm, **rates, **events})

    def skipped_keys(self, step: int, keys: list[str]) -> None:
        """Keep the keys of a skipped step's samples as a file of the run."""
        text = "".join(f"{key}\n" for key in keys)
        self.sender.send(lambda tracker: tracker.log_text(text, f"skipped/step-{step:08}.txt"))

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self.sender.send(lambda tracker: tracker.log_image_at(name, image, step))

    def pause_ended(self) -> None:
        """What was done between two steps is not part of the next one's time."""
        self.speed.restart()


def unsent_file(folder: str) -> str:
    """Where a run's unsent metrics lie: written with each checkpoint, so that they outlive the workers."""
    return storage.join(folder, ".train", "unsent.json")


def write_unsent(folder: str, rows: Iterable[MetricsRow]) -> None:
    storage.write_bytes(unsent_file(folder), json.dumps([list(row) for row in rows]).encode())


def read_unsent(folder: str) -> list[MetricsRow]:
    """Return the rows that the last attempt may not have sent; none where it kept none."""
    with suppress(FileNotFoundError):
        return [MetricsRow(*row) for row in json.loads(storage.read_bytes(unsent_file(folder)))]
    return []


def send_unsent(tracker: Tracker, folder: str) -> None:
    """Send what a finished training could not, but for what the server has."""
    if rows := read_unsent(folder):
        last = tracker.last_step("train/loss")
        tracker.log_rows(row for row in rows if row.step > last)
