"""A page of Gradio's, filled in and clicked in a real browser; it asks for nothing from outside."""

import pytest
from browser import fill, loaded_from, picture
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


def draw(prompt: str, seed: int, steps: float) -> list[Image.Image]:
    color = (len(prompt), seed, int(steps))
    return [Image.new("RGB", (64, 64), color), Image.new("RGB", (64, 64), color[::-1])]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Address of a served page."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # where it keeps the pictures it shows
    import gradio

    with gradio.Blocks(analytics_enabled=False) as blocks:  # no analytics, no look for a newer version
        prompt = gradio.Textbox(label="Prompt", elem_id="prompt")
        seed = gradio.Number(label="Seed", value=0, precision=0, elem_id="seed")
        steps = gradio.Slider(1, 50, value=4, step=1, label="Steps", elem_id="steps")
        button = gradio.Button("Draw", elem_id="draw")
        with gradio.Row():
            names = ("latent", "pixel")
            pictures = [gradio.Image(label=name, format="png", buttons=[], elem_id=name) for name in names]
        button.click(draw, [prompt, seed, steps], pictures)
    _, url, _ = blocks.launch(
        prevent_thread_lock=True, server_name="127.0.0.1", share=False, quiet=True, ssr_mode=False, footer_links=[]
    )
    yield url
    blocks.close(verbose=False)


def color_of(picture: Image.Image) -> tuple[int, ...]:
    assert picture.size == (64, 64)
    ((_, color),) = picture.getcolors()
    return color


def test_page(page, browser):
    browser.get(page)
    fill(browser.find_element(By.CSS_SELECTOR, "#prompt textarea"), "a red fox")
    fill(browser.find_element(By.CSS_SELECTOR, "#seed input"), 200)
    fill(browser.find_element(By.CSS_SELECTOR, "#steps input[type=number]"), 12)
    browser.find_element(By.CSS_SELECTOR, "#steps input[type=range]").send_keys(Keys.ARROW_RIGHT)
    browser.find_element(By.ID, "draw").click()
    shown = [picture(browser, f"#{name} img") for name in ("latent", "pixel")]
    assert [color_of(image) for image in shown] == [(9, 200, 13), (13, 200, 9)]
    assert loaded_from(browser) == {page.rstrip("/")}
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
