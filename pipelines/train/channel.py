"""Messages between a training's driver, Ray Train's controller and rank 0, through Ray's key-value store.

They do not depend on S3.
"""

import json
from typing import Any

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_get, _internal_kv_put

_NAMESPACE = "asymflow"


class Channel:
    """Messages of one attempt, by its name. Each call is a request of milliseconds to Ray's head."""

    def __init__(self, attempt: str):
        self.attempt = attempt
        self._stop, self._progress, self._abandoned = (f"{attempt}/{k}" for k in ("stop", "progress", "abandoned"))

    def request_stop(self) -> None:
        """Request that the workers write a checkpoint and end."""
        _internal_kv_put(self._stop, b"1", namespace=_NAMESPACE)

    def is_stop_requested(self) -> bool:
        """Return whether a stop was requested."""
        return bool(_internal_kv_exists(self._stop, namespace=_NAMESPACE))

    def abandon(self) -> None:
        """Announce that the driver does not wait any more: the controller ends with its workers.

        `clear` does not undo it: the controller may poll later.
        """
        _internal_kv_put(self._abandoned, b"1", namespace=_NAMESPACE)

    def is_abandoned(self) -> bool:
        """Return whether the driver has stopped waiting."""
        return bool(_internal_kv_exists(self._abandoned, namespace=_NAMESPACE))

    def report(self, **progress: Any) -> None:
        """Replace the progress report: {"good": step of the last complete checkpoint, or None}."""
        _internal_kv_put(self._progress, json.dumps(progress).encode(), namespace=_NAMESPACE)

    def progress(self) -> dict[str, Any] | None:
        """Return the last report; None before the workers train."""
        found = _internal_kv_get(self._progress, namespace=_NAMESPACE)
        return json.loads(found) if found else None

    def clear(self) -> None:
        """Delete the attempt's messages."""
        for key in (self._stop, self._progress):
            _internal_kv_del(key, namespace=_NAMESPACE)
