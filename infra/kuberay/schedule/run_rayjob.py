"""Create a RayJob and wait until it ends; exit with 0 if it succeeded. Runs in the pod of a CronJob.

If a job of the same schedule (label `asymflow/schedule`) is still running, the script waits for that one: a lost pod
does not cause a second evaluation. Requests to an unreachable API server are retried until the pod's deadline. A
refusal of the pod's account ends the script, since a retry would not help.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes import client, config
from urllib3.exceptions import HTTPError

T = TypeVar("T")
RESOURCE = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
LABEL = "asymflow/schedule"
ENDED = ("Complete", "Failed")
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "15"))
REQUEST_SECONDS = 30
"""Timeout of a request, after which it is retried"""
REFUSALS = (400, 401, 403, 409, 422)
TRANSIENT = (HTTPError, OSError, ValueError)
"""Transient errors: dropped connections, and responses that are truncated or not the API's"""


class Refused(Exception):
    """Raised when the API server refuses a request; the message has the request and the reason."""


def checked(answer: Any, part: str) -> dict[str, Any]:
    """Return the answer. Raises ValueError if it is not the API's, such as a proxy's page or half of an answer."""
    if not isinstance(answer, dict) or not isinstance(answer.get(part), dict | list):
        raise ValueError(f"the answer has no {part}: {str(answer)[:80]!r}")
    return answer


def deployment_status(job: dict[str, Any]) -> str:
    return (job.get("status") or {}).get("jobDeploymentStatus") or "New"


def send(what: str, request: Callable[[], T]) -> T | None:
    """Retry a request until the API answers; return None if the named object does not exist. Raises Refused."""
    while True:
        try:
            return request()
        except client.ApiException as error:
            if error.status == 404:
                return None
            if error.status in REFUSALS:
                raise Refused(f"{what}: the API refuses it: {error.status} {error.reason}") from None
            reason = f"{error.status} {error.reason}"
        except TRANSIENT as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{what}: the API does not answer, retrying: {reason}", flush=True)
        time.sleep(POLL_SECONDS)


def list_running(api: Any, namespace: str, schedule: str) -> list[dict[str, Any]]:
    selector = f"{LABEL}={schedule}"
    found = api.list_namespaced_custom_object(
        **RESOURCE, namespace=namespace, label_selector=selector, _request_timeout=REQUEST_SECONDS
    )
    return [job for job in checked(found, "items")["items"] if deployment_status(job) not in ENDED]


def find_or_create(api: Any, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the schedule's RayJob, created where none is running. A request to create whose answer was lost may have
    worked: it is looked for before the next one."""
    schedule = manifest["metadata"]["labels"][LABEL]

    def request() -> dict[str, Any]:
        if running := list_running(api, namespace, schedule):
            print(f"{running[0]['metadata']['name']} is still at work: waiting for it", flush=True)
            return running[0]
        job = api.create_namespaced_custom_object(
            **RESOURCE, namespace=namespace, body=manifest, _request_timeout=REQUEST_SECONDS
        )
        print(f"created {checked(job, 'metadata')['metadata']['name']}", flush=True)
        return job

    job = send(f"RayJobs of {schedule}", request)
    if job is None:
        raise Refused(f"RayJobs of {schedule}: the API knows none (404): is KubeRay's operator installed?")
    return job


def run(api: Any, namespace: str, manifest: dict[str, Any]) -> int:
    try:
        return wait(api, namespace, find_or_create(api, namespace, manifest))
    except Refused as error:
        print(f"error: {error}", flush=True)
        return 1


def wait(api: Any, namespace: str, job: dict[str, Any]) -> int:
    name, seen = job["metadata"]["name"], ""

    def request() -> dict[str, Any]:
        found = api.get_namespaced_custom_object(
            **RESOURCE, namespace=namespace, name=name, _request_timeout=REQUEST_SECONDS
        )
        return checked(found, "metadata")

    while (status := deployment_status(job)) not in ENDED:
        if status != seen:
            print(f"{name}: {status}", flush=True)
            seen = status
        time.sleep(POLL_SECONDS)
        found = send(name, request)
        if found is None:
            print(f"{name} was deleted", flush=True)
            return 1
        job = found
    ended = job["status"]
    print(f"{name}: {ended.get('jobStatus')} {ended.get('reason', '')} {ended.get('message', '')}".rstrip(), flush=True)
    return 0 if ended.get("jobStatus") == "SUCCEEDED" else 1


if __name__ == "__main__":
    config.load_incluster_config()
    sys.exit(run(client.CustomObjectsApi(), os.environ["NAMESPACE"], yaml.safe_load(Path(sys.argv[1]).read_text())))
