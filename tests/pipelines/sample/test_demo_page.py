"""The page on the toy model, in a real browser."""

import io
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import WAIT, fill, loaded_from, picture
from PIL import Image, ImageChops
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import presence_of_element_located, staleness_of
from selenium.webdriver.support.ui import WebDriverWait

from pipelines.sample.demo_page import open_page
from pipelines.sample.metadata import read_metadata
from pipelines.sample.page_tabs import TABS
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.sampler import PipelineSampler
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


def write(browser, tab, **form):
    for name, value in form.items():
        selector = f"#{tab}-{name} textarea, #{tab}-{name} input[type=number]"
        fill(browser.find_element(By.CSS_SELECTOR, selector), value)


def open_tab(browser, page, tab):
    browser.get(page.url)
    title = {one.name: one.title for one in TABS}[tab]
    browser.find_element(By.XPATH, f"//button[@role='tab' and normalize-space()='{title}']").click()


def upload(browser, tab, field, *paths):
    """Choose files, and wait until the page shows them."""
    shown = f"return document.querySelectorAll('#{tab}-{field} img').length"
    browser.find_element(By.CSS_SELECTOR, f"#{tab}-{field} input[type=file]").send_keys("\n".join(map(str, paths)))
    WebDriverWait(browser, WAIT).until(lambda _: browser.execute_script(shown) >= len(paths))


def sources(browser, tab):
    script = "return arguments[0].map(model => document.querySelector(`#${arguments[1]}-${model} img`)?.src)"
    return dict(zip(MODELS, browser.execute_script(script, MODELS, tab), strict=True))


def generate(browser, tab, models=MODELS, **form) -> list[Image.Image]:
    """Fill in, click, and wait for other images than there were."""
    before = sources(browser, tab)
    write(browser, tab, **form)
    click(browser, f"{tab}-generate")
    done = [lambda m=m: sources(browser, tab)[m] not in (None, before[m]) for m in models]
    WebDriverWait(browser, WAIT).until(lambda _: all(one() for one in done))
    return [picture(browser, f"#{tab}-{model} img") for model in models]


def click(browser, name):
    browser.execute_script("document.getElementById(arguments[0]).click()", name)


def request_latent(browser, tab):
    browser.execute_script(f"document.querySelector('#{tab}-beside input').click()")


def refusal(browser, tab, **form) -> str:
    """What the page says instead of sampling; the note is closed again."""
    write(browser, tab, **form)
    click(browser, f"{tab}-generate")
    return message(browser)


def message(browser) -> str:
    note = browser.find_element(By.CSS_SELECTOR, "[data-testid=toast-body]")
    text = note.get_property("textContent")
    note.find_element(By.CSS_SELECTOR, "[data-testid=toast-close]").click()
    WebDriverWait(browser, WAIT).until(staleness_of(note))
    return text


def metadata(browser, tab, model):
    with urllib.request.urlopen(sources(browser, tab)[model]) as answer:
        return read_metadata(answer.read())


def compared(browser, tab) -> list[Image.Image]:
    """Both images of the slider."""
    script = f"return [...document.querySelectorAll('#{tab}-compared img')].map(image => image.src)"
    WebDriverWait(browser, WAIT).until(lambda _: len(browser.execute_script(script)) == 2)
    files = [urllib.request.urlopen(source) for source in browser.execute_script(script)]
    return [Image.open(io.BytesIO(file.read())).convert("RGB") for file in files]


def differs(one, other):
    return ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox()


@pytest.fixture
def photograph(tmp_path):
    """A colored gradient of 60 x 40 pixels, as a file."""
    across, down = (Image.linear_gradient("L").rotate(turn).resize((60, 40)) for turn in (90, 0))
    path = tmp_path / "photograph.png"
    Image.merge("RGB", (across, down, Image.new("L", (60, 40), 90))).save(path)
    return path


def test_text_to_image_by_both_models_from_the_same_noise(page, browser, sampler):
    open_tab(browser, page, "text")
    form = {"prompt": PROMPT, "negative_prompt": "green", "seed": 7, "steps": 3, "guidance": 3}
    shown = generate(browser, "text", **form, width=80, height=48)
    parameters = SamplingParameters(
        48, 80, steps=3, guidance=3.0, shift=sampler.defaults.shift, negative_prompt="green", orthogonal=False
    )
    for model, image in zip(MODELS, shown, strict=True):
        (expected,) = to_pil_images(getattr(sampler, model)([PROMPT], [7], parameters))
        assert image.format == "PNG"
        assert image.size == (80, 48)
        difference = ImageChops.difference(image.convert("RGB"), expected)
        assert max(high for _, high in difference.getextrema()) <= 1  # rounding: the page's weights lie elsewhere
        assert {"model": model, "seed": 7, "prompt": PROMPT}.items() <= metadata(browser, "text", model).items()
    assert not any(differs(*pair) for pair in zip(compared(browser, "text"), shown, strict=True))
    assert "Latent base: " in browser.find_element(By.ID, "text-timing").text
    others = generate(browser, "text", seed=8)
    assert all(differs(*pair) for pair in zip(others, shown, strict=True))
    assert loaded_from(browser) == {page.url.rstrip("/")}
    assert page.hosts <= {"127.0.0.1", "localhost", None}
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_bad_input_is_an_error_message_and_the_page_keeps_running(page, browser):
    open_tab(browser, page, "text")
    assert "prompt: missing" in refusal(browser, "text", steps=2)
    assert "width=50: must be a multiple of 4" in refusal(browser, "text", prompt=PROMPT, width=50)
    assert sources(browser, "text") == {"latent": None, "pixel": None}
    assert [image.size for image in generate(browser, "text", width=32)] == [(32, 64)] * 2
    request_latent(browser, "text")  # no longer
    assert generate(browser, "text", models=["pixel"], width=48)[0].size == (48, 64)
    assert sources(browser, "text")["latent"] is None


