import io
import os
import random
from pathlib import Path
from uuid import uuid4

import pytest
import suite_limit
from browser import chromium
from PIL import Image
from s3_faults import serve
from tenacity import stop_after_attempt, wait_none

import asymflow as asymflow  # its torchvision shim must come before tests import diffusers or lpips
from pipelines.core import s3 as object_store
from pipelines.toy.data import DemoImage, write_img2dataset


@pytest.fixture(scope="session", autouse=True)
def own_content_cache(tmp_path_factory):
    """Nothing of the tests stays in the user's cache of files' digests; their processes share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYMFLOW_CACHE", str(tmp_path_factory.mktemp("content")))
        yield


def pytest_addoption(parser):
    about = "minutes after which the run ends with the stacks of its threads, whatever it waits for"
    parser.addoption("--suite-minutes", type=float, default=55, help=about)


def pytest_configure(config):
    limit = suite_limit.start(config.getoption("--suite-minutes"))
    config.add_cleanup(limit.cancel)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark what uses the local Ray, and among it what trains, for the processes that `make test` runs them in."""
    for item in items:
        if "local_ray" in item.fixturenames and not item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.ray)
        folders = item.path.relative_to(item.config.rootpath).parts
        trains = "tiny_workflow" in item.fixturenames or {"train", "experiments"} & set(folders)
        if item.get_closest_marker("ray") and trains:
            item.add_marker(pytest.mark.training)


def jpeg_bytes(seed: int, width: int = 96, height: int = 80) -> bytes:
    """A small picture with structure and grain (a basis needs patches of full rank), another one for every seed."""
    rng = random.Random(seed)
    corners = Image.frombytes("RGB", (4, 4), rng.randbytes(3 * 4 * 4))
    grain = Image.frombytes("RGB", (width // 2, height // 2), rng.randbytes(3 * (width // 2) * (height // 2)))
    smooth, rough = (i.resize((width, height), Image.Resampling.BICUBIC) for i in (corners, grain))
    image = Image.blend(smooth, rough, 0.3)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_images():
    """Call with a count: that many different pictures which pass all filters."""

    def make(count: int, first: int = 0) -> list[DemoImage]:
        return [
            DemoImage(f"picture {i}", jpeg_bytes(i), aesthetic=6.0, label=i % 4) for i in range(first, first + count)
        ]

    return make


@pytest.fixture
def make_shards(tmp_path):
    """Call with Pictures: writes them as a small img2dataset folder, and returns it."""

    def make(pictures: list[DemoImage], shard_size: int = 20, name: str = "shards") -> Path:
        folder = tmp_path / name
        write_img2dataset(iter(pictures), folder, shard_size)
        return folder

    return make


@pytest.fixture(scope="session")
def s3_server():
    """moto's server, without faults unless a test adds them: a FaultyServer."""
    with serve() as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch):
    """URI of a folder in a bucket of the test's own; endpoint and credentials come from the environment alone."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client, bucket = object_store.client(), f"bucket-{uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    s3_server.clear(bucket)
    yield f"s3://{bucket}/some/prefix"
    s3_server.clear()
    for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):
        client.delete_object(Bucket=bucket, Key=item["Key"])


@pytest.fixture
def faulty_s3(s3, s3_server, monkeypatch):
    """(URI, FaultyServer): an operation is given up after four attempts, without waits; see `s3_faults`."""
    retries = object_store.RETRIES.copy(wait=wait_none(), stop=stop_after_attempt(4))
    monkeypatch.setattr(object_store, "RETRIES", retries)
    return s3, s3_server


@pytest.fixture(scope="session")
def local_ray():
    """A real local Ray, started as the steps start it; one for all tests."""
    import ray

    from pipelines.core.config import RunSettings
    from pipelines.core.step import start_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        start_ray(RunSettings())
        patch.setattr("pipelines.core.step.stop_ray", lambda: None)  # jobs that a test runs in this process
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, which reaches only this machine; see `browser.chromium`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")  # a page and the browser's driver are never behind a proxy
        with chromium() as driver:
            yield driver


@pytest.fixture(scope="session")
def tiny_transformer():
    """Call with the text's width: the real class with random weights and the true token width."""
    from tiny_base import make_transformer

    return make_transformer


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A FLUX.2 klein folder of the real classes with random weights, in seconds; the token geometry is the true one."""
    from tiny_base import make_base

    return make_base(tmp_path_factory.mktemp("base") / "tiny_klein")


@pytest.fixture(scope="session")
def tiny_workflow(tmp_path_factory, tiny_base, make_images, local_ray):
    """The whole workflow once, on 120 small pictures: its settings, parent run and outcomes."""
    from pipelines.core.config import validate
    from pipelines.experiments.config import WorkflowSettings
    from pipelines.experiments.workflow import run_workflow

    folder = tmp_path_factory.mktemp("workflow")
    write_img2dataset(iter(make_images(120)), folder / "shards", 60)
    settings = validate(
        WorkflowSettings,
        {
            "run": {"storage": str(folder / "runs")},
            "base": os.path.relpath(tiny_base),  # workers have other working directories
            "curate": {"source": str(folder / "shards"), "buckets": [[32, 32]], "held_out_every": 4,
                       "filters": {"min_side": 32}, "labels": "column", "columns": {"label": "label"}},
            "finetune": {
                "optim": {"batch": 4, "steps": 6, "warmup_steps": 2},
                "lora": {"rank": 4, "dropout": 0.0},
                "time": {"shift": 3.0},
                # small: its max-pools and ReLUs turn rounding into another gradient (1e-3 of it at the paper's 0.2)
                "loss": {"perceptual": {"net": "squeeze", "weights": "random", "weight": 0.005}},
                "ema": {"start_step": 2},
                "checkpoints": {"every": 3},
                "validation": {"every": 3, "pictures": 2, "steps": 2},
            },
            "evaluate": {"prompts": {"count": 6}, "images_per_prompt": 1, "sampling": {"steps": 3}, "shown": 2,
                         "leave_out": ["efficientnet"]},
        },
    )  # fmt: skip
    run_id, outcomes = run_workflow(settings)
    return settings, run_id, outcomes


@pytest.fixture(scope="session")
def held_out(tmp_path_factory, make_images, local_ray):
    """URI of a curate artifact of small pictures: the demo suite's captions and real pictures."""
    from pipelines.core.config import validate
    from pipelines.core.step import run_step
    from pipelines.data.curate import step as curate
    from pipelines.toy.data import write_img2dataset

    folder = tmp_path_factory.mktemp("held_out")
    write_img2dataset(iter(make_images(60)), folder / "shards", 30)
    tree = {
        "run": {"storage": str(folder / "runs")}, "source": str(folder / "shards"), "buckets": [[64, 64]],
        "held_out_every": 4, "filters": {"min_side": 32},
    }  # fmt: skip
    return run_step(curate.STEP, validate(curate.STEP.settings, tree)).artifact.uri
