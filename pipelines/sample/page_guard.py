"""Access control of the demo page: only its own visitors, and one image at a time.

A browser lets any web site send requests to a page on this machine, or, by DNS rebinding, read the responses. Gradio
serves more routes than this page uses: recordings, logins, calls that bypass its queue.
"""

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psutil

MAX_BODY = 64 << 10
"""Maximum bytes of a request without a file"""
_UPLOADS = ("/gradio_api/upload", "/gradio_api/component_server")  # of images, and of the mask editor's layers
_POSTS = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset", *_UPLOADS)
_ALL_INTERFACES = ("0.0.0.0", "::", "")
_LOOK_SECONDS = 1.0


def names_of(host: str, others: Sequence[str] = ()) -> frozenset[str]:
    """Return the host names and addresses of a page served at `host`, without ports."""
    names = {"localhost", "127.0.0.1", "::1", host, *others}
    if host in _ALL_INTERFACES:
        addresses = [a.address for found in psutil.net_if_addrs().values() for a in found]
        names |= {socket.gethostname(), socket.getfqdn(), *(address.partition("%")[0] for address in addresses)}
    return frozenset(name.lower() for name in names if name)


class Guard:
    """ASGI middleware: rejects other host names, cross-site requests, and routes that the page does not use.

    Args:
        app: the page.
        names: host names of the page.
        max_upload: maximum bytes of a request with a file.
        has_room: whether another file can be stored.
    """

    def __init__(self, app: Any, names: frozenset[str], max_upload: int, has_room: Callable[[], bool]):
        self.app, self.names, self.max_upload, self.has_room = app, names, max_upload, has_room

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request, or respond with the reason for its rejection."""
        if scope["type"] == "websocket":  # the page uses none
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, reason = refusal
        headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": f"{reason}\n".encode()})

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        """Return (HTTP status, reason) of a request to reject; None to accept it."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if _name(host) not in self.names:
            return 421, "unknown host name; see allowed_hosts"
        if scope["method"] in ("GET", "HEAD"):
            return None
        _, _, origin = headers.get("origin", f"http://{host}").partition("://")
        if origin.lower() != host.lower() or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "the request comes from another site"
        if scope["method"] != "POST" or scope["path"].rstrip("/") not in _POSTS:
            return 404, "this page has no such route"
        length = headers.get("content-length", "")
        if not length.isascii() or not length.isdigit():
            return 411, "the request has no length"
        uploads = scope["path"].rstrip("/") in _UPLOADS
        limit = self.max_upload if uploads else MAX_BODY
        if int(length) > limit:
            return 413, f"the request is longer than {limit} bytes"
        if uploads and not self.has_room():
            return 507, "too many images are stored; try again later"
        return None


def _name(host: str) -> str:
    """Return the host name of a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


class Busy(Exception):
    """Too many requests are waiting; the message is shown to the visitor."""


class FairQueue:
    """A fair queue: one request at a time, round-robin over clients, however many requests each has sent."""

    def __init__(self, waiting: int = 16, waiting_per_client: int = 3):
        self.waiting, self.waiting_per_client = waiting, waiting_per_client
        self._changed = threading.Condition()
        self._queues: dict[str, deque[object]] = {}
        self._busy = False

    @contextmanager
    def take(self, client: str, is_open: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Wait for a turn. Raises Busy if too many requests wait, or once `is_open()` is false."""
        ticket = object()
        with self._changed:
            own = self._queues.setdefault(client, deque())
            waiting = sum(map(len, self._queues.values()))
            if len(own) >= self.waiting_per_client or waiting >= self.waiting:
                if not own:
                    del self._queues[client]
                raise Busy(f"{waiting} requests wait, {len(own)} of them yours; try again later")
            own.append(ticket)
            try:
                while self._busy or next(iter(self._queues.values()))[0] is not ticket:
                    self._changed.wait(_LOOK_SECONDS)
                    if not is_open():
                        raise Busy("the page was closed")
                self._busy = True
            finally:
                own.remove(ticket)
                del self._queues[client]
                if own:
                    self._queues[client] = own  # behind the other clients
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
