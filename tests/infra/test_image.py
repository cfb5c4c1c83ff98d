"""What infra/Dockerfile puts into an image, read as Docker reads it; infra/build.sh with a Docker that only listens."""

import fnmatch
import json
import os
import re
import subprocess
import tomllib

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from manifests import INFRA, ROOT

TELLING = re.compile(r"password|secret|token|credential", re.IGNORECASE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def steps():
    """[(instruction, value)]"""
    with open(INFRA / "Dockerfile", "rb") as file:
        parsed = DockerfileParser(fileobj=file).structure
    return [(step["instruction"], step["value"]) for step in parsed if step["instruction"] != "COMMENT"]


def values(steps, instruction):
    return [value for name, value in steps if name == instruction]


def test_base_is_pinned(steps):
    base = dict(argument.split("=", 1) for argument in values(steps, "ARG") if "=" in argument)["BASE"]
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", base)
    assert values(steps, "FROM") == ["${BASE}"]


def test_it_runs_as_nobody_in_particular(steps):
    users = values(steps, "USER")
    assert users == ["1000"]
    assert [name for name, _ in steps].index("USER") < [name for name, _ in steps].index("COPY")
    assert all(value.startswith("--chown=ray:ray ") for value in values(steps, "COPY"))


def test_versions_are_the_tested_ones(steps):
    installs = [value for value in values(steps, "RUN") if "pip install" in value]
    assert "--constraint constraints.txt" in installs[0]
    assert "--no-deps" in installs[1]
    assert len(installs) == 2
    extras = re.search(r"EXTRAS=(\S+)", "\n".join(values(steps, "ARG")))[1].split(",")
    assert "cluster" in extras
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_code_is_copied_after_the_dependencies(steps):
    order = [f"{name} {value}" for name, value in steps]
    places = [
        next(i for i, step in enumerate(order) if start in step)
        for start in (
            "apt-get install",
            "COPY --chown=ray:ray pyproject.toml",
            "pip install --constraint",
            " asymflow asymflow",
        )
    ]
    assert places == sorted(places)


def test_nothing_secret_goes_in(steps):
    settings = [value for name in ("ARG", "ENV", "LABEL") for value in values(steps, name)]
    assert settings
    assert not [value for value in settings if TELLING.search(value)]
    assert not [value for value in values(steps, "RUN") if "://" in value]  # nothing from elsewhere than the indices


def test_docker_context_contains_copied_files_only(steps):
    sources = {source for value in values(steps, "COPY") for source in value.split()[1:-1]}
    assert all((ROOT / source).exists() for source in sources)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")][0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == sources
    assert not [
        source for source in sources if any(fnmatch.fnmatch(source, p) for p in ("tests*", "runs*", ".git*", "data*"))
    ]


def test_health_check(steps):
    (check,) = values(steps, "HEALTHCHECK")
    assert "CMD ray health-check" in check
    assert "--interval=" in check
    assert json.loads(values(steps, "ENTRYPOINT")[0]) == ["tini", "--"]


def test_the_script_builds_both(tmp_path):
    """A `docker` that writes down what it is called with."""
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nfor a in "$@"; do printf "%s\\t" "$a"; done >> "$CALLS"; echo >> "$CALLS"\n')
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    environment |= {"REPOSITORY": "registry.example/asymflow", "CPU_WHEELS": "https://wheels.example/cpu"}
    subprocess.run([INFRA / "build.sh", "--push"], env=environment, check=True, timeout=60)
    cuda, cpu = ((tmp_path / "calls").read_text()).splitlines()
    for call, variant in ((cuda, "cuda"), (cpu, "cpu")):
        words = call.strip("\t").split("\t")
        image = f"registry.example/asymflow:{PROJECT['version']}-{variant}"
        assert words[0] == "build"
        assert words[-1] == "."
        assert "--push" in words
        assert words[words.index("--tag") + 1] == image
        assert f"IMAGE={image}" in words
        assert any(re.fullmatch(r"COMMIT=[0-9a-f]{40}(-changed)?", word) for word in words)
    assert "BASE=ubuntu:24.04" in cpu
    assert "WHEELS=https://wheels.example/cpu" in cpu
    assert "BASE=" not in cuda


def test_compose_is_the_same_stack():
    """Head, MLflow, PostgreSQL and a bucket; passwords from the environment alone, ports for this machine alone."""
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    services = compose["services"]
    assert {"head", "mlflow", "postgres", "minio"} <= set(services)
    for name, service in services.items():
        assert re.search(r":\S*\d", service["image"]), name
        assert "latest" not in service["image"], name
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for key, value in (service.get("environment") or {}).items():
            if TELLING.search(key) and value:
                assert re.fullmatch(r"\$\{\w+(:\?[^}]*)?\}", str(value)), f"{name}: {key}"
    given = {line.partition("=")[0] for line in (INFRA / "compose.env.example").read_text().splitlines()}
    assert set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text())) <= given
    assert services["head"]["environment"]["RAY_AUTH_MODE"] == "token"
    (container,) = [
        pod["containers"][0]
        for manifest in yaml.safe_load_all((INFRA / "mlflow/mlflow.yaml").read_text())
        if manifest["kind"] == "Deployment"
        for pod in [manifest["spec"]["template"]["spec"]]
    ]
    assert services["mlflow"]["command"] == [*container["command"], *container["args"]]
