"""A real PostgreSQL server on loopback, of Debian's package or another; it asks for a password."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from ports import free_port, wait_for

_USER = "mlflow"


@dataclass(frozen=True)
class Database:
    """Its address holds no password: that is in `environment`, where libpq looks."""

    uri: str
    environment: dict[str, str]


def find_postgres() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian's lies outside the PATH."""
    on_path = [Path(found).parent for found in [shutil.which("initdb")] if found]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return next((folder for folder in [*on_path, *debian] if (folder / "initdb").exists()), None)


@contextmanager
def serve_postgres(password: str) -> Iterator[Database]:
    """An empty database named mlflow. PostgreSQL refuses to run as root, who takes its package's account instead."""
    binaries = find_postgres()
    assert binaries, "no PostgreSQL; ask `find_postgres` first"
    account = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        secret = Path(folder) / "password"
        secret.write_text(password)
        if account:
            for path in (folder, secret):
                shutil.chown(path, account)
        data = f"{folder}/data"
        initdb = ["initdb", "--pgdata", data, "--username", _USER, "--pwfile", str(secret), "--auth", "scram-sha-256"]
        subprocess.run([binaries / initdb[0], *initdb[1:]], user=account, cwd=folder, check=True, capture_output=True)
        options = ["-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"]
        command = [binaries / "postgres", *options]
        with subprocess.Popen(command, user=account, cwd=folder, stderr=subprocess.DEVNULL) as server:

            def is_made() -> bool:
                assert server.poll() is None, "PostgreSQL did not start"
                place = {"host": "127.0.0.1", "port": port, "user": _USER, "password": password, "dbname": "postgres"}
                try:
                    with psycopg.connect(**place, autocommit=True) as found:
                        found.execute(f"CREATE DATABASE {_USER}")
                except psycopg.OperationalError:
                    return False
                return True

            try:
                wait_for(is_made)
                yield Database(f"postgresql://{_USER}@127.0.0.1:{port}/{_USER}", {"PGPASSWORD": password})
            finally:
                server.send_signal(signal.SIGINT)  # SIGTERM would wait for clients to leave
