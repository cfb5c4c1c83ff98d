"""Sampling on the shipped toy, with real Ray and files."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.core import storage
from pipelines.core.config import ConfigError, validate
from pipelines.core.step import run_step
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.step import STEP as CURATE
from pipelines.sample import step as sample
from pipelines.sample.config import SampleSettings
from pipelines.sample.metadata import read_metadata
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.sampler import PipelineSampler
from pipelines.sample.step import STEP
from pipelines.train.finetune.export_formats import convert

MODELS = Path(__file__).parents[3] / "models"
BASE, ADAPTER = str(MODELS / "toy_klein"), str(MODELS / "toy_asymflow")
PROMPTS = ["an emoji of strawberry on white", "a photo of a red flower, wide view"]


@pytest.fixture(scope="module")
def sampler():
    return PipelineSampler(BASE, ADAPTER)


def settings(folder, **changes):
    tree = {
        "run": {"storage": str(folder), "experiment": "sample"}, "base": BASE, "adapter": ADAPTER, "prompts": PROMPTS,
        "seeds": [0, 5], "steps": 2, "latent": True, "resources": {"batch": 3},
    }  # fmt: skip
    return validate(SampleSettings, tree | changes)


@pytest.mark.ray
@pytest.mark.slow
def test_images_have_metadata_and_a_killed_run_resumes(local_ray, sampler, tmp_path):
    outcome = run_step(STEP, settings(tmp_path))
    folder = outcome.artifact.uri
    names = [f"{model}/{place:05}-{seed}.png" for model in ("latent", "pixel") for place in (0, 1) for seed in (0, 5)]
    pngs = [name for name in outcome.artifact.manifest["files"] if name.endswith(".png")]
    assert sorted(pngs) == sorted([*names, "samples.png"])
    assert outcome.artifact.manifest["metrics"] == {"pictures": 8, "flagged": 0}
    rows = json.loads(storage.read_bytes(f"{folder}/samples.json"))
    assert sorted(row["file"] for row in rows) == sorted(names)
    for row in rows:
        png = storage.read_bytes(f"{folder}/{row['file']}")
        assert read_metadata(png) == row
        assert row["prompt"] == PROMPTS[int(row["file"].split("/")[1][:5])]
        assert row["steps"] == 2
        assert row["adapter_sha256"] == sampler.adapter_sha256
        assert row["shift"] == 3.55
        parameters = SamplingParameters(64, 64, steps=2, guidance=2.0, shift=3.55, orthogonal=False)
        expected = getattr(sampler, row["model"])([row["prompt"]], [row["seed"]], parameters)[0]
        assert np.abs(pixels(png) - (expected + 1).mul(127.5).permute(1, 2, 0).numpy()).max() < 1.1
    captions = [json.loads(line) for line in storage.read_bytes(f"{folder}/latent/metadata.jsonl").splitlines()]
    assert captions == [{"file_name": f"{i:05}-{s}.png", "caption": PROMPTS[i]} for i in (0, 1) for s in (0, 5)]
    image_grid = Image.open(io.BytesIO(storage.read_bytes(f"{folder}/samples.png")))
    assert image_grid.width > 4 * 256
    assert image_grid.height > 2 * 256

    assert run_step(STEP, settings(tmp_path)).reused
    # killed before the second item was recorded
    for name in ("manifest.json", ".done/3-4.json", "pixel/00001-5.png"):
        Path(folder, name).unlink()
    kept = {name: Path(folder, name).stat().st_mtime_ns for name in names if "00001-5" not in name}
    again = run_step(STEP, settings(tmp_path))
    assert again.artifact.uri == folder
    assert not again.reused
    assert {name: Path(folder, name).stat().st_mtime_ns for name in kept} == kept
    assert json.loads(storage.read_bytes(f"{folder}/samples.json")) == rows
    assert read_metadata(storage.read_bytes(f"{folder}/pixel/00001-5.png"))["seed"] == 5


@pytest.mark.ray
@pytest.mark.slow
def test_images_of_the_base_alone_are_a_source_of_the_curate_step(local_ray, tmp_path):
    alone = {"adapter": "", "height": 32, "width": 32, "text_padding": "none", "shift": 1.5, "guidance": 2.0}
    outcome = run_step(STEP, settings(tmp_path, **alone))
    assert outcome.artifact.manifest["metrics"] == {"pictures": 4, "flagged": 0}
    rows = json.loads(storage.read_bytes(outcome.artifact.file("samples.json")))
    assert {row["model"] for row in rows} == {"latent"}
    assert rows[0]["adapter_sha256"] == ""
    curated = run_step(CURATE, validate(CurateSettings, {
        "run": {"storage": str(tmp_path), "experiment": "sample"}, "source": outcome.artifact.file("latent"),
        "buckets": [[32, 32]], "near_duplicate_bits": None,
    })).artifact  # fmt: skip
    table = pa.concat_tables(pq.read_table(f) for s in ("train", "held_out") for f in curated.files(s, ".parquet"))
    assert sorted(table["caption"].to_pylist()) == sorted(2 * PROMPTS)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)), dtype=float)


def test_flagged_images_are_black_in_files_and_counted(monkeypatch, tmp_path):
    one = settings(tmp_path, latent=False, seeds=[0], provenance={"mark": False})
    sampler = sample.SampleWorker(one, str(tmp_path))
    black = [Image.new("RGB", (64, 64))] * 2
    monkeypatch.setattr(sampler, "filter", lambda pictures: (black, [True, False]))
    rows = sampler("[0, 2]")["rows"]
    assert [row["flagged"] for row in rows] == [True, False]
    png = storage.read_bytes(f"{tmp_path}/pixel/00000-0.png")
    assert pixels(png).max() == 0
    assert read_metadata(png)["flagged"]
    assert "xmp" not in Image.open(io.BytesIO(png)).info


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"height": 102}, "height=102: must be a multiple of 4"),
        ({"width": 74}, "width=74: must be a multiple of 4"),
        ({"adapter": "./absent"}, "adapter='./absent': no such folder"),
        ({"adapter": "absent"}, "adapter='absent': no such folder"),
        ({"adapter": "toy_models/toy_asymflow"}, "adapter='toy_models/toy_asymflow': no such folder in .*, and as a"),
        ({"adapter": "", "latent": False}, "adapter: missing, and base=.* is not a pixel model.*latent=true to sample"),
        ({"base": "absent"}, "base='absent': no such folder"),
        ({"safety": {"classifier": "absent"}}, "safety.classifier='absent'"),
    ],
)
def test_bad_settings_end_it_before_ray_starts(tmp_path, monkeypatch, changes, named):
    monkeypatch.setattr("pipelines.core.step.start_ray", lambda run: pytest.fail("Ray was started"))
    with pytest.raises(ConfigError, match=named):
        run_step(STEP, settings(tmp_path, **changes))


def test_a_merged_pipeline_has_no_latent_model_beside_it(tmp_path):
    merged = convert(ADAPTER, "merged", str(tmp_path / "merged"), BASE)
    sample.check(settings(tmp_path, base=merged, adapter="", latent=False))
    with pytest.raises(ConfigError, match="a merged model has no latent base"):
        sample.check(settings(tmp_path, base=merged, adapter=""))
    config = Path(merged) / "transformer/config.json"
    quantized = {**json.loads(config.read_text()), "quantization_config": {"load_in_4bit": True}}
    config.write_text(json.dumps(quantized))
    with pytest.raises(ConfigError, match="its transformer is stored quantized; jobs sample from format=merged"):
        sample.check(settings(tmp_path, base=merged, adapter="", latent=False))
