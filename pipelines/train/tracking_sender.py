"""Send metrics and images to MLflow from a thread, so that training never waits for the server."""

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
"""Timeout of a request, after which it is retried with backoff"""
MOST_ROWS, MOST_FILES = 20_000, 64
"""Limits of the queue while the server is unavailable; beyond them the oldest entries are dropped"""
BATCH, BATCH_SECONDS, MOST_TOGETHER = 20, 10.0, 60
"""Optimizer steps per request, seconds until a smaller batch is sent, and the most steps of one request: a request
costs as much as a small step"""


class TrackingSender:
    """A bounded queue of rows and files (images, texts), sent in order; failures are retried with backoff."""

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
        """Start sending.

        Args:
            unsent: rows that an earlier attempt could not send; those that the server has are skipped.
        """
        for name, seconds in (("TIMEOUT", REQUEST_SECONDS), ("MAX_RETRIES", 0)):
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", str(seconds))
        self._rows.extend(unsent)
        self._known = max((row.step for row in self._rows), default=0)
        self._thread.start()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Queue a step's metrics, unless an earlier attempt left those of that step."""
        if step <= self._known:
            return
        with self._changed:
            if len(self._rows) == MOST_ROWS:
                self._rows.popleft()
                self.lost += 1
                if self.lost == 1:
                    LOGGER.warning("MLflow has been unavailable for %d steps: dropping the oldest metrics", MOST_ROWS)
            if not self._rows:
                self._since = time.monotonic()
            self._rows.append(MetricsRow(step, time.time_ns() // 1_000_000, values))
            self._changed.notify()

    def send(self, call: Callable[[Tracker], None]) -> None:
        """Queue a file: `call` writes it, and is retried until it succeeds."""
        with self._changed:
            self._files.append(call)
            self._changed.notify()

    def unsent(self) -> list[MetricsRow]:
        """Return the rows that the server may not have yet."""
        with self._changed:
            return list(self._rows)

    def close(self, seconds: float) -> bool:
        """Send the rest within `seconds`. Returns whether everything was sent."""
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
            if self._closing.wait(wait):  # new rows do not end the backoff, else a request per step
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
                LOGGER.warning("MLflow does not answer; training continues and unsent metrics are retried: %s", reason)
            return False
        return True

    def _send_rows(self) -> None:
        rows = self.unsent()
        if not rows:
            return
        if self._last is None:  # an earlier attempt may have logged steps that are now repeated
            self._last = self.tracker.last_step("train/loss")
        # all metrics of a step in one request: the server's last step must be complete
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
            LOGGER.warning("MLflow rejected the metrics of %d steps, which are dropped: %s", len(rows), error)

    def _send_file(self) -> None:
        with self._changed:
            call = self._files[0] if self._files else None
        if call is None:
            return
        call(self.tracker)
        with self._changed:
            if self._files and self._files[0] is call:
                self._files.popleft()
