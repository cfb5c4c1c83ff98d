"""The manifests of infra/: known to Kubernetes and KubeRay, of pinned images, without rights or secrets of their own,
and with entry points that exist."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from manifests import INFRA, ROOT, build, files, kustomizations, mutations, pods, problems, read

FILES, FOLDERS = files(), kustomizations()
JOBS = [path for path in FILES if any(manifest["kind"] in ("RayJob", "RayCronJob") for manifest in read(path))]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SECRETS = {"asymflow-credentials", "mlflow", "mlflow-s3"}  # docs/kubernetes.md makes them


def name_of(path: Path) -> str:
    return str(path.relative_to(INFRA))


def everything():
    """(place, manifest) of all that may reach a cluster."""
    found = [(name_of(path), manifest) for path in JOBS for manifest in read(path)]
    return found + [(name_of(folder), manifest) for folder in FOLDERS for manifest in build(folder)]


def clusters():
    """{overlay: spec of its RayCluster}"""
    found = {}
    for folder in FOLDERS:
        for manifest in build(folder):
            if manifest["kind"] == "RayCluster":
                found[folder.name] = manifest["spec"]
            elif "rayClusterSpec" in manifest.get("spec", {}):
                found[folder.name] = manifest["spec"]["rayClusterSpec"]
    return found


def gpus(group) -> int:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return int(limits.get("nvidia.com/gpu", 0))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_known_to_kubernetes(path):
    for manifest in read(path):
        assert problems(manifest) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_builds_are_known_to_kubernetes(folder):
    manifests = build(folder)
    assert manifests
    assert [problem for manifest in manifests for problem in problems(manifest)] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_wrong_field_is_caught(path):
    tried = 0
    for manifest in read(path):
        for place, mutant in mutations(manifest):
            assert problems(mutant), f"{manifest['kind']}: {place}"
            tried += 1
    assert tried > 5


def test_images_are_pinned_to_this_version():
    images = {
        container["image"]
        for folder in FOLDERS
        for manifest in build(folder)
        for _, pod in pods(manifest)
        for container in pod["containers"] + pod.get("initContainers", [])
    }
    assert {image for image in images if image.startswith("asymflow")} == {
        f"asymflow:{VERSION}-cuda", f"asymflow:{VERSION}-cpu"
    }  # fmt: skip
    assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]*", image) for image in images), images


def test_pods_are_confined_and_sized():
    for place, manifest in everything():
        for name, pod in pods(manifest):
            where = f"{place}: {manifest['kind']} {name}"
            security = pod["securityContext"]
            assert security["runAsNonRoot"], where
            assert security["runAsUser"] >= 100, where
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
            for container in pod["containers"] + pod.get("initContainers", []):
                own = container["securityContext"]
                assert own["allowPrivilegeEscalation"] is False, where
                assert own["capabilities"] == {"drop": ["ALL"]}, where
                assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
                assert "memory" in container["resources"]["limits"], where
            if name in ("data", "encoders", "trainers"):
                assert pod["automountServiceAccountToken"] is False
                assert pod["serviceAccountName"] == "asymflow-worker"
                shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
                assert shm["emptyDir"]["medium"] == "Memory", where
                assert shm["emptyDir"]["sizeLimit"], where
                mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
                assert mounts["shm"] == "/dev/shm", where


def test_secrets_are_only_referred_to():
    telling = re.compile(r"(password|secret|token|credential|_key$|access_key)", re.IGNORECASE)
    for place, manifest in everything():
        assert manifest["kind"] != "Secret", place
        if manifest["kind"] == "ConfigMap":
            assert not [key for key in manifest["data"] if telling.search(key)], place
        for _, pod in pods(manifest):
            for container in pod["containers"] + pod.get("initContainers", []):
                for entry in container.get("env", []):
                    assert "valueFrom" in entry or not telling.search(entry["name"]), f"{place}: {entry['name']}"


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_what_is_referred_to_is_there(folder):
    """Secrets are made by hand, and models' volume, accounts and site come with the cluster."""
    manifests = build(folder)
    names = {(manifest["kind"], manifest["metadata"].get("name")) for manifest in manifests}
    for manifest in manifests:
        text = json.dumps(manifest)
        for kind, pattern in {
            "ServiceAccount": r'"serviceAccountName": "([^"]+)"',
            "ConfigMap": r'"configMap(?:Ref)?": {"name": "([^"]+)"',
            "PersistentVolumeClaim": r'"claimName": "([^"]+)"',
        }.items():
            for name in re.findall(pattern, text):
                assert (kind, name) in names, f"{kind} {name}"
        for _, pod in pods(manifest):
            for container in pod["containers"]:
                references = [
                    source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source
                ]
                references += re.findall(
                    r'"secretKeyRef": {"key": "[^"]+", "name": "([^"]+)"', json.dumps(container, sort_keys=True)
                )
                assert set(references) <= SECRETS
    guide = (ROOT / "docs/kubernetes.md").read_text()
    assert all(f"create secret generic {name} " in guide for name in SECRETS)


