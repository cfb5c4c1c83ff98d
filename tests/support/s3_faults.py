"""moto's S3 server, or another WSGI application, on loopback, which fails when a test asks it to."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class Fault:
    """Every n-th request that begins like a pattern fails: with an error, or cut off after some bytes of its body."""

    pattern: str
    every: int
    error: tuple[str, str] | None
    keep: int
    matched: int = 0
    struck: int = 0

    def strikes(self, request: str) -> bool:
        if not re.match(self.pattern, request):
            return False
        self.matched += 1
        hit = self.matched % self.every == 0
        self.struck += hit
        return hit


class FaultyServer:
    """A WSGI application in front of moto's, or of another one; clients see its faults in real HTTP.

    Requests are written "GET /bucket/key?query"; `requests` has all since `clear()`. With a bucket, only its requests
    fail and are counted: the threads of an earlier test, which may still retry an upload, use another one.
    """

    def __init__(self, application: Application | None = None) -> None:
        self.application = application or DomainDispatcherApplication(create_backend_app)
        self.lock = threading.Lock()
        self.url, self.bucket = "", ""
        self.clear()

    def clear(self, bucket: str | None = None) -> None:
        """Forget faults and requests; with a bucket, from now on consider its requests alone."""
        self.bucket = bucket or self.bucket
        self.faults: list[Fault] = []
        self.requests: list[str] = []

    def slow_down(self, pattern: str = "", every: int = 1) -> Fault:
        """From now on every n-th matching request is answered 503."""
        return self._add(Fault(pattern, every, ("503 Slow Down", "SlowDown"), 0))

    def deny(self, pattern: str = "", every: int = 1) -> Fault:
        """From now on every n-th matching request is answered 403."""
        return self._add(Fault(pattern, every, ("403 Forbidden", "AccessDenied"), 0))

    def cut(self, keep: int, pattern: str = "GET", every: int = 1) -> Fault:
        """From now on the connection is closed after `keep` bytes of every n-th matching answer."""
        return self._add(Fault(pattern, every, None, keep))

    def _add(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def count(self, pattern: str = "") -> int:
        return sum(bool(re.match(pattern, request)) for request in self.requests)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        fault = None
        with self.lock:
            if environ["PATH_INFO"].startswith(f"/{self.bucket}"):
                self.requests.append(request)
                fault = next((f for f in self.faults if f.strikes(request)), None)
        if fault is None:
            return self.application(environ, start_response)
        if fault.error is None:
            # the headers still promise the whole body
            return [b"".join(self.application(environ, start_response))[: fault.keep]]
        status, code = fault.error
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Type", "application/xml")])
        body = f"<Error><Code>{code}</Code><Message>as the test asked</Message></Error>"
        return [] if request.startswith("HEAD") else [body.encode()]


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def serve(application: Application | None = None) -> Iterator[FaultyServer]:
    faults = FaultyServer(application)
    server = make_server("127.0.0.1", 0, faults, threaded=True, request_handler=_Quiet)
    faults.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
