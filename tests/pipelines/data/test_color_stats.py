import json

import pytest
import torch
from PIL import Image

from asymflow.oklab import srgb_to_oklab
from pipelines.core import artifacts, storage
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.step import run_step
from pipelines.core.workers import Workers
from pipelines.data.color_stats import STEP, load_space
from pipelines.data.config import ColorStatsSettings
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter, read_images
from pipelines.data.images import encode_png


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """A curate artifact of five train files and one held out, as that step writes them but without its Ray."""
    folder = storage.absolute(str(tmp_path_factory.mktemp("curated")))
    generator = torch.Generator().manual_seed(0)
    for base, name in enumerate(("train/a", "train/b", "train/c", "train/d", "train/e", "held_out/a")):

        def write(path, base=base):
            with RowWriter(path, SCHEMA) as writer:
                for index in range(70):  # more than a row group
                    tint = torch.randint(0, 56, (16, 16, 3), generator=generator, dtype=torch.uint8)
                    image = encode_png(Image.fromarray((tint + 35 * base).numpy()))
                    writer.add({"key": f"{index}", "image": image, "caption": "", "width": 16, "height": 16})

        storage.write_file(storage.join(folder, f"{name}-16x16.parquet"), write)
    return artifacts.write_manifest(folder, "curate", "123", CurateSettings(source="data"), {}, {})


def run(curated, storage_root, workers=2):
    resources = Workers(workers=workers)
    settings = ColorStatsSettings(curated=curated.uri, run=RunSettings(storage=str(storage_root)), resources=resources)
    return run_step(STEP, settings).artifact


@pytest.fixture(scope="module")
def artifact(curated, local_ray, tmp_path_factory):
    return run(curated, tmp_path_factory.mktemp("two"))


def contents(artifact):
    return json.loads(storage.read_bytes(artifact.file("color_stats.json")))


@pytest.mark.ray
def test_equals_a_direct_computation(artifact, curated):
    """All pixels of the training pictures at once, in float64, with variances about the mean."""
    files = curated.files("train", ".parquet")
    images = torch.cat([rows.images for file in files for rows in read_images(file)]).double()
    pixels = srgb_to_oklab(images).permute(0, 2, 3, 1).reshape(-1, 3)
    stats = contents(artifact)
    assert stats["pixels"] == len(pixels) == 5 * 70 * 256
    expected = pixels.var(dim=0, correction=0)
    torch.testing.assert_close(torch.tensor(stats["mean"]).double(), pixels.mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(stats["std_per_channel"]).double(), expected.sqrt(), rtol=0, atol=1e-6)
    assert stats["std"] == pytest.approx(float(expected.mean().sqrt()), abs=1e-6)


@pytest.mark.ray
def test_space_normalises_the_images(artifact, curated):
    space = load_space(artifact)
    x = torch.cat([space.encode(r.images) for file in curated.files("train", ".parquet") for r in read_images(file)])
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert float(x.var(dim=(0, 2, 3), correction=0).mean()) == pytest.approx(1, abs=1e-4)


@pytest.mark.ray
def test_number_of_workers_changes_no_bit(artifact, curated, tmp_path):
    alone = run(curated, tmp_path, workers=1)
    assert alone.id == artifact.id
    assert alone.manifest["files"] == artifact.manifest["files"]
    assert storage.read_bytes(alone.file("color_stats.json")) == storage.read_bytes(artifact.file("color_stats.json"))


@pytest.mark.ray
def test_reported_metrics_equal_the_file(artifact):
    stats, metrics = contents(artifact), artifact.manifest["metrics"]
    assert [metrics[f"mean_{c}"] for c in "Lab"] == stats["mean"]
    assert metrics["std"] == stats["std"]
    assert artifact.manifest["inputs"] == {"curated": "123"}


def test_only_curated_artifacts_are_accepted(tmp_path):
    settings = ColorStatsSettings(curated=str(tmp_path / "absent"), run=RunSettings(storage=str(tmp_path)))
    with pytest.raises(ConfigError, match="curated: no finished curate artifact at .*absent.*jobs/curate.py"):
        run_step(STEP, settings)
