"""Forms of the tabs: what becomes of valid ones, and what a request may not cost."""

import pytest
from PIL import Image
from toy_pipeline import ADAPTER, BASE

from pipelines.core.config import ConfigError
from pipelines.sample.page_tabs import TABS, read_form
from pipelines.sample.sampler import PipelineSampler

PROMPT = "an emoji of fox face on blue"
BY_NAME = {tab.name: tab for tab in TABS}


@pytest.fixture(scope="module")
def sampler():
    return PipelineSampler(str(BASE), str(ADAPTER))


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("uploads") / "photograph.png"
    Image.linear_gradient("L").resize((200, 100)).save(path)
    return str(path)


def read(sampler, tab, **form):
    return read_form(sampler, BY_NAME[tab], {"prompt": PROMPT, "negative_prompt": "", "seed": 3, **form})


def test_a_form_without_images(sampler):
    request = read(sampler, "text", steps=3, width=48, height=32, latent=True)
    parameters = request.parameters
    assert (parameters.steps, parameters.width, parameters.height) == (3, 48, 32)
    assert request.settings.prompts == [PROMPT]
    assert request.settings.seeds == [3]
    assert request.settings.latent
    assert request.edit.image is None
    assert request.edit.strength == 1


def test_an_image_larger_than_the_models_size_is_sampled_at_that_size(sampler, photograph):
    request = read(sampler, "image", image=photograph, strength=0.5, width=16_000, height=16_000)
    assert (request.parameters.height, request.parameters.width) == (44, 92)  # about 64 x 64 pixels
    assert request.edit.image.size == (200, 100)
    assert request.edit.strength == 0.5


def test_references_are_scaled_down_to_the_models_size(sampler, photograph):
    request = read(sampler, "references", references=[(photograph, None)] * 2)
    assert [image.size for image in request.edit.references] == [(91, 45)] * 2
    assert (request.parameters.height, request.parameters.width) == (64, 64)


@pytest.mark.parametrize("tab", BY_NAME)
@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"prompt": " "}, "prompt: missing"),
        ({"prompt": "x" * 20_000_000}, "prompt: has 20000000 characters; at most 2000"),
        ({"negative_prompt": "x" * 2001}, "negative_prompt: has 2001 characters"),
        ({"steps": 10_000}, "steps=10000: must be from 1 to "),
        ({"guidance": 1e9}, "guidance=1000000000.0: must be from 1 to "),
        ({"seed": None}, "seeds"),
    ],
)
def test_limits_of_every_tab(sampler, photograph, monkeypatch, tab, form, message):
    monkeypatch.setattr("pipelines.sample.page_tabs.read_mask", lambda layer, size: Image.new("L", size, 255))
    images = {"image": photograph, "mask": b"", "references": [(photograph, None)], "strength": 0.5}
    read(sampler, tab, **images)
    with pytest.raises(ConfigError, match=message):
        read(sampler, tab, **images, **form)


@pytest.mark.parametrize(
    ("tab", "form", "message"),
    [
        ("text", {"width": 16_000}, "width=16000: must be from 4 to "),
        ("references", {"height": 16_000}, "height=16000: must be from 4 to "),
        ("references", {}, "references: 0 images"),
        ("image", {}, "image: missing"),
        ("inpaint", {}, "mask: nothing is painted"),
        ("image", {"strength": 2}, "strength=2: must be above 0 and at most 1"),
        ("image", {"strength": float("nan")}, "strength=nan: must be above 0"),
        ("image", {"strength": 0}, "strength=0: must be above 0"),
        ("image", {"strength": "1"}, "strength='1'"),
    ],
)
def test_limits_of_one_tab(sampler, photograph, tab, form, message):
    images = {"image": photograph} if tab == "inpaint" or "strength" in form else {}
    if tab == "references" and form:
        images = {"references": [(photograph, None)]}
    with pytest.raises(ConfigError, match=message):
        read(sampler, tab, **{"strength": 0.5, **images, **form})
