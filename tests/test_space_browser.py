"""The demo in a real browser, at the width of a desktop and of a phone, light and dark."""

import os
import re
import threading
import time

import pytest
from jet_demo import JetDemo
from pictures import write_bad
from space_server import SPACE, find_chromium, serve_here


if find_chromium() is None and os.environ.get("REQUIRE_BROWSER") != "1":
    pytest.skip("no Chromium on the PATH, nor in the variable CHROMIUM", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright


# Chromium has no sandbox as root. The other options keep it from contacting its vendor.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
OPTIONS += ["--disable-sync", "--no-first-run"]
SCREENS = {"desktop": ({"width": 1280, "height": 900}, "light"), "phone": ({"width": 390, "height": 844}, "dark")}
TIMEOUT = 60_000
CONTRAST = {"type": "rule", "values": ["color-contrast"]}
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


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


@pytest.fixture(params=SCREENS)
def page(browser, server, request):
    """Return a page that reports errors and requests to other servers when the test ends."""
    viewport, scheme = SCREENS[request.param]
    # Colors that change slowly would have a low contrast in between.
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(TIMEOUT)
    page, requests, errors = context.new_page(), [], []
    expect.set_options(timeout=TIMEOUT)
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.screen, page.requests = request.param, requests
    yield page
    assert errors == []
    assert [url for url in requests if not url.startswith((server.url, "data:", "blob:"))] == []
    context.close()


def test_a_first_visit(page, server, tmp_path, record_property):
    """Open, see, drag, upload, make a file, play, share: and every tab is accessible before and after its use."""
    page.goto(server.url)
    steps = {
        "Score": score,
        "Sample": sample,
        "Reconstruct and edit": edit,
        "Interpolate": interpolate,
        "File": make_a_file,
        "Odd one out": play,
    }
    for name, step in steps.items():
        panel = open_tab(page, name)
        look(page, f"{name}-before")
        step(page, panel, tmp_path)
        look(page, f"{name}-after")
    # Nothing of the first view had to be computed, and one image follows a slider quickly.
    record_property("demo", f"an edited image follows a slider after {seconds_to_follow(page):.2f} s ({page.screen})")


def test_an_address_opens_what_it_names_and_back_returns(page, server):
    page.goto(f"{server.url}/?tab=sample&model=jet-digits-8&seed=7&temperature=0.8&label=3&images=4")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    expect(panel.get_by_label("Seed")).to_have_value("7")
    samples = image_of(panel, "Samples")
    expect(samples).to_have_attribute("src", re.compile("seed7-t0.8-class-3"))
    # Until then, each step replaces the image and its button.
    expect(panel.get_by_text("12 of 12 coupling layers inverted.")).to_be_visible()
    with page.expect_download() as download:
        panel.get_by_label("Download").first.click()
    assert download.value.suggested_filename == "jet-digits-8-seed7-t0.8-class-3.png"
    panel.get_by_role("button", name="Another seed").click()
    expect(panel.get_by_label("Seed")).not_to_have_value("7")
    page.wait_for_function("new URLSearchParams(location.search).get('seed') !== '7'")
    seed = panel.get_by_label("Seed").input_value()
    expect(samples).to_have_attribute("src", re.compile(f"seed{seed}-t0.8-class-3"))
    # Whoever opens the address sees the same images.
    other = page.context.new_page()
    other.goto(page.url)
    shared = image_of(other.get_by_role("tabpanel").filter(visible=True), "Samples")
    expect(shared).to_have_attribute("src", samples.get_attribute("src"))
    other.close()
    open_tab(page, "File")
    assert "tab=file" in page.url
    page.go_back()
    expect(page.get_by_role("tab", name="Sample", exact=True)).to_have_attribute("aria-selected", "true")
    # A later address, which was written before another seed was chosen, does not change what the page shows.
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_label("Seed").fill("11")
    page.wait_for_function("new URLSearchParams(location.search).get('seed') === '11'")
    page.go_forward()
    page.wait_for_url(re.compile("tab=file.*seed=11"))
    page.go_back()
    # The arrow keys move between tabs.
    page.get_by_role("tab", name="Sample", exact=True).press("ArrowLeft")
    expect(page.get_by_role("tab", name="Score", exact=True)).to_have_attribute("aria-selected", "true")
    # An address that names nothing opens the first view.
    page.goto(f"{server.url}/?tab=cat&model=cat&seed=cat&temperature=&label=x")
    expect(page.get_by_role("tab", name="Score", exact=True)).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize("page", ["desktop"], indirect=True)
def test_no_older_result_stands_under_a_new_input(page, server, monkeypatch):
    """Visitors choose another image while a result is under way."""
    gates = [threading.Event() for _ in range(4)]
    started: list[threading.Event] = []

    def slow(name: str) -> None:
        function = getattr(JetDemo, name)

        def wait(*arguments):
            started.append(gates[len(started)])
            assert started[-1].wait(60)
            return function(*arguments)

        monkeypatch.setattr(JetDemo, name, wait)

    def wait_for(number: int) -> None:
        deadline = time.monotonic() + TIMEOUT / 1000
        while len(started) < number:
            assert time.monotonic() < deadline
            page.wait_for_timeout(20)

    for name in ("score", "between", "interpolate"):
        slow(name)
    page.goto(server.url)
    panel = open_tab(page, "Score")
    number = panel.get_by_role("heading", level=3)
    press(panel, "Noise draws", "ArrowRight")()
    wait_for(1)
    panel.get_by_role("button", name="Example: static").click()
    expect(number).to_have_count(0)
    gates[0].set()
    wait_for(2)  # the first result has arrived
    expect(number).to_have_count(0)
    expect(panel.get_by_role("img", name="Model input", exact=True)).to_have_count(0)
    gates[1].set()
    expect(number).to_contain_text("8.")
    # All results of an image disappear, before the first of them is computed again.
    panel = open_tab(page, "Interpolate")
    panel.get_by_role("button", name="Example: static").last.click()
    wait_for(3)
    for name in ("Image at this position", "Walk there and back"):
        expect(panel.get_by_role("img", name=name, exact=True)).to_have_count(0)
    for gate in gates:
        gate.set()
    for name in ("Image at this position", "Walk there and back"):
        expect(image_of(panel, name)).to_be_visible()


def look(page, name: str) -> None:
    """Check that the page fits the screen and is accessible in both themes, and take pictures of it on request."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
    scheme = SCREENS[page.screen][1]
    # Of all rules, only contrast depends on the theme.
    for theme, rules in (("dark" if scheme == "light" else "light", CONTRAST), (scheme, WCAG)):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(
            "dark => document.body.classList.contains('dark') === dark"
            " && document.getAnimations().every(animation => animation.playState !== 'running')",
            arg=theme == "dark",
        )
        options = {"runOnly": rules, "resultTypes": ["violations"], "preload": False}
        found = Axe().run(page, options=options).response["violations"]
        assert [(rule["id"], node["html"]) for rule in found for node in rule["nodes"]] == [], (name, theme)
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{folder}/{name.replace(' ', '-')}-{page.screen}-{theme}.png", full_page=True)


def open_tab(page, name: str):
    page.get_by_role("tab", name=name, exact=True).click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    expect(panel).to_have_count(1)
    return panel


def image_of(panel, name: str):
    """Return an output image, which is loaded when it is near."""
    panel.get_by_text(name, exact=True).first.scroll_into_view_if_needed()
    return panel.get_by_role("img", name=name, exact=True)


def source_after(page, panel, name: str, action, before: str | None = None) -> str:
    """Return the address of an image, which its content determines, after an action has changed it."""
    image = image_of(panel, name)
    before = before or image.get_attribute("src")
    action()
    expect(image).to_have_attribute("src", re.compile(rf"^(?!{re.escape(before)}$).+"))
    return image.get_attribute("src")


def press(panel, label: str, key: str):
    return lambda: panel.get_by_role("slider", name=label).press(key)


def score(page, panel, folder):
    for name in ("A photograph", "A smooth picture", "Static", "All bits", "Model input", "Among held-out images"):
        expect(image_of(panel, name)).to_be_visible()
    assert not any("queue/join" in url for url in page.requests)
    number = panel.get_by_role("heading", level=3)
    coffee = number.text_content()
    panel.get_by_label("Remove Image").click()
    expect(panel.get_by_text("Upload, paste or choose an image.")).to_be_visible()
    panel.locator("input[type=file]").first.set_input_files(SPACE / "examples" / "5_static.png")
    expect(number).to_contain_text("8.")  # static takes all bits
    panel.get_by_role("button", name="Example: coffee").click()
    expect(number).to_have_text(coffee)
    path, message = write_bad(folder)["text.png"]
    panel.get_by_label("Remove Image").click()
    panel.locator("input[type=file]").first.set_input_files(path)
    expect(page.get_by_text(message)).to_be_visible()
    # No older result stands under the refused picture.
    expect(panel.get_by_text("There is no result: the message says why.")).to_be_visible()
    expect(number).to_have_count(0)
    page.get_by_test_id("toast-close").first.click()


def sample(page, panel, folder):
    expect(image_of(panel, "Samples")).to_be_visible()
    status = panel.get_by_text("12 of 12 coupling layers inverted.")
    expect(status).to_be_visible()
    height = page.evaluate("document.documentElement.scrollHeight")
    source_after(page, panel, "Samples", press(panel, "Temperature", "ArrowLeft"))
    expect(status).to_be_visible()
    # Nothing moves when other images appear.
    assert abs(page.evaluate("document.documentElement.scrollHeight") - height) < 5
    panel.get_by_label("Seed").fill("7")
    expect(image_of(panel, "Samples")).to_have_attribute("src", re.compile("seed7-t0.95"))
    expect(status).to_be_visible()
    with page.expect_download() as download:
        panel.get_by_label("Download").first.click()
    assert download.value.suggested_filename == "jet-digits-8-seed7-t0.95.png"
    panel.get_by_label("Model").click()
    page.get_by_role("option", name="jet-photographs-32").click()
    expect(panel.get_by_text("15 of 15 coupling layers inverted.")).to_be_visible()
    expect(panel.get_by_label("Class")).to_be_hidden()


def edit(page, panel, folder):
    expect(panel.get_by_text("all are equal to those of the original")).to_be_visible()
    source_after(page, panel, "After the edit", press(panel, "Noise: share of new latents", "ArrowRight"))
    # Also on a phone, the picture is seen while the slider moves.
    expect(panel.get_by_role("slider", name="Noise: share of new latents")).to_be_in_viewport()
    expect(panel.get_by_role("img", name="After the edit", exact=True)).to_be_in_viewport()
    source_after(page, panel, "After the edit", press(panel, "Noise: share of new latents", "Home"))
    picture = image_of(panel, "Model input")
    source_after(page, panel, "After the edit", picture.click)
    expect(panel.get_by_role("slider", name="Patch with new latents")).not_to_have_value("0")
    panel.get_by_role("slider", name="Mix: share of the second image").press("ArrowRight")
    expect(page.get_by_text("`Second image` is missing")).to_be_visible()
    panel.get_by_role("slider", name="Mix: share of the second image").press("Home")
    page.get_by_test_id("toast-close").first.click()
    expect(panel.get_by_text("all are equal to those of the original")).to_be_visible()


def interpolate(page, panel, folder):
    source_after(page, panel, "Image at this position", press(panel, "Position between both images", "ArrowRight"))
    source_after(page, panel, "Walk there and back", press(panel, "Number of images, including both ends", "Home"))
    expect(panel.locator(".grid-container button img")).to_have_count(2)


def make_a_file(page, panel, folder):
    expect(panel.get_by_text("every byte was equal")).to_be_visible()
    size = panel.get_by_role("heading", name=re.compile("bytes for"))
    before = size.text_content()
    panel.get_by_role("button", name="Example: temple").click()
    expect(size).not_to_have_text(before)
    expect(panel.get_by_text("every byte was equal")).to_be_visible()
    with page.expect_download() as download:
        panel.get_by_role("button", name="Download picture.jet").click()
    assert download.value.suggested_filename == "picture.jet"
    download.value.save_as(folder / "picture.jet")
    panel.locator("input[type=file]").last.set_input_files(folder / "picture.jet")
    expect(panel.get_by_text("equal to those that were compressed")).to_be_visible()
    expect(image_of(panel, "Decompressed picture")).to_be_visible()


def play(page, panel, folder):
    for pair in range(1, 11):
        expect(panel.get_by_text(f"Pair {pair} of 10.")).to_be_visible()
        panel.locator(".jet-pair button").first.click()
        expect(panel.get_by_role("status").filter(has_text="takes fewer bits")).to_be_visible()
        page.keyboard.press("Enter")  # the button for the next pair has the focus
    expect(panel.get_by_text("of 10 pairs.")).to_be_visible()


def seconds_to_follow(page) -> float:
    panel = open_tab(page, "Reconstruct and edit")
    start = time.monotonic()
    source_after(page, panel, "After the edit", press(panel, "Noise: share of new latents", "End"))
    return time.monotonic() - start
