"""A stranger at the machine's outer address, or without the token, runs nothing on a job's own Ray."""

import os
import socket
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest

pytestmark = pytest.mark.ray

METHODS = {  # each runs code, leases a worker for it, or reads what jobs keep
    "InternalKVGcsService/InternalKVGet",
    "JobInfoGcsService/AddJob",
    "ActorInfoGcsService/RegisterActor",
    "NodeManagerService/RequestWorkerLease",
    "CoreWorkerService/PushTask",
    "CoreWorkerService/Exit",
}
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@pytest.fixture(scope="module")
def listening(local_ray):
    """(process, address, port) of every open port of this process and of all that Ray started for it."""

    @local_ray.remote(num_cpus=0)
    class Worker:
        def ready(self):
            return True

    worker = Worker.remote()
    local_ray.get(worker.ready.remote())
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    ports = [
        (process.name(), connection.laddr.ip, connection.laddr.port)
        for process in family
        if process.pid == os.getpid() or "ray" in " ".join(process.cmdline())
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert any(name.startswith("gcs_server") for name, _, _ in ports)
    assert any("Worker" in name for name, _, _ in ports)
    return ports


def call(port: int, method: str, token: str = "") -> grpc.StatusCode:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_ray_listens_on_loopback_alone(listening):
    assert {address for _, address, _ in listening} <= set(LOOPBACK), listening


def test_no_port_answers_at_the_outer_address(listening):
    outer = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family == socket.AF_INET}
    for address in outer - {"127.0.0.1"}:
        for name, _, port in listening:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5).close()
                raise AssertionError(f"{name} answers at {address}:{port}")


def test_nothing_runs_without_the_token(listening):
    """Of every port, and every call that would run something there: refused, or not a call of that server."""
    token, found = os.environ["RAY_AUTH_TOKEN"], set()
    for name, _, port in listening:
        for method in METHODS:
            status = call(port, method)
            assert status != grpc.StatusCode.OK, (name, method)
            assert call(port, method, "0" * len(token)) != grpc.StatusCode.OK, (name, method)
            if status == grpc.StatusCode.UNAUTHENTICATED:
                found.add(method)
    assert found == METHODS
    (gcs,) = {port for name, _, port in listening if name.startswith("gcs_server")}
    assert call(gcs, "InternalKVGcsService/InternalKVGet", token) != grpc.StatusCode.UNAUTHENTICATED


def test_the_runtime_environment_agent_refuses_a_stranger(listening):
    ports = [port for name, _, port in listening if "RuntimeEnv" in name]
    assert ports
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for port in ports:
        with pytest.raises(urllib.error.HTTPError) as refused:
            opener.open(f"http://127.0.0.1:{port}/get_or_create_runtime_env", data=b"", timeout=5)
        assert refused.value.code in (401, 403)


def test_the_token_is_in_the_environment_alone(local_ray, listening):
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) >= 32
    assert not [p.pid for p in psutil.Process().children(recursive=True) if token in " ".join(p.cmdline())]
    session = Path(local_ray._private.worker._global_node.get_session_dir_path())
    files = [path for path in session.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if token.encode() in path.read_bytes()]
    written = Path.home() / ".ray" / "auth_token"
    assert not written.exists() or written.stat().st_mtime < psutil.Process().create_time()
