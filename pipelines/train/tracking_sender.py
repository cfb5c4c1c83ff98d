"""Sends a training's metrics and images to MLflow from a thread of its own: training never waits for the server."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.core.tracking import MetricsRow, Tracker

LOGGER = logging.getLogger(__name__)
TRACKING_FAILURES = (MlflowException, RequestException, SQLAlchemyError, OSError)
REQUEST_SECONDS = 10
"""A server that does not answer a request within this time is asked again later"""
MOST_ROWS, MOST_FILES = 20_000, 64
"""Kept while the server is away: beyond them the oldest are lost"""
BATCH, BATCH_SECONDS, MOST_TOGETHER = 20, 10.0, 60
"""Optimizer steps that are sent together, since a request costs as much as a small step; sooner where steps are slow"""


class Sender:
    """A bounded queue of rows and files (images, texts), sent in order; what fails is sent again after longer waits."""

    first_wait, longest_wait = 1.0, 30.0

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self.lost = 0
        self._rows: deque[MetricsRow] = deque()
        self._files: deque[Callable[[Tracker], None]] = deque(maxlen=MOST_FILES)
        self._changed = threading.Condition()
        self._since = 0.0
        self._last: int | None = None
        self._known = 0
        self._closing = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self, unsent: Iterable[MetricsRow] = ()) -> None:
        """Start sending. `unsent` are rows that an earlier attempt could not send; what the server has is not sent
        again."""
        for name, seconds in (("TIMEOUT", REQUEST_SECONDS), ("MAX_RETRIES", 0)):
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", str(seconds))
        self._rows.extend(unsent)
        self._known = max((row.step for row in self._rows), default=0)
        self._thread.start()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Send a step's metrics, unless an earlier attempt left those of that step."""
        if step <= self._known:
            return
        with self._changed:
            if len(self._rows) == MOST_ROWS:
                self._rows.popleft()
                self.lost += 1
                if self.lost == 1:
                    LOGGER.warning("MLflow has been away for %d steps: the oldest are lost from here on", MOST_ROWS)
            if not self._rows:
                self._since = time.monotonic()
            self._rows.append(MetricsRow(step, time.time_ns() // 1_000_000, values))
            self._changed.notify()

    def send(self, call: Callable[[Tracker], None]) -> None:
        """Let `call` write a file of the run; it is called again until it succeeds."""
        with self._changed:
            self._files.append(call)
            self._changed.notify()

    def unsent(self) -> list[MetricsRow]:
        """Return the rows that the server may not have yet."""
        with self._changed:
            return list(self._rows)

    def close(self, seconds: float) -> bool:
        """Send the rest, for at most so many seconds; whether everything was sent."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        rows, files = len(self._rows), len(self._files)
        if rows or files:
            LOGGER.warning("MLflow does not answer: the metrics of %d steps and %d files are not sent", rows, files)
        return not rows and not files

    def _run(self) -> None:
        wait = self.first_wait
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due, timeout=self._until_due())
                if self._closing.is_set() and not self._rows and not self._files:
                    return
                if not self._is_due():
                    continue
            if self._try(self._send_rows) & self._try(self._send_file):
                wait = self.first_wait
                continue
            if self._closing.wait(wait):  # new rows do not wake it: a server that is away would be asked at every step
                time.sleep(self.first_wait)
            wait = min(2 * wait, self.longest_wait)

    def _is_due(self) -> bool:
        waited = bool(self._rows) and time.monotonic() - self._since >= BATCH_SECONDS
        return self._closing.is_set() or bool(self._files) or len(self._rows) >= BATCH or waited

    def _until_due(self) -> float | None:
        return max(0.0, self._since + BATCH_SECONDS - time.monotonic()) if self._rows else None

    def _try(self, send: Callable[[], None]) -> bool:
        try:
            send()
        except TRACKING_FAILURES as error:
            if not self._failing:
                self._failing = True
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                LOGGER.warning("MLflow does not answer, training goes on, what it misses is sent later: %s", reason)
            return False
        return True

    def _send_rows(self) -> None:
        rows = self.unsent()
        if not rows:
            return
        if self._last is None:  # an earlier attempt may have logged steps that are now trained again
            self._last = self.tracker.last_step("train/loss")
        # whole steps: the last one that the server has must be complete
        for i in range(0, len(rows), MOST_TOGETHER):
            part = rows[i : i + MOST_TOGETHER]
            self._send_part([row for row in part if row.step > self._last])
            with self._changed:
                for row in part:
                    if self._rows and self._rows[0] is row:  # else it was dropped meanwhile
                        self._rows.popleft()
                self._since = time.monotonic()
        if self._failing:
            self._failing = False
            LOGGER.warning("MLflow answers again: %d steps were sent", len(rows))

    def _send_part(self, rows: list[MetricsRow]) -> None:
        try:
            self.tracker.log_rows(rows)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            LOGGER.warning("MLflow refuses the metrics of %d steps, which are dropped: %s", len(rows), error)

    def _send_file(self) -> None:
        with self._changed:
            call = self._files[0] if self._files else None
        if call is None:
            return
        call(self.tracker)
        with self._changed:
            if self._files and self._files[0] is call:
                self._files.popleft()
