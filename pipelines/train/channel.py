"""What a training's driver, Ray Train's controller and the first worker tell each other through Ray's own store,
whatever S3 does meanwhile."""

import json
from typing import Any

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_get, _internal_kv_put

_NAMESPACE = "asymflow"


class Channel:
    """Of one attempt, by its name. Each call is a request of milliseconds to Ray's head."""

    def __init__(self, attempt: str):
        self.attempt = attempt
        self._stop, self._progress, self._abandoned = (f"{attempt}/{k}" for k in ("stop", "progress", "abandoned"))

    def ask_to_stop(self) -> None:
        _internal_kv_put(self._stop, b"1", namespace=_NAMESPACE)

    def is_asked_to_stop(self) -> bool:
        return bool(_internal_kv_exists(self._stop, namespace=_NAMESPACE))

    def abandon(self) -> None:
        """Say that the driver does not wait any more: the controller ends, and with it its workers. Not undone by
        `clear`: the controller may be late to look."""
        _internal_kv_put(self._abandoned, b"1", namespace=_NAMESPACE)

    def is_abandoned(self) -> bool:
        return bool(_internal_kv_exists(self._abandoned, namespace=_NAMESPACE))

    def report(self, **progress: Any) -> None:
        """Replace what the driver is told: {"good": step of the last complete checkpoint, or None}."""
        _internal_kv_put(self._progress, json.dumps(progress).encode(), namespace=_NAMESPACE)

    def progress(self) -> dict[str, Any] | None:
        """Return what was last reported; None before the workers train."""
        found = _internal_kv_get(self._progress, namespace=_NAMESPACE)
        return json.loads(found) if found else None

    def clear(self) -> None:
        for key in (self._stop, self._progress):
            _internal_kv_del(key, namespace=_NAMESPACE)