def test_each_step_shows_the_denoised_image(page, browser):
    open_tab(browser, page, "text")
    browser.execute_script(
        """
        const preview = document.getElementById("text-preview");
        window.seen = new Set();
        new MutationObserver(() => {
            const image = preview.querySelector("img");
            if (image) window.seen.add(image.alt + " " + image.src.length);
        }).observe(preview, {subtree: true, childList: true, attributes: true});
        """
    )
    request_latent(browser, "text")  # no longer
    generate(browser, "text", models=["pixel"], prompt=PROMPT, steps=8)
    seen = browser.execute_script("return [...window.seen]")
    assert len(seen) >= 2
    assert all(one.startswith("Denoised image after step ") for one in seen)
    assert not browser.execute_script("return document.querySelectorAll('#text-preview img').length")


def test_image_to_image(page, browser, photograph, tmp_path):
    open_tab(browser, page, "image")
    assert "image: missing; upload an image" in refusal(browser, "image", prompt=PROMPT, steps=4)
    upload(browser, "image", "image", photograph)
    request_latent(browser, "image")
    shown = generate(browser, "image", strength=0.5)
    assert [image.size for image in shown] == [(60, 40)] * 2
    before, after = compared(browser, "image")
    assert not differs(before, Image.open(photograph))
    assert not differs(after, shown[1])
    assert differs(before, after)
    row = metadata(browser, "image", "pixel")
    assert (row["tab"], row["strength"], row["width"], row["height"]) == ("image", 0.5, 60, 40)


def test_inpainting_keeps_all_pixels_outside_of_what_is_painted(page, browser, photograph):
    open_tab(browser, page, "inpaint")
    upload(browser, "inpaint", "image", photograph)
    assert "mask: nothing is painted" in refusal(browser, "inpaint", prompt=PROMPT, steps=3)
    canvas = browser.find_element(By.CSS_SELECTOR, "#inpaint-mask canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    stroke = ActionChains(browser).move_to_element(canvas).click_and_hold()
    stroke.move_by_offset(20, 0).move_by_offset(0, 10).release().perform()
    undo = (By.CSS_SELECTOR, "#inpaint-mask button[aria-label=Undo]:not([disabled])")
    WebDriverWait(browser, WAIT).until(presence_of_element_located(undo))
    request_latent(browser, "inpaint")
    latent, pixel = generate(browser, "inpaint", strength=1)
    assert pixel.format == "PNG"
    assert pixel.size == (60, 40)
    before, after = (np.asarray(image, int) for image in compared(browser, "inpaint"))
    assert (before == np.asarray(Image.open(photograph), int)).all()
    changed = np.abs(after - before).max(axis=-1) > 0
    rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    assert 0 < changed.mean() < 0.4  # the stroke is at the center, and nothing else differs by a single bit
    assert 10 < columns.min() < 30 < columns.max() < 50
    assert 5 < rows.min() < 20 < rows.max() < 35
    assert differs(latent, pixel)
    again = generate(browser, "inpaint", seed=5)[1]  # the mask is kept
    assert differs(again, pixel)


def test_edit_with_references(page, browser, photograph, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "green").save(other)
    open_tab(browser, page, "references")
    assert "references: 0 images; give 1 to 4" in refusal(browser, "references", prompt=PROMPT, steps=3)
    upload(browser, "references", "references", photograph, other)
    (found,) = generate(browser, "references", models=["pixel"], width=48, height=32)
    before, after = compared(browser, "references")
    assert found.size == before.size == (48, 32)
    assert not differs(found, after)
    request_latent(browser, "references")
    latent, pixel = generate(browser, "references", seed=0)
    assert latent.size == (48, 32)
    assert not differs(pixel, found)


def test_a_file_that_is_no_image_is_an_error_message(page, browser, photograph, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(photograph.read_bytes()[:-60])
    open_tab(browser, page, "image")
    upload(browser, "image", "image", bad)
    expected = "image: not a readable image; allowed formats: PNG, JPEG, WEBP"
    assert expected in refusal(browser, "image", prompt=PROMPT)


def status_of(url, data=None, **headers):
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_requests_from_other_sites_are_refused(page):
    """At the real server: another Host, another site, an upload that is too long, calls past the queue."""
    join = f"{page.url}gradio_api/queue/join"
    assert status_of(page.url) == 200
    assert status_of(page.url, Host="evil.example") == 421
    assert status_of(join, b"{}", Origin="http://evil.example") == 403
    assert status_of(f"{page.url}gradio_api/upload", b"x" * 1000, Origin="http://evil.example") == 403
    assert status_of(f"{page.url}gradio_api/upload", b"x", Content_Length=str(1 << 30)) == 413
    assert status_of(f"{page.url}gradio_api/run/sample", b"{}") == 404
    assert status_of(join, b"x" * (1 << 20)) == 413
    assert status_of(join, b"{}") == 422  # Gradio itself, of a request without what it needs