def test_overlays_have_the_gpus_that_they_are_named_after():
    for folder, count in {"cpu": 0, "gpu-1": 1, "gpu-8": 8, "gpu-32": 32}.items():
        groups = {group["groupName"]: group for group in clusters()[folder]["workerGroupSpecs"]}
        assert sum(gpus(group) * group["maxReplicas"] for name, group in groups.items() if name == "trainers") == count
        assert "data" in groups
        assert gpus(groups["data"]) == 0
        assert all(group["minReplicas"] == 0 for group in groups.values())
        assert ("encoders" in groups) == (count > 1)
        for name in set(groups) - {"data"}:
            pod = groups[name]["template"]["spec"]
            assert pod["nodeSelector"] == {"asymflow/pool": name}
            assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_pods_that_train_have_time_for_a_checkpoint():
    for folder, spec in clusters().items():
        head = spec["headGroupSpec"]["template"]["spec"]
        waits = int(next(e["value"] for e in head["containers"][0]["env"] if e["name"] == "RAY_JOB_STOP_WAIT_TIME_S"))
        assert head["terminationGracePeriodSeconds"] > waits >= 300, folder
        for group in spec["workerGroupSpecs"]:
            if group["groupName"] == "trainers":
                pod = group["template"]["spec"]
                *command, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
                assert command == ["python", "-m", "pipelines.core.leave_cluster"]
                assert pod["terminationGracePeriodSeconds"] > int(seconds) >= 300, folder


def test_clusters_are_closed_and_grow_by_themselves():
    for folder, spec in clusters().items():
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == "2.60.0"
        assert spec["enableInTreeAutoscaling"] == ("kueue" not in folder)
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_cluster_in_a_queue():
    (cluster,) = [m for m in build(INFRA / "kuberay/overlays/gpu-8-kueue") if m["kind"] == "RayCluster"]
    assert cluster["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "asymflow"
    replicas = {group["groupName"]: group.get("replicas", 0) for group in cluster["spec"]["workerGroupSpecs"]}
    assert replicas == {"data": 4, "encoders": 0, "trainers": 1}


def test_a_finetune_with_a_cluster_of_its_own():
    manifests = build(INFRA / "kuberay/overlays/finetune-alone")
    (job,) = [manifest for manifest in manifests if manifest["kind"] == "RayJob"]
    assert "RayCluster" not in {manifest["kind"] for manifest in manifests}
    assert job["spec"]["rayClusterSpec"] == clusters()["gpu-8"]
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["shutdownAfterJobFinishes"]


def test_jobs_on_a_shared_cluster_leave_it_alone():
    """What KubeRay refuses beside `clusterSelector`, and what would take the cluster down with the job."""
    for path in JOBS:
        for manifest in read(path):
            spec = manifest["spec"].get("jobTemplate", manifest["spec"])
            if "clusterSelector" in spec:
                assert spec["clusterSelector"] == {"ray.io/cluster": "asymflow"}
                kept = {"clusterSelector", "entrypoint", "submissionMode"}
                assert set(spec) == kept, name_of(path)
                assert spec["submissionMode"] == "HTTPMode", name_of(path)


def test_nightly_runs_do_not_overlap():
    manifests = {manifest["kind"]: manifest for manifest in build(INFRA / "kuberay/schedule")}
    assert manifests["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    assert manifests["CronJob"]["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert manifests["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}
    ]
    script, job = (INFRA / f"kuberay/schedule/{name}" for name in ("run_rayjob.py", "rayjob.yaml"))
    assert manifests["ConfigMap"]["data"] == {"run_rayjob.py": script.read_text(), "rayjob.yaml": job.read_text()}
    (alternative,) = read(INFRA / "kuberay/schedule/raycronjob.yaml")
    assert alternative["spec"]["schedule"] == manifests["CronJob"]["spec"]["schedule"]
    assert alternative["spec"]["jobTemplate"]["entrypoint"] == read(job)[0]["spec"]["entrypoint"]


def calls_of(entrypoint: str, tmp_path: Path) -> list[list[str]]:
    """The arguments of every `python` that the shell starts for an entry point, each taken to have failed or not."""
    noted = tmp_path / "calls"
    noted.touch()
    recorder = f'python() {{ for a in "$@"; do printf "%s\\t" "$a"; done >> {noted}; echo >> {noted}; }}\n'
    done = subprocess.run(["sh", "-c", recorder + entrypoint], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr
    return [line.strip("\t").split("\t") for line in noted.read_text().splitlines()]


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_entry_points_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for manifest in read(path):
        spec = manifest["spec"].get("jobTemplate", manifest["spec"])
        calls = calls_of(spec["entrypoint"], tmp_path)
        assert calls
        for script, *arguments in calls:
            assert (ROOT / script).is_file()
            assert script.startswith("jobs/")
            monkeypatch.setattr(sys, "argv", [script, *arguments, "--dry-run"])
            capsys.readouterr()
            runpy.run_path(str(ROOT / script), run_name="__main__")
            last = capsys.readouterr().out.splitlines()[-1]
            assert set(json.loads(last)) == {"artifact", "mlflow_run", "metrics"}


def test_every_step_has_a_job():
    from pipelines.experiments.workflow import STEPS

    jobs = {path.stem for path in (INFRA / "kuberay/jobs").glob("*.yaml")}
    assert {*STEPS, "workflow", "sample", "sweep"} <= jobs
