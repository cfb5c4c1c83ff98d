"""A test that needs a browser says so where there is none; where one is required it fails."""

import pytest
from browser import REQUIRED, find_programs


@pytest.mark.parametrize(
    ("required", "outcome"), [("", pytest.skip.Exception), ("0", pytest.skip.Exception), ("1", pytest.fail.Exception)]
)
def test_no_browser(monkeypatch, tmp_path, required, outcome):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(REQUIRED, required)
    with pytest.raises(outcome, match="install Debian's chromium and chromium-driver"):
        find_programs()


def test_no_driver(monkeypatch, tmp_path):
    browser = tmp_path / "chromium"
    browser.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="install Debian's chromium-driver,"):
        find_programs()
