import io
import random
from pathlib import Path

import pytest
from PIL import Image

import asymflow as asymflow  # its torchvision remedy must come before tests import diffusers or lpips
from pipelines.toy.data import Picture, write_img2dataset


def jpeg_bytes(seed: int, width: int = 96, height: int = 80) -> bytes:
    """A small picture with some structure, another one for every seed."""
    rng = random.Random(seed)
    corners = bytes(rng.randrange(256) for _ in range(3 * 4 * 4))
    image = Image.frombytes("RGB", (4, 4), corners).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_pictures():
    """Call with a count: that many different pictures which pass all filters."""

    def make(count: int, first: int = 0) -> list[Picture]:
        return [Picture(f"picture {i}", jpeg_bytes(i), aesthetic=6.0) for i in range(first, first + count)]

    return make


@pytest.fixture
def make_shards(tmp_path):
    """Call with Pictures: writes them as a small img2dataset folder, and returns it."""

    def make(pictures: list[Picture], shard_size: int = 20, name: str = "shards") -> Path:
        folder = tmp_path / name
        write_img2dataset(iter(pictures), folder, shard_size)
        return folder

    return make


@pytest.fixture(scope="session")
def local_ray():
    """A real local Ray, started as the steps start it; one for all tests."""
    import ray

    from pipelines.config import RunSettings
    from pipelines.steps import start_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        start_ray(RunSettings())
        yield ray
        ray.shutdown()
