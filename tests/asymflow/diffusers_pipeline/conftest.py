from functools import partial

import pytest
from PIL import Image
from toy_pipeline import PROMPTS

from asymflow.diffusers_pipeline import AsymFlux2KleinImg2ImgPipeline, AsymFlux2KleinInpaintPipeline


@pytest.fixture(scope="session")
def embedded(toy):
    """Arguments of a call that needs neither the text encoder nor guidance."""
    return {"prompt_embeds": toy.encode_prompt(PROMPTS[0]), "guidance_scale": 1.0, "num_inference_steps": 2}


@pytest.fixture(scope="session")
def change(toy, embedded):
    """The image-to-image pipeline with quick arguments."""
    pipeline = AsymFlux2KleinImg2ImgPipeline.from_pipe(toy)
    pipeline.set_progress_bar_config(disable=True)
    return partial(pipeline, **embedded)


@pytest.fixture(scope="session")
def inpaint(toy, embedded):
    """The inpainting pipeline with quick arguments."""
    pipeline = AsymFlux2KleinInpaintPipeline.from_pipe(toy)
    pipeline.set_progress_bar_config(disable=True)
    return partial(pipeline, **embedded)


@pytest.fixture
def photograph():
    """An image with a gradient in each channel, 33 x 22, which is not whole patches."""
    across = Image.linear_gradient("L").rotate(90).resize((33, 22))
    down = Image.linear_gradient("L").resize((33, 22))
    return Image.merge("RGB", (across, down, Image.new("L", (33, 22), 90)))
