"""One set of modules in all pipelines, also by diffusers' AutoPipelines."""

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    Flux2KleinPipeline,
)
from toy_pipeline import ADAPTER, BASE

from asymflow.diffusers_pipeline import (
    PIPELINES,
    SCHEDULERS,
    AsymFlux2KleinHiresPipeline,
    AsymFlux2KleinImg2ImgPipeline,
    AsymFlux2KleinInpaintPipeline,
    AsymFlux2KleinPipeline,
)
from asymflow.samplers import SOLVERS

KINDS = (
    AsymFlux2KleinPipeline,
    AsymFlux2KleinImg2ImgPipeline,
    AsymFlux2KleinInpaintPipeline,
    AsymFlux2KleinHiresPipeline,
)
AUTO = (AutoPipelineForText2Image, AutoPipelineForImage2Image, AutoPipelineForInpainting)


def shares(one, other):
    return all(one.components[name] is part for name, part in other.components.items())


def test_every_solver_has_its_scheduler_and_every_pipeline_its_name():
    assert set(SCHEDULERS) == set(SOLVERS)
    assert tuple(kind.__name__ for kind in KINDS) == PIPELINES


@pytest.mark.parametrize("kind", KINDS)
def test_from_pipe_shares_the_modules_and_the_defaults(toy, kind):
    made = AsymFlux2KleinPipeline(**toy.components, shift=9.0)
    for source in KINDS:
        found = kind.from_pipe(source.from_pipe(made))
        assert type(found) is kind
        assert shares(found, toy)
        assert (found.defaults, found.space) == (made.defaults, made.space)
        assert found.defaults.shift == 9.0


def test_from_pipe_does_not_convert_half_precision():
    half = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=ADAPTER, text_encoder=None, dtype=torch.bfloat16)
    found = AsymFlux2KleinInpaintPipeline.from_pipe(half)
    assert found.transformer is half.transformer
    assert found.transformer.dtype == torch.bfloat16


def test_from_pipe_of_a_latent_pipeline_is_refused():
    latent = Flux2KleinPipeline.from_pretrained(BASE, vae=None, text_encoder=None)
    with pytest.raises(ValueError, match="^the pipeline is a Flux2KleinPipeline; from_pipe takes"):
        AsymFlux2KleinInpaintPipeline.from_pipe(latent)


def test_auto_pipelines_find_the_pipelines(toy, tmp_path):
    toy.save_pretrained(tmp_path)
    for auto, kind in zip(AUTO, KINDS, strict=False):
        found = auto.from_pipe(AsymFlux2KleinInpaintPipeline.from_pipe(toy))
        assert type(found) is kind
        assert shares(found, toy)
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is kind
        assert loaded.defaults == toy.defaults


def test_folders_of_one_pipeline_are_loaded_by_the_others(toy, tmp_path):
    AsymFlux2KleinInpaintPipeline.from_pipe(toy).save_pretrained(tmp_path)
    assert AsymFlux2KleinPipeline.from_pretrained(tmp_path).defaults == toy.defaults
    made = AsymFlux2KleinImg2ImgPipeline.from_pretrained(BASE, adapter=ADAPTER, text_encoder=None, tokenizer=None)
    assert type(made) is AsymFlux2KleinImg2ImgPipeline
    assert made.defaults == toy.defaults
