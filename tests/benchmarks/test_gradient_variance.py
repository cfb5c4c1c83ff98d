"""The statistics on known vectors, and the whole command on a tiny base."""

import math
import sys
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from tiny_base import make_base

from asymflow.adapters import save_adapter
from asymflow.models.flux2 import PixelFlux2
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.core import artifacts, storage
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gradient_variance as benchmark  # noqa: E402


def test_mean_and_variance_of_known_vectors():
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([3.0, 0.0, -4.0]), torch.tensor([1.0, 2.0, 0.5])
    spread = benchmark.Spread()
    for _ in range(4000):
        spread.add(mean + std * torch.randn(3, generator=generator))
    assert spread.trace == pytest.approx(1 + 4 + 0.25, rel=0.05)
    assert len(spread.traces) == 1000
    assert spread.mean_square == pytest.approx(25, rel=0.02)
    noise = benchmark.Spread()
    for _ in range(400):
        noise.add(torch.randn(3, generator=generator))
    assert noise.mean_square < 0.02  # its own noise is not taken for a mean


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_images):
    """(base, adapter, curated) of patches of 4 x 4."""
    folder = tmp_path_factory.mktemp("gradients")
    base = make_base(folder / "base", 2, 2)
    transformer = Flux2Transformer2DModel.from_pretrained(base, subfolder="transformer")
    torch.manual_seed(1)
    A = torch.linalg.qr(torch.randn(48, 8)).Q
    model = PixelFlux2.from_latent(transformer, Subspace(A, 1.5, "channel_first", RELEASED, {}))
    model.add_lora(2, dropout=0.0)
    save_adapter(model, folder / "adapter")
    curated = storage.absolute(str(folder / "curated"))

    def write(path):
        with RowWriter(path, SCHEMA) as writer:
            for i, picture in enumerate(make_images(3)):
                row = {"key": f"{i}", "image": picture.image, "caption": picture.caption, "width": 96, "height": 80}
                writer.add(row)

    storage.write_file(storage.join(curated, "train/a-96x80.parquet"), write)
    artifacts.write_manifest(curated, "curate", "123", CurateSettings(source="data"), {}, {})
    return str(base), folder / "adapter", curated


def test_without_a_teacher_that_helps_nothing_is_reduced(made, monkeypatch):
    """With lambda 0 both losses are one: the ratio is 1, the means are the same."""
    from asymflow import losses

    base, adapter, curated = made
    samples = benchmark.read_samples(base, artifacts.load_artifact(curated, "curate"), 2)
    assert samples.images.shape == (2, 3, 80, 96)
    assert samples.z_0.shape == (2, 20 * 24, 8)
    model = benchmark.lift(base, adapter)
    found = benchmark.measure(model, samples, 0.3, 8, kappa=0.3)
    assert 0 < found.low <= found.ratio <= found.high
    assert 0 < found.lam <= 1
    real = losses.vr_lambda
    monkeypatch.setattr(losses, "vr_lambda", lambda d, d_low, granularity: 0 * real(d, d_low, granularity))
    found = benchmark.measure(model, samples, 0.3, 8, kappa=0.3)
    assert found.ratio == pytest.approx(1, rel=1e-4)
    assert found.bias < 1e-2
    assert found.lam == 0
    assert found.signal_plain == pytest.approx(found.signal_reduced, rel=1e-3)


def test_the_command_writes_a_figure_and_a_table(made, tmp_path, monkeypatch, capsys):
    base, adapter, curated = made
    out = tmp_path / "figure.png"
    command = ["x", base, str(adapter), curated, "--out", str(out), "--images", "2", "--draws", "8", "--sigmas"]
    monkeypatch.setattr(sys, "argv", [*command, "0.2", "0.7"])
    benchmark.main()
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if line.startswith(("lift", "trained"))]
    assert [row[:2] for row in rows] == [[m, s] for m in ("lift", "trained") for s in ("0.2", "0.7")]
    assert all(math.isfinite(float(row[2])) for row in rows)
    assert out.stat().st_size > 5000
    assert out.with_suffix(".txt").read_text() == text
    monkeypatch.setattr(sys, "argv", [*command, "0.2", "--draws", "6"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--draws 6: must be a multiple of 4" in capsys.readouterr().err
