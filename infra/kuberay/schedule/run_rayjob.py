"""Create a RayJob and wait for its end; the exit status is 0 where it succeeded. For a CronJob's pod.

Where one of the same schedule (label `asymflow/schedule`) is still running, that one is waited for instead: a pod that
was lost does not cost a second evaluation. An API server that is away is asked again for as long as the pod may run;
one that refuses the pod's account ends it, since asking again would not help.
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
PLACE = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
LABEL = "asymflow/schedule"
ENDED = ("Complete", "Failed")
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "15"))
REQUEST_SECONDS = 30
"""A request that takes longer is given up and sent again"""
REFUSALS = (400, 401, 403, 409, 422)
PASSING = (HTTPError, OSError, ValueError)
"""A connection that drops; an answer that is cut off or is not what the API sends"""


class Refused(Exception):
    """The API server understood the request and refuses it; the message says which and why."""


def checked(answer: Any, part: str) -> dict[str, Any]:
    """Raise ValueError for what is no answer of the API: a proxy's page, half of an answer."""
    if not isinstance(answer, dict) or not isinstance(answer.get(part), dict | list):
        raise ValueError(f"the answer has no {part}: {str(answer)[:80]!r}")
    return answer


def deployment_status(job: dict[str, Any]) -> str:
    return (job.get("status") or {}).get("jobDeploymentStatus") or "New"


def ask(what: str, request: Callable[[], T]) -> T | None:
    """Send a request until it is answered. None: what it names does not exist. Raises Refused."""
    while True:
        try:
            return request()
        except client.ApiException as error:
            if error.status == 404:
                return None
            if error.status in REFUSALS:
                raise Refused(f"{what}: the API refuses it: {error.status} {error.reason}") from None
            reason = f"{error.status} {error.reason}"
        except PASSING as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{what}: the API does not answer, asking again: {reason}", flush=True)
        time.sleep(POLL_SECONDS)


def list_running(api: Any, namespace: str, schedule: str) -> list[dict[str, Any]]:
    selector = f"{LABEL}={schedule}"
    found = api.list_namespaced_custom_object(
        **PLACE, namespace=namespace, label_selector=selector, _request_timeout=REQUEST_SECONDS
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
            **PLACE, namespace=namespace, body=manifest, _request_timeout=REQUEST_SECONDS
        )
        print(f"created {checked(job, 'metadata')['metadata']['name']}", flush=True)
        return job

    job = ask(f"RayJobs of {schedule}", request)
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
            **PLACE, namespace=namespace, name=name, _request_timeout=REQUEST_SECONDS
        )
        return checked(found, "metadata")

    while (status := deployment_status(job)) not in ENDED:
        if status != seen:
            print(f"{name}: {status}", flush=True)
            seen = status
        time.sleep(POLL_SECONDS)
        found = ask(name, request)
        if found is None:
            print(f"{name} was deleted", flush=True)
            return 1
        job = found
    told = job["status"]
    print(f"{name}: {told.get('jobStatus')} {told.get('reason', '')} {told.get('message', '')}".rstrip(), flush=True)
    return 0 if told.get("jobStatus") == "SUCCEEDED" else 1


if __name__ == "__main__":
    config.load_incluster_config()
    sys.exit(run(client.CustomObjectsApi(), os.environ["NAMESPACE"], yaml.safe_load(Path(sys.argv[1]).read_text())))
