"""Requests that the demo page's server accepts, and the order in which it serves them."""

import asyncio
import socket
import threading
import time

import psutil
import pytest

from pipelines.sample.page_guard import MAX_BODY, Busy, FairQueue, Guard, names_of

JOIN = "/gradio_api/queue/join"
LOCAL = names_of("127.0.0.1")


MAX_UPLOAD = 1 << 20


def ask(method="GET", path="/", names=LOCAL, kind="http", room=True, **headers):
    """Return the status of a request; 200 if it was accepted."""
    given = {"host": "127.0.0.1:7860", **({"content_length": "10"} if method == "POST" else {}), **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items() if value is not None]
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    guard = Guard(app, names, MAX_UPLOAD, lambda: room)
    asyncio.run(guard({"type": kind, "method": method, "path": path, "headers": raw}, None, send))
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:7860", "[::1]:7860"])
def test_its_own_names(host):
    assert ask(host=host) == ask("POST", JOIN, host=host, origin=f"http://{host}") == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", None, "[::", "a@b"])
def test_any_other_name(host):
    """As a browser sends it after DNS rebinding."""
    assert ask(host=host) == ask("POST", JOIN, host=host) == 421


def test_more_names():
    assert ask(host="demo.example:443", names=names_of("127.0.0.1", ["Demo.Example"])) == 200
    everywhere = names_of("0.0.0.0")
    own = {a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET}
    assert own | {socket.gethostname().lower(), "localhost"} <= everywhere
    assert "evil.example" not in everywhere


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8888"},  # another program on this machine
        {"origin": "http://localhost:7860"},  # an alias that the request does not use
        {"origin": "http://["},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_another_site_sends_nothing(headers):
    assert ask("POST", JOIN, **headers) == 403


def test_the_page_itself_does():
    assert ask("POST", JOIN, origin="http://127.0.0.1:7860", sec_fetch_site="same-origin") == 200
    assert ask("POST", JOIN) == 200  # not a browser


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/upload"), ("POST", "/gradio_api/process_recording"), ("PUT", "/gradio_api/upload"),
        ("POST", "/gradio_api/run/draw"), ("POST", "/gradio_api/call/draw"), ("POST", "/component_server"),
        ("POST", "/gradio_api/stream/1"), ("PUT", JOIN), ("DELETE", JOIN), ("POST", "/login"),
        ("POST", "/gradio_api//upload"),
    ],
)  # fmt: skip
def test_other_routes_are_refused(method, path):
    assert ask(method, path) == 404


@pytest.mark.parametrize(
    ("length", "status"),
    [(str(MAX_BODY), 200), (str(MAX_BODY + 1), 413), ("9" * 30, 413), (None, 411), ("-1", 411), ("x", 411)],
)
def test_the_length_of_a_request(length, status):
    assert ask("POST", JOIN, content_length=length) == status


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/component_server/"])
def test_uploads_are_limited_in_length_and_in_all(path):
    assert ask("POST", path, content_length=str(MAX_UPLOAD)) == 200
    assert ask("POST", path, content_length=str(MAX_UPLOAD + 1)) == 413
    assert ask("POST", path, content_length=None) == 411
    assert ask("POST", path, room=False) == 507
    assert ask("POST", JOIN, room=False) == 200
    assert ask("POST", path, origin="http://evil.example") == 403


def test_the_page_has_no_web_socket():
    assert ask(kind="websocket") == 1008


def test_clients_are_served_fairly():
    turns, order = FairQueue(waiting=8, waiting_per_client=4), []

    def draw(client):
        with turns.take(client):
            order.append(client)

    threads = []

    def start(client):
        waiting = sum(map(len, turns._queues.values()))
        threads.append(threading.Thread(target=draw, args=(client,)))
        threads[-1].start()
        while sum(map(len, turns._queues.values())) == waiting:
            time.sleep(0.001)

    with turns.take("first"):
        for client in ("greedy",) * 4:
            start(client)
        with pytest.raises(Busy, match="4 requests wait, 4 of them yours"), turns.take("greedy"):
            pass
        for client in ("a", "b", "a", "c"):
            start(client)
        with pytest.raises(Busy, match="8 requests wait, 0 of them yours"), turns.take("new"):
            pass
    for thread in threads:
        thread.join(10)
    assert order == ["greedy", "a", "b", "c", "greedy", "a", "greedy", "greedy"]
    assert not turns._queues
    assert not turns._busy


def test_errors_release_the_queue():
    turns = FairQueue()
    with pytest.raises(ZeroDivisionError), turns.take("a"):
        1 / 0  # noqa: B018
    with turns.take("a"):
        with pytest.raises(Busy, match="closed"), turns.take("b", is_open=lambda: False):
            pass
    assert not turns._queues
