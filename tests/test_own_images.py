"""The commands of docs/own_images.md, as written, from a folder of photographs to samples of a pixel adapter."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/own_images.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def make_photographs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (snippet,) = blocks("python")
    exec(compile(snippet, "own_images.md", "exec"), {})


def test_photographs_have_captions(tmp_path, monkeypatch):
    make_photographs(tmp_path, monkeypatch)
    images = sorted((tmp_path / "data/photos").glob("*.png"))
    assert len(images) == 40
    assert all(image.with_suffix(".txt").read_text() for image in images)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.training
@pytest.mark.timeout(1500)
def test_commands_of_the_page(tmp_path, monkeypatch):
    make_photographs(tmp_path, monkeypatch)
    for name in ("jobs", "models", "pipelines", "asymflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    (commands,) = blocks("bash")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    metrics = {}
    for command in commands.splitlines():
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        metrics[re.search(r"jobs/(\w+)", command)[1]] = json.loads(done.stdout.splitlines()[-1])["metrics"]
    assert list(metrics) == ["curate", "encode", "basis", "finetune", "sample"]
    kept, flipped, rejected = (metrics["curate"].get(name, 0) for name in ("kept_train", "flipped", "rejected"))
    assert kept == flipped
    assert kept + metrics["curate"]["kept_held_out"] + rejected == 40
    assert kept > 30
    assert metrics["encode"]["pictures"] == 2 * kept + metrics["curate"]["kept_held_out"]
    (adapter,) = (tmp_path / "runs/own/finetune").glob("*/adapter")
    assert {"config.json", "subspace.safetensors"} <= {file.name for file in adapter.iterdir()}
