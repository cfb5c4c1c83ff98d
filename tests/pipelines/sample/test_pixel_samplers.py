"""Two stages by the shipped toy, as a worker of the sample step runs them."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from toy_pipeline import ADAPTER, BASE, PROMPTS

from asymflow.diffusers_pipeline import AsymFlux2KleinHiresPipeline
from pipelines.core import artifacts
from pipelines.core.config import ConfigError, validate
from pipelines.sample.config import Hires, SampleSettings
from pipelines.sample.metadata import read_metadata
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.pixel_samplers import HiresSampler
from pipelines.sample.sampler import PipelineSampler
from pipelines.sample.step import SampleWorker, check
from pipelines.viz.image_grid import to_pil_images

PARAMETERS = SamplingParameters(height=64, width=48, steps=2, guidance=2.0, shift=3.55, orthogonal=False)


@pytest.fixture(scope="module")
def toy():
    return PipelineSampler(str(BASE), str(ADAPTER)).pipeline


def settings(**changes):
    tree = {
        "run": {"storage": "runs"}, "base": str(BASE), "adapter": str(ADAPTER), "prompts": PROMPTS[:2], "seeds": [4],
        "steps": 2, "height": 64, "width": 48, "hires": {"upscale": 2, "strength": 0.5},
    }  # fmt: skip
    return validate(SampleSettings, tree | changes)


def test_an_image_depends_on_its_prompt_and_seed_alone(toy):
    sample = HiresSampler(toy, Hires(upscale=2, strength=0.5), "sqrt")
    together = sample(PROMPTS[:2], [4, 5], PARAMETERS)
    alone = sample(PROMPTS[1:2], [5], PARAMETERS)
    assert together.shape == (2, 3, 64, 48)
    assert (together[1] - alone[0]).abs().max() < 1e-3
    upscaled = HiresSampler(toy, Hires(upscale=2, strength=0.0), "sqrt")(PROMPTS[:1], [4], PARAMETERS)
    assert (upscaled[0] - together[0]).abs().max() > 0.05


def test_the_worker_writes_images_in_two_stages_that_its_metadata_sample_again(toy, tmp_path):
    worker = SampleWorker(settings(latent=True), str(tmp_path))
    rows = worker(json.dumps([0, 1]))["rows"]
    assert [row.get("hires") for row in rows] == [None, {"upscale": 2.0, "strength": 0.5, "shift_law": "sqrt"}]
    png = (tmp_path / rows[1]["file"]).read_bytes()
    row = read_metadata(png)
    stages = row["hires"]
    again = AsymFlux2KleinHiresPipeline.from_pipe(toy)(
        row["prompt"], height=row["height"], width=row["width"], num_inference_steps=row["steps"],
        guidance_scale=row["guidance"], generator=torch.Generator().manual_seed(row["seed"]), output_type="pt",
        **stages,
    ).images  # fmt: skip
    (expected,) = to_pil_images(2 * again - 1)
    difference = torch.tensor(list(Image.open(io.BytesIO(png)).tobytes())) - torch.tensor(list(expected.tobytes()))
    assert difference.abs().max() <= 1


def test_given_and_extrapolated_shifts(toy):
    def sample(law, shift):
        parameters = SamplingParameters(**{**vars(PARAMETERS), "shift": shift})
        return HiresSampler(toy, Hires(upscale=2), law)(PROMPTS[:1], [4], parameters)

    assert torch.equal(sample("sqrt", 9.0), sample("sqrt", 3.0))  # each stage has its own
    assert not torch.equal(sample(None, 9.0), sample(None, 3.55))
    assert torch.equal(sample(None, 3.55), sample("constant", 3.55))
    resolved = settings(shift_law="extrapolated").resolve(toy.defaults)
    assert resolved.shift == toy.defaults.shift_at(64, 48, "extrapolated") < settings().resolve(toy.defaults).shift


def test_a_family_without_the_pipeline_is_sampled_in_one_stage(monkeypatch):
    monkeypatch.setattr("asymflow.models.latent.family_of", lambda base: SimpleNamespace(pixel_pipeline=False))
    with pytest.raises(ConfigError, match="hires.upscale=2, base=.* is sampled in one stage only; leave out hires"):
        check(settings())
    check(settings(hires={}))
    with pytest.raises(ConfigError, match="hires.upscale=2: the latent model is sampled in one stage only"):
        check(settings(adapter="", latent=True))


def test_settings():
    one = artifacts.hashed_settings(settings(hires={"upscale": 1}, height=None))
    assert "hires" not in one
    assert "shift_law" not in one
    assert artifacts.hashed_settings(settings())["hires"]["upscale"] == 2
    with pytest.raises(ConfigError, match="hires: give height and width"):
        settings(height=None)
    with pytest.raises(ConfigError, match="hires.upscale=0.5"):
        settings(hires={"upscale": 0.5})
    with pytest.raises(ConfigError, match="height=50: must be a multiple of 4"):
        check(settings(height=50))
