"""The demo in a real browser: what a visitor sees and does, at the width of a desk and of a phone, light and dark."""

import os

import pytest
from pictures import write_bad
from space_server import SPACE, SpaceServer, find_chromium


if find_chromium() is None and os.environ.get("REQUIRE_BROWSER") != "1":
    pytest.skip("no Chromium on the PATH, nor in the variable CHROMIUM", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright


# As root there is no sandbox; the rest keeps Chromium from calling its maker.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
OPTIONS += ["--disable-sync", "--no-first-run"]
SCREENS = {"desk": ({"width": 1280, "height": 900}, "light"), "phone": ({"width": 390, "height": 844}, "dark")}
TIMEOUT = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with SpaceServer(tmp_path_factory.mktemp("browser")) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(params=SCREENS)
def page(request, browser, server):
    viewport, scheme = SCREENS[request.param]
    context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    expect.set_options(timeout=TIMEOUT)
    page.asked, page.errors = [], []
    page.on("request", lambda sent: page.asked.append(sent.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(server.url)
    expect(page.get_by_role("button", name="Sample", exact=True)).to_be_visible()
    yield page
    assert page.errors == []
    # Nothing is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{request.node.name}.png", full_page=True)
    context.close()


def open_tab(page, name: str):
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():  # on a phone, behind three dots
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown").get_by_text(name).click()
    else:
        tab.click()
    return page.get_by_role("tabpanel").filter(visible=True)


def pick(panel, name: str, number: int = 1):
    """Picks an example; it is there when it can be taken out again, as the `number`th image of the panel."""
    panel.get_by_role("button", name=f"Example: {name}").nth(number - 1).click()
    expect(panel.get_by_label("Remove Image")).to_have_count(number)


def test_sampling_by_keyboard_moves_nothing(page):
    button = page.get_by_role("button", name="Sample", exact=True)
    expect(button).to_be_visible()
    page.get_by_label("Seed").fill("7")
    height = page.evaluate("document.documentElement.scrollHeight")
    page.get_by_label("Seed").press("Enter")
    expect(page.get_by_text("15 of 15 coupling layers undone.")).to_be_visible()
    image = page.get_by_role("img", name="Samples", exact=True)
    expect(image).to_be_visible()
    assert image.get_attribute("src").endswith(".png")
    assert abs(page.evaluate("document.documentElement.scrollHeight") - height) < 5
    with page.expect_download() as download:
        page.get_by_label("Download").first.click()
    assert download.value.suggested_filename.endswith(".png")


def test_scoring_an_upload_and_an_example(page):
    panel = open_tab(page, "Score")
    panel.locator("input[type=file]").first.set_input_files(SPACE / "examples" / "5_static.png")
    expect(panel.get_by_label("Remove Image")).to_be_visible()
    page.get_by_role("button", name="Score", exact=True).click()
    expect(panel.get_by_role("heading").first).to_contain_text("8.")  # noise takes all the bits there are
    panel.get_by_label("Remove Image").click()
    pick(panel, "coffee")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(panel.get_by_role("heading").first).not_to_contain_text("8.")
    expect(panel.get_by_text("Log-likelihood:")).to_be_visible()
    for name in ("What the model sees", "Among held-out images", "All bits", "Latent term", "Log-determinant term"):
        panel.get_by_text(name, exact=True).scroll_into_view_if_needed()  # pictures are loaded when they are near
        expect(panel.get_by_role("img", name=name, exact=True)).to_be_visible()


def test_what_is_no_picture_is_said_in_a_sentence(page, tmp_path):
    path, message = write_bad(tmp_path)["text.png"]
    panel = open_tab(page, "Score")
    panel.locator("input[type=file]").first.set_input_files(path)
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.get_by_text(message)).to_be_visible()


def test_reconstruction_is_exact(page):
    panel = open_tab(page, "Reconstruct and edit")
    pick(panel, "temple")
    panel.get_by_role("button", name="Encode and decode").click()
    expect(panel.get_by_text("all are equal to those of the original")).to_be_visible()


def test_interpolation_shows_every_step(page):
    panel = open_tab(page, "Interpolate")
    pick(panel, "coffee")
    pick(panel, "cat", number=2)
    panel.get_by_role("button", name="Interpolate", exact=True).click()
    expect(panel.locator(".grid-container button img")).to_have_count(8)


def test_no_other_server_is_asked(page, server):
    expect(page.get_by_role("button", name="Sample", exact=True)).to_be_visible()
    assert [url for url in page.asked if not url.startswith((server.url, "data:", "blob:"))] == []
