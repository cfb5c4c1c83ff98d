"""What rank 0 tells MLflow. A server that does not answer costs no step: what it missed is sent with the next."""

import logging
from typing import Any

from mlflow.exceptions import MlflowException
from PIL import Image
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.core.tracking import Tracker
from pipelines.train.devices import device_of
from pipelines.train.metrics_log import Record
from pipelines.train.monitoring import Speedometer
from pipelines.train.task import Task, Tokens

LOGGER = logging.getLogger(__name__)
LOG_EVERY = 20  # steps that go to MLflow together: a request costs as much as a small step
_FAILURES = (MlflowException, RequestException, SQLAlchemyError, OSError)


class Log:
    """Metrics by step: `train/` the loss and its terms, `train/speed/` rates and waits; pictures by step."""

    def __init__(self, tracker: Tracker, task: Task, workers: int):
        self.tracker, self.task = tracker, task
        self.speed = Speedometer()
        peak = device_of(task.settings.resources).tflops
        self.flops = 1e12 * peak * workers if peak else None
        self.unlogged: dict[int, dict[str, float]] = {}
        self.logged = 0

    def start(self, step: int) -> None:
        """Steps after `step` that an earlier try logged before it was lost are not logged twice."""
        self.logged = max(step, self._try(self.tracker.last_step, "train/loss") or 0)
        self.speed.restart()

    def step(
        self, step: int, record: Record, tokens: Tokens, waited: float, norm: float, skipped: bool, spike: bool
    ) -> None:
        rates = self.speed.step(self.task.settings.optim.batch, tokens.all, waited)
        if self.flops:
            could_do = rates["train/speed/seconds_per_step"] * self.flops
            rates["train/speed/mfu"] = self.task.step_flops(tokens) / could_do
        if step > self.logged:
            terms = {f"train/{name}": value for name, value in record.last().items()}
            events = {"train/skipped": float(len(record.skipped))} if skipped else {}
            self.unlogged[step] = {**terms, "train/gradient_norm": norm, **rates, **events}
            if spike:
                self.unlogged[step]["train/spike"] = record.last()["loss"]
        if len(self.unlogged) >= LOG_EVERY:
            self.flush()

    def flush(self) -> None:
        if self.unlogged and self._try(self.tracker.log_history, self.unlogged, done=True):
            self.unlogged = {}

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self._try(self.tracker.log_image_at, name, image, step)

    def pause_ended(self) -> None:
        """What was done between two steps is not part of the next one's time."""
        self.speed.restart()

    def _try(self, call: Any, *arguments: Any, done: Any = None) -> Any:
        try:
            found = call(*arguments)
        except _FAILURES as error:
            LOGGER.warning("MLflow does not answer, training goes on: %s: %s", type(error).__name__, error)
            return None
        return found if done is None else done
