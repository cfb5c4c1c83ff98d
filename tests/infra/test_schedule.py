"""infra/kuberay/schedule/run_rayjob.py against a stand-in for Kubernetes' API, which cannot be had here."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from kubernetes import client
from manifests import INFRA, read

SCHEDULE = INFRA / "kuberay/schedule"
JOBS = "/apis/ray.io/v1/namespaces/team/rayjobs"


def drop(api, promised=0):
    """End the connection: at once, or in the middle of an answer."""
    if promised:
        api.send_response(200)
        api.send_header("Content-Length", str(promised))
        api.end_headers()
        api.wfile.write(b'{"metadata": ')
    api.wfile.flush()
    api.connection.shutdown(socket.SHUT_RDWR)


def garble(api, body=b"<html>a proxy's page</html>"):
    api.send_response(200)
    api.send_header("Content-Type", "application/json")
    api.send_header("Content-Length", str(len(body)))
    api.end_headers()
    api.wfile.write(body)


FAULTS = {
    "dropped": drop,
    "cut off": lambda api: drop(api, promised=1000),
    "not JSON": garble,
    "no job": lambda api: garble(api, b'["a", "list"]'),
    "binary": lambda api: garble(api, b"\xff\xfe\x00"),
}


class Api(BaseHTTPRequestHandler):
    """RayJobs as KubeRay shows them: each `GET` of one takes its next state. `server.states` are those of new jobs."""

    def do_GET(self):
        if self.server.refusal:
            return self.answer(self.server.refusal, {"reason": "refused"})
        jobs, place = self.server.jobs, urlsplit(self.path)
        if place.path == JOBS:
            wanted = dict(pair.split("=") for pair in parse_qs(place.query).get("labelSelector", []))
            found = [job for job in jobs.values() if wanted.items() <= job["metadata"]["labels"].items()]
            return self.answer(200, {"items": found})
        name = place.path.removeprefix(f"{JOBS}/")
        if name not in jobs:
            return self.answer(404, {"reason": "NotFound"})
        state = self.server.states.pop(0)
        if state == "unavailable":
            return self.answer(503, {"reason": "unavailable"})
        if isinstance(state, str) and state in FAULTS:
            return FAULTS[state](self)
        if state == "deleted":
            del jobs[name]
            return self.answer(404, {"reason": "NotFound"})
        jobs[name]["status"] = state
        return self.answer(200, jobs[name])

    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        job["metadata"]["name"] = f"{job['metadata'].pop('generateName')}{len(self.server.jobs)}"
        self.server.jobs[job["metadata"]["name"]] = job
        self.server.created.append(job)
        if self.server.answer_lost:
            self.server.answer_lost = False
            return drop(self)
        return self.answer(201, job)

    def answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def kubernetes(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.jobs, server.states, server.created = {}, [], []
        server.refusal, server.answer_lost = 0, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
        host.retries = False
        yield SimpleNamespace(server=server, api=client.CustomObjectsApi(client.ApiClient(host)))
        server.shutdown()


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("POLL_SECONDS", "0.01")
    script = {"__name__": "run_rayjob"}
    exec(compile((SCHEDULE / "run_rayjob.py").read_text(), "run_rayjob.py", "exec"), script)
    return script["run"]


def state(deployment, job="", message=""):
    return {"jobDeploymentStatus": deployment, "jobStatus": job, "message": message}


def manifest():
    (job,) = read(SCHEDULE / "rayjob.yaml")
    return job


def test_a_job_is_created_and_waited_for(kubernetes, run, capsys):
    kubernetes.server.states = [state("Initializing"), state("Running", "RUNNING"), state("Complete", "SUCCEEDED")]
    assert run(kubernetes.api, "team", manifest()) == 0
    (created,) = kubernetes.server.created
    assert created["spec"] == manifest()["spec"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "created nightly-0"
    assert "nightly-0: Running" in said
    assert said[-1] == "nightly-0: SUCCEEDED"


@pytest.mark.parametrize(
    "end", [state("Failed", "FAILED", "below its floor"), state("Failed"), state("Complete", "STOPPED")]
)
def test_unsuccessful_jobs_fail(kubernetes, run, capsys, end):
    kubernetes.server.states = [state("Running", "RUNNING"), end]
    assert run(kubernetes.api, "team", manifest()) == 1
    assert end["message"] in capsys.readouterr().out


def test_a_running_job_is_awaited_instead(kubernetes, run, capsys):
    """Of this schedule: others, and those that ended, do not count."""
    own = {"labels": {"asymflow/schedule": "nightly"}}
    kubernetes.server.jobs = {
        "old": {"metadata": {"name": "old", **own}, "status": state("Complete", "SUCCEEDED")},
        "other": {"metadata": {"name": "other", "labels": {"asymflow/schedule": "weekly"}}, "status": state("Running")},
        "now": {"metadata": {"name": "now", **own}, "status": state("Running", "RUNNING")},
    }
    kubernetes.server.states = [state("Complete", "SUCCEEDED")]
    assert run(kubernetes.api, "team", manifest()) == 0
    assert kubernetes.server.created == []
    assert capsys.readouterr().out.startswith("now is still at work: waiting for it\n")


def test_an_unresponsive_api_is_retried(kubernetes, run, capsys):
    kubernetes.server.states = [
        "unavailable",
        state("Running", "RUNNING"),
        "unavailable",
        state("Complete", "SUCCEEDED"),
    ]
    assert run(kubernetes.api, "team", manifest()) == 0
    assert capsys.readouterr().out.count("retrying: 503") == 2


def test_a_job_that_someone_deletes_has_failed(kubernetes, run, capsys):
    kubernetes.server.states = [state("Running", "RUNNING"), "deleted"]
    assert run(kubernetes.api, "team", manifest()) == 1
    assert capsys.readouterr().out.endswith("nightly-0 was deleted\n")


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_connections_are_retried(kubernetes, run, capsys, fault):
    kubernetes.server.states = [fault, state("Running", "RUNNING"), fault, state("Complete", "SUCCEEDED")]
    assert run(kubernetes.api, "team", manifest()) == 0
    assert capsys.readouterr().out.count("retrying: ") == 2


@pytest.mark.parametrize("status", [401, 403])
def test_an_account_that_is_refused_ends_in_one_line(kubernetes, run, capsys, status):
    kubernetes.server.refusal = status
    assert run(kubernetes.api, "team", manifest()) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"error: RayJobs of nightly: the API refuses it: {status}")


@pytest.mark.parametrize("status", [401, 403])
def test_an_account_that_is_refused_later_ends_too(kubernetes, run, capsys, monkeypatch, status):
    def refuse(api):
        api.server.refusal = status
        return api.answer(status, {"reason": "refused"})

    monkeypatch.setitem(FAULTS, "refused", refuse)
    kubernetes.server.states = [state("Running", "RUNNING"), "refused"]
    assert run(kubernetes.api, "team", manifest()) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"error: nightly-0: the API refuses it: {status}")


def test_a_lost_response_does_not_create_a_second_job(kubernetes, run):
    kubernetes.server.answer_lost = True
    kubernetes.server.states = [state("Complete", "SUCCEEDED")]
    assert run(kubernetes.api, "team", manifest()) == 0
    assert len(kubernetes.server.created) == 1
