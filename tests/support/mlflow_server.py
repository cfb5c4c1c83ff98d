"""A real MLflow server on loopback: a plain one, or the one of infra/mlflow."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from ports import answers, free_port, wait_for
from postgres import Database

INFRA = Path(__file__).parents[2] / "infra/mlflow"
_DATABASE = "postgresql://mlflow@mlflow-postgres/mlflow"


@contextmanager
def serve_mlflow(
    folder: Path, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Its address. `arguments` of `mlflow server` come after host and port, of which the last counts; without a store
    of their own a SQLite file and the artifacts lie in `folder`, as the log does. PORT in an argument is the
    port."""
    port = free_port()
    own = [f"--backend-store-uri=sqlite:///{folder}/server.db", f"--artifacts-destination={folder / 'kept'}"]
    given = [argument.replace("PORT", str(port)) for argument in arguments or own]
    command = [sys.executable, "-m", "mlflow", "server", *given]
    command += ["--host=127.0.0.1", f"--port={port}", "--workers=1"]
    known = {**os.environ, **(environment or {})}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=known, start_new_session=True)
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        return answers(f"{url}/health")

    try:
        wait_for(is_up)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # asked to end, it takes half a minute
        server.wait(20)


@contextmanager
def serve_manifest(folder: Path, database: Database, environment: Mapping[str, str]) -> Iterator[str]:
    """The container of infra/mlflow with its arguments and settings, but for its database, and what `environment` says
    in place of its secrets. Its address is by name: it answers to no other."""
    manifests = yaml.safe_load_all((INFRA / "mlflow.yaml").read_text())
    deployment = next(manifest for manifest in manifests if manifest["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["mlflow", "server"]
    given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    generators = yaml.safe_load((INFRA / "kustomization.yaml").read_text())["configMapGenerator"]
    site = next(generator["literals"] for generator in generators if generator["name"] == "mlflow-site")
    accounts = (INFRA / "basic_auth.ini").read_text()
    assert given["MLFLOW_BACKEND_STORE_URI"] == _DATABASE
    assert _DATABASE in accounts
    (folder / "basic_auth.ini").write_text(accounts.replace(_DATABASE, database.uri))
    own = {"MLFLOW_BACKEND_STORE_URI": database.uri, "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini")}
    site_settings = dict(literal.split("=", 1) for literal in site)
    everything = {**given, **site_settings, **own, **database.environment, **environment}
    with serve_mlflow(folder, container["args"], everything) as url:
        yield url.replace("127.0.0.1", "localhost")
