"""Headless Chromium for tests of pages, driven by Selenium through ChromeDriver."""

import io
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PACKAGES = {"chromium": "chromium", "chromedriver": "chromium-driver"}  # each program, and Debian's name for it
REQUIRED = "ASYMFLOW_REQUIRE_BROWSER"  # where it is 1, a test fails that would be skipped elsewhere
WAIT = 60  # seconds; on a loaded machine a page takes long
SWITCHES = (
    "--headless",
    "--no-sandbox",  # which root and most containers cannot have; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers keep little memory there
    "--window-size=1280,1000",
    # Nothing but the page may be asked for, so that a page that needs more is found out, offline or not.
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)


def find_programs() -> dict[str, str]:
    """Paths of the browser and its driver; where one is missing, the test ends here."""
    paths = {name: shutil.which(name) for name in PACKAGES}
    missing = [PACKAGES[name] for name, path in paths.items() if path is None]
    if missing:
        reason = f"no browser: install Debian's {' and '.join(missing)}, or their like"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{reason} ({REQUIRED}=1)", pytrace=False)
        pytest.skip(reason)
    return {name: path for name, path in paths.items() if path is not None}


@contextmanager
def chromium() -> Iterator[Chrome]:
    """A browser with an empty profile. Its `find_element` waits for what the page does not show yet."""
    programs = find_programs()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
        options = ChromeOptions()
        options.binary_location = programs["chromium"]
        for switch in (*SWITCHES, f"--user-data-dir={home}/profile"):
            options.add_argument(switch)
        # Naming the driver keeps Selenium from looking for one to download. What the two keep goes with the folder.
        service = Service(programs["chromedriver"], env={**os.environ, "HOME": home, "TMPDIR": home})
        driver = Chrome(options, service)
        try:
            driver.implicitly_wait(WAIT)
            yield driver
        finally:
            driver.quit()


def fill(field: WebElement, value: object) -> None:
    """Replace what an input holds."""
    field.clear()
    field.send_keys(str(value))


def picture(driver: Chrome, selector: str) -> Image.Image:
    """The file that an <img> shows, once the browser itself has loaded it."""
    element = driver.find_element(By.CSS_SELECTOR, selector)
    # A loaded picture has a width; one that is broken, or still on its way, has none.
    WebDriverWait(driver, WAIT).until(lambda _: element.is_displayed() and element.get_property("naturalWidth"))
    with urllib.request.urlopen(str(element.get_attribute("src"))) as answer:
        return Image.open(io.BytesIO(answer.read()))


def loaded_from(driver: Chrome) -> set[str]:
    """Origins of all that the page has asked for so far, in vain too."""
    entries = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
    return set(driver.execute_script(f"return {entries}.map(entry => new URL(entry.name).origin)"))
