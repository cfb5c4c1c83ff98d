"""The page on the toy model, in a real browser."""

import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import WAIT, fill, loaded_from, picture
from PIL import Image, ImageChops
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.ui import WebDriverWait

from pipelines.core.config import ConfigError
from pipelines.sample.config import Safety
from pipelines.sample.demo_page import DemoSampler, build_page, open_page
from pipelines.sample.metadata import read_metadata
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.safety import SafetyFilter
from pipelines.sample.sampler import PipelineSampler
from pipelines.train.finetune.export_formats import convert
from pipelines.viz.image_grid import to_pil_images

ROOT = Path(__file__).parents[3]
BASE, ADAPTER = str(ROOT / "models/toy_klein"), str(ROOT / "models/toy_asymflow")
PROMPT = "an emoji of fox face on blue"
MODELS = ("latent", "pixel")


@pytest.fixture(scope="module")
def sampler():
    return PipelineSampler(BASE, ADAPTER)


@pytest.fixture(scope="module")
def page():
    """The served page: its address, and the hosts that its server has looked up."""
    hosts, look_up = set(), socket.getaddrinfo

    def record(host, *args, **options):
        hosts.add(host)
        return look_up(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):  # the page sets them
            patch.setenv(name, os.environ.get(name, ""))
        patch.setattr(socket, "getaddrinfo", record)
        with open_page(BASE, ADAPTER) as url:
            yield SimpleNamespace(url=url, hosts=hosts)


def write(browser, **form):
    for name, value in form.items():
        fill(browser.find_element(By.CSS_SELECTOR, f"#{name} textarea, #{name} input[type=number]"), value)


def sources(browser):
    script = "return arguments[0].map(model => document.querySelector(`#${model} img`)?.src)"
    return dict(zip(MODELS, browser.execute_script(script, MODELS), strict=True))


def draw(browser, models=MODELS, **form) -> list[Image.Image]:
    """Fill in, click, and wait for other pictures than there were."""
    before = sources(browser)
    write(browser, **form)
    browser.find_element(By.ID, "draw").click()
    WebDriverWait(browser, WAIT).until(lambda _: all(sources(browser)[m] not in (None, before[m]) for m in models))
    return [picture(browser, f"#{model} img") for model in models]


def refusal(browser, **form) -> str:
    """What the page says instead of drawing; the note is closed again."""
    write(browser, **form)
    browser.find_element(By.ID, "draw").click()
    note = browser.find_element(By.CSS_SELECTOR, "[data-testid=toast-body]")
    message = note.get_property("textContent")
    note.find_element(By.CSS_SELECTOR, "[data-testid=toast-close]").click()
    WebDriverWait(browser, WAIT).until(staleness_of(note))
    return message


def metadata(browser, model):
    with urllib.request.urlopen(sources(browser)[model]) as answer:
        return read_metadata(answer.read())


def test_both_images_from_the_same_noise(page, browser, sampler):
    browser.get(page.url)
    shown = draw(browser, prompt=PROMPT, negative_prompt="green", seed=7, steps=3, guidance=3, width=80, height=48)
    parameters = SamplingParameters(
        48, 80, steps=3, guidance=3.0, shift=sampler.defaults.shift, negative_prompt="green", orthogonal=False
    )
    for model, image in zip(MODELS, shown, strict=True):
        (expected,) = to_pil_images(getattr(sampler, model)([PROMPT], [7], parameters))
        assert image.format == "PNG" and image.size == (80, 48)
        difference = ImageChops.difference(image.convert("RGB"), expected)
        assert max(high for _, high in difference.getextrema()) <= 1  # rounding: the page's weights lie elsewhere
        assert {"model": model, "seed": 7, "prompt": PROMPT}.items() <= metadata(browser, model).items()
    assert "Latent base: " in browser.find_element(By.ID, "timing").text
    others = draw(browser, seed=8)
    assert all(other.tobytes() != image.tobytes() for other, image in zip(others, shown, strict=True))
    assert loaded_from(browser) == {page.url.rstrip("/")}
    assert page.hosts <= {"127.0.0.1", "localhost", None}
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_bad_input_is_an_error_message_and_the_page_keeps_running(page, browser):
    browser.get(page.url)
    assert "prompt: missing" in refusal(browser, steps=2)
    assert "width=50: must be a multiple of 4" in refusal(browser, prompt=PROMPT, width=50)
    assert sources(browser) == {"latent": None, "pixel": None}
    assert [image.size for image in draw(browser, width=32)] == [(32, 64)] * 2
    browser.find_element(By.CSS_SELECTOR, "#beside input").click()  # without the latent one
    assert draw(browser, models=["pixel"], width=48)[0].size == (48, 64)
    assert sources(browser)["latent"] is None


def status_of(url, data=None, **headers):
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_requests_from_other_sites_are_refused(page):
    """At the real server: another Host, another site, the upload that Gradio would offer, calls past the queue."""
    join = f"{page.url}gradio_api/queue/join"
    assert status_of(page.url) == 200 and status_of(page.url, Host="evil.example") == 421
    assert status_of(join, b"{}", Origin="http://evil.example") == 403
    assert status_of(f"{page.url}gradio_api/upload", b"x" * 1000) == 404
    assert status_of(f"{page.url}gradio_api/run/sample", b"{}") == 404
    assert status_of(join, b"x" * (1 << 20)) == 413
    assert status_of(join, b"{}") == 422  # Gradio itself, of a request without what it needs


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"prompt": "x" * 20_000_000}, "prompt: has 20000000 characters; at most 2000"),
        ({"negative_prompt": "x" * 2001}, "negative_prompt: has 2001 characters"),
        ({"steps": 10_000}, "steps=10000: must be from 1 to "),
        ({"width": 16_000}, "width=16000: must be from 4 to "),
        ({"guidance": 1e9}, "guidance=1000000000.0: must be from 1 to "),
    ],
)
def test_what_a_request_may_cost(sampler, tmp_path, form, message):
    demo_sampler = DemoSampler(sampler, SafetyFilter(Safety(), "cpu"), tmp_path)
    with pytest.raises(ConfigError, match=message):
        demo_sampler.read(**{"prompt": PROMPT, "seed": 0, **form})


def test_a_merged_model_has_no_latent_one_beside_it(tmp_path):
    gradio = pytest.importorskip("gradio")
    sampler = PipelineSampler(convert(ADAPTER, "merged", str(tmp_path / "merged"), BASE))
    demo_sampler = DemoSampler(sampler, SafetyFilter(Safety(), "cpu"), tmp_path)
    names = {part["props"].get("elem_id") for part in build_page(gradio, demo_sampler).config["components"]}
    assert {"prompt", "pixel", "details"} <= names and not {"latent", "beside"} & names
    files, about = demo_sampler.sample(demo_sampler.read(PROMPT, 0, steps=2), lambda model, done: None)
    assert list(files) == ["pixel"] and about["flagged"] == {"pixel": False}


def test_flagged_images_are_black(sampler, tmp_path):
    def flag_all(pictures):
        return [Image.new("RGB", p.size) for p in pictures], [True] * len(pictures)

    demo_sampler = DemoSampler(sampler, flag_all, tmp_path)
    done = []
    files, about = demo_sampler.sample(
        demo_sampler.read(PROMPT, 0, steps=2, latent=True), lambda *step: done.append(step)
    )
    assert done == [(model, step) for model in MODELS for step in (0, 1, 2)]
    assert about["flagged"] == {"latent": True, "pixel": True}
    for path in files.values():
        assert Image.open(path).getextrema() == ((0, 0),) * 3 and read_metadata(path.read_bytes())["flagged"]
