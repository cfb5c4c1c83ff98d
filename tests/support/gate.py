"""A TCP gate in front of a server on loopback: open, closed (connections are refused) or hanging (no answers)."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Gate:
    """Its `url` stays the same whatever happens behind it."""

    def __init__(self, target: int):
        self.target = target
        self.hanging = False
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self.port = 0
        self.open()
        self.url = f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port, self._listener = listener.getsockname()[1], listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """As if the server was killed: its connections end, and new ones are refused."""
        listener, self._listener = self._listener, None
        for open_socket in ([listener] if listener else []) + list(self._connections):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()
        self._connections.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(listener.accept()[0],), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with suppress(OSError, ValueError), socket.create_connection(("127.0.0.1", self.target)) as far, near:
            self._connections |= {near, far}
            other = {near: far, far: near}
            while True:
                for ready in select.select(list(other), [], [])[0]:
                    while self.hanging:
                        select.select([], [], [], 0.05)
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    other[ready].sendall(data)


@contextmanager
def gate_before(target: int) -> Iterator[Gate]:
    gate = Gate(target)
    try:
        yield gate
    finally:
        gate.hanging = False
        gate.close()
