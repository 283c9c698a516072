"""A real browser: Chromium driven by Playwright, which fails a test on any error or any request that leaves the page.

Screenshots are kept in out/screenshots, to be looked at. Without Chromium on the machine these tests are skipped.
"""

import shutil
from pathlib import Path

import pytest

collect_ignore = ["conftest.py"]  # no doctests here: there is a second file of this name
SCREENSHOTS = Path(__file__).parents[2] / "out" / "screenshots"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
_OFFLINE = ("file:", "data:", "blob:")


@pytest.fixture(scope="session")
def chromium():
    """A running Chromium, one for all tests of a process."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=list(_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def allowed():
    """Addresses besides files that a test may ask for: the origin of a server of its own."""
    return []


@pytest.fixture
def browser_page(chromium, allowed):
    """An empty page. At the end of the test it must have met no error and asked for nothing outside of itself."""
    context = chromium.new_context(viewport=WIDE, color_scheme="light", reduced_motion="reduce")
    page = context.new_page()
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    yield page
    outside = [url for url in requests if not url.startswith((*_OFFLINE, *allowed))]
    context.close()
    assert not errors, errors
    assert not outside, outside


@pytest.fixture
def screenshot(browser_page):
    """Keep a picture of the page as it is: screenshot("index-dark", full=True)."""

    def keep(name, full=False):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        file = SCREENSHOTS / f"{name}.png"
        browser_page.screenshot(path=file, full_page=full)
        assert file.stat().st_size > 5000, "an empty picture"
        return file

    return keep
