"""Kubernetes manifests: as files, as kustomize builds them, and against the definitions of what they are."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
VERSION = "1.37"
"""Of Kubernetes"""
DEFINITIONS = "ASYMFLOW_KUBERAY_CRDS"
"""The folder of KubeRay's custom resource definitions; without it, those beside the checkout"""
REQUIRED = "ASYMFLOW_REQUIRE_KUSTOMIZE"  # where it is 1, a test fails that would be skipped elsewhere
FREE = (
    "labels", "annotations", "matchLabels", "nodeSelector", "rayStartParams", "requests", "limits", "data", "selector",
    "clusterSelector", "emptyDir",
)  # fmt: skip
"""Maps whose keys anyone may choose; emptyDir, since a mutation of one that is empty would make it something else"""
Manifest = dict[str, Any]


def files() -> list[Path]:
    """Every file that holds manifests, to be applied as it is or by kustomize."""
    found = sorted([*INFRA.glob("kuberay/**/*.yaml"), *INFRA.glob("mlflow/**/*.yaml")])
    return [path for path in found if path.name != "kustomization.yaml" and "kind: " in path.read_text()]


def read(path: Path) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]


def kustomizations() -> list[Path]:
    """The folders that can be applied with `kubectl apply -k`."""
    found = sorted(path.parent for path in INFRA.glob("**/kustomization.yaml"))
    return [folder for folder in found if "components" not in folder.parts]


@lru_cache
def _build(folder: Path) -> str:
    kustomize, kubectl = shutil.which("kustomize"), shutil.which("kubectl")
    if not kustomize and not kubectl:
        reason = "no kustomize: install it, or kubectl"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{reason} ({REQUIRED}=1)", pytrace=False)
        pytest.skip(reason)
    command = [kustomize, "build"] if kustomize else [str(kubectl), "kustomize"]
    built = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    return built.stdout


def build(folder: Path) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(_build(folder)) if manifest]


@lru_cache
def _ray_schema(kind: str) -> jsonschema.Draft202012Validator:
    folder = Path(os.environ.get(DEFINITIONS) or ROOT.parent / "shared/kuberay-crds")
    path = folder / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        if DEFINITIONS in os.environ:
            pytest.fail(f"{DEFINITIONS}={folder}: has no {path.name}", pytrace=False)
        pytest.skip(f"no KubeRay definitions: {DEFINITIONS} names the folder of {path.name}")
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1"]
    return jsonschema.Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """Unknown fields are errors, as `kubectl` has it, except where anything is meant to be kept."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


def problems(manifest: Manifest) -> list[str]:
    """What Kubernetes, or KubeRay, would refuse of a manifest."""
    found = []
    if manifest.get("apiVersion", "").startswith("ray.io/"):
        schema = _ray_schema(manifest["kind"])
        found += [f"{error.json_path}: {error.message}" for error in schema.iter_errors(manifest)]
        # its definition leaves metadata to Kubernetes
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
    try:
        kubernetes_validate.validate(json.loads(json.dumps(manifest)), VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        found.append(f"{'.'.join(map(str, error.path))}: {error.message}")
    return found


def mutations(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """(where, the manifest with one thing wrong there): a field that nobody knows in every map, and another kind of
    value in place of every value."""
    for place in _places(manifest):
        mutant = deepcopy(manifest)
        *parents, last = place
        node: Any = mutant
        for key in parents:
            node = node[key]
        if isinstance(node[last], dict):
            node[last]["fieldThatIsNone"] = 1
        else:
            node[last] = {"of": ["another", "kind"]}
        yield ".".join(map(str, place)), mutant
    yield "", {**manifest, "fieldThatIsNone": 1}


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if path == () and key in ("apiVersion", "kind"):
                continue
            if key not in FREE:
                yield (*path, key)
                yield from _places(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield (*path, i)
            yield from _places(value, (*path, i))


def pods(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """(name, spec) of every pod that a manifest makes."""

    def walk(node: Any, name: str) -> Iterator[tuple[str, Manifest]]:
        if isinstance(node, dict):
            name = node.get("groupName", name)
            if isinstance(node.get("containers"), list):
                yield name, node
            for value in node.values():
                yield from walk(value, name)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value, name)

    yield from walk(manifest, manifest["kind"])
