"""The demo in a real browser, at the width of a desktop and of a phone, light and dark."""

import os

import pytest
from pictures import write_bad
from space_server import SPACE, find_chromium, serve_here


if find_chromium() is None and os.environ.get("REQUIRE_BROWSER") != "1":
    pytest.skip("no Chromium on the PATH, nor in the variable CHROMIUM", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright


# Chromium has no sandbox as root. The other options keep it from contacting its vendor.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
OPTIONS += ["--disable-sync", "--no-first-run"]
SCREENS = {"desktop": ({"width": 1280, "height": 900}, "light"), "phone": ({"width": 390, "height": 844}, "dark")}
TIMEOUT = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve_here(tmp_path_factory.mktemp("browser")) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=OPTIONS)
        yield browser
        browser.close()


@pytest.mark.parametrize("screen", SCREENS)
def test_a_visit(browser, server, screen, tmp_path):
    viewport, scheme = SCREENS[screen]
    context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    expect.set_options(timeout=TIMEOUT)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    for step in (sample_by_keyboard, score, refuse_a_text_file, reconstruct, interpolate):
        if step is refuse_a_text_file:
            step(page, *write_bad(tmp_path)["text.png"])
        else:
            step(page)
        # Nothing is wider than the screen.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{folder}/{step.__name__}-{screen}.png", full_page=True)
    assert errors == []
    assert [url for url in requests if not url.startswith((server.url, "data:", "blob:"))] == []
    context.close()


def open_tab(page, name: str):
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():  # on a phone, the tab is in a menu
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown").get_by_text(name).click()
    else:
        tab.click()
    return page.get_by_role("tabpanel").filter(visible=True)


def choose_example(panel, name: str, number: int = 1):
    """Choose an example, and wait until it is the `number`th image of the panel."""
    panel.get_by_role("button", name=f"Example: {name}").nth(number - 1).click()
    expect(panel.get_by_label("Remove Image")).to_have_count(number)


def sample_by_keyboard(page):
    expect(page.get_by_role("button", name="Sample", exact=True)).to_be_visible()
    page.get_by_label("Seed").fill("7")
    height = page.evaluate("document.documentElement.scrollHeight")
    page.get_by_label("Seed").press("Enter")
    expect(page.get_by_text("15 of 15 coupling layers inverted.")).to_be_visible()
    image = page.get_by_role("img", name="Samples", exact=True)
    expect(image).to_be_visible()
    assert image.get_attribute("src").endswith(".png")
    # Nothing moves when the images appear.
    assert abs(page.evaluate("document.documentElement.scrollHeight") - height) < 5
    with page.expect_download() as download:
        page.get_by_label("Download").first.click()
    assert download.value.suggested_filename.endswith(".png")


def score(page):
    panel = open_tab(page, "Score")
    panel.locator("input[type=file]").first.set_input_files(SPACE / "examples" / "5_static.png")
    expect(panel.get_by_label("Remove Image")).to_be_visible()
    page.get_by_role("button", name="Score", exact=True).click()
    expect(panel.get_by_role("heading").first).to_contain_text("8.")  # static takes all bits
    panel.get_by_label("Remove Image").click()
    choose_example(panel, "coffee")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(panel.get_by_role("heading").first).not_to_contain_text("8.")
    expect(panel.get_by_text("Log-likelihood:")).to_be_visible()
    for name in ("Model input", "Among held-out images", "All bits", "Latent term", "Log-determinant term"):
        panel.get_by_text(name, exact=True).scroll_into_view_if_needed()  # images are loaded when they are near
        expect(panel.get_by_role("img", name=name, exact=True)).to_be_visible()


def refuse_a_text_file(page, path, message):
    panel = open_tab(page, "Score")
    panel.get_by_label("Remove Image").click()
    panel.locator("input[type=file]").first.set_input_files(path)
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.get_by_text(message)).to_be_visible()


def reconstruct(page):
    panel = open_tab(page, "Reconstruct and edit")
    choose_example(panel, "temple")
    panel.get_by_role("button", name="Encode and decode").click()
    expect(panel.get_by_text("all are equal to those of the original")).to_be_visible()


def interpolate(page):
    panel = open_tab(page, "Interpolate")
    choose_example(panel, "coffee")
    choose_example(panel, "cat", number=2)
    panel.get_by_role("button", name="Interpolate", exact=True).click()
    expect(panel.locator(".grid-container button img")).to_have_count(8)
