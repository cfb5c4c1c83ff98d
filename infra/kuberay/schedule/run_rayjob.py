"""Create a RayJob and wait for its end; the exit status is 0 where it succeeded. For a CronJob's pod.

Where one of the same schedule (label `asymflow/schedule`) is still at work, that one is waited for instead: a pod that
was lost does not cost a second evaluation.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

PLACE = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
LABEL = "asymflow/schedule"
ENDED = ("Complete", "Failed")
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "15"))


def deployment_status(job: dict[str, Any]) -> str:
    return job.get("status", {}).get("jobDeploymentStatus") or "New"


def find_running(api: Any, namespace: str, schedule: str) -> dict[str, Any] | None:
    found = api.list_namespaced_custom_object(**PLACE, namespace=namespace, label_selector=f"{LABEL}={schedule}")
    return next((job for job in found["items"] if deployment_status(job) not in ENDED), None)


def run(api: Any, namespace: str, manifest: dict[str, Any]) -> int:
    job = find_running(api, namespace, manifest["metadata"]["labels"][LABEL])
    if job:
        print(f"{job['metadata']['name']} is still at work: waiting for it", flush=True)
    else:
        job = api.create_namespaced_custom_object(**PLACE, namespace=namespace, body=manifest)
        print(f"created {job['metadata']['name']}", flush=True)
    name, seen = job["metadata"]["name"], ""
    while (status := deployment_status(job)) not in ENDED:
        if status != seen:
            print(f"{name}: {status}", flush=True)
            seen = status
        time.sleep(POLL_SECONDS)
        try:
            job = api.get_namespaced_custom_object(**PLACE, namespace=namespace, name=name)
        except client.ApiException as error:
            if error.status == 404:
                print(f"{name} was deleted", flush=True)
                return 1
            print(f"{name}: the API does not answer, asking again: {error.status} {error.reason}", flush=True)
    told = job["status"]
    print(f"{name}: {told.get('jobStatus')} {told.get('reason', '')} {told.get('message', '')}".rstrip(), flush=True)
    return 0 if told.get("jobStatus") == "SUCCEEDED" else 1


if __name__ == "__main__":
    config.load_incluster_config()
    sys.exit(run(client.CustomObjectsApi(), os.environ["NAMESPACE"], yaml.safe_load(Path(sys.argv[1]).read_text())))
