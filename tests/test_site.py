"""The site: every public name and every command is on it, nothing of it comes from elsewhere, and mistakes fail."""

import json
import os
import re
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from urllib.parse import urlsplit

import griffe
import pytest
from conftest import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from pymdownx.snippets import SnippetMissingError
from space_server import find_chromium

from jet_hf.cli import COMMANDS


PARTS = ("anomaly", "codec", "data", "hub", "importers", "prior", "training")
MODULES = ["jet_hf", *(f"jet_hf.{name}" for name in PARTS)]


def build_site(folder, **options) -> None:
    """Build the site as `make docs` does; `options` replace those of mkdocs.yml."""
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder), **options)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site, in which a warning is an error, with the addresses that a publishing workflow sets."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SITE_URL", "https://pages.invalid/jet/")
        patch.setenv("REPO_URL", "https://code.invalid/jet")
        build_site(folder)
    return folder


@pytest.fixture(scope="module")
def index(site):
    """Return the addresses that the search knows."""
    return {entry["location"] for entry in json.loads((site / "search" / "search_index.json").read_text())["docs"]}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference_and_in_the_index_of_the_search(index, module):
    anchors = {address.partition("#")[2] for address in index if address.startswith("reference/")}
    missing = {f"{module}.{name}" for name in import_module(module).__all__} - anchors
    # The page of a constant would be its value.
    assert [name for name in missing if not name.rpartition(".")[2].isupper()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_is_in_the_reference_and_in_the_index_of_the_search(site, index, name):
    assert f"reference/commands/#jet-hf-{name}" in index
    page = (site / "reference" / "commands" / "index.html").read_text()
    section = page.partition(f'<h2 id="jet-hf-{name}">')[2].partition("<h2")[0]
    for field in COMMANDS[name].__dataclass_fields__:
        assert re.search(rf"<li><code>(--)?{field}\b", section), field


class Loads(HTMLParser):
    """Collect the addresses of what a page or a style sheet loads."""

    def __init__(self, text: str):
        super().__init__()
        self.found = re.findall(r"(?:@import |url\()\s*[\"']?([^\"')]+)", text)
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get("rel") in ("canonical", "next", "prev"):
            return
        names = ("src", "srcset", "poster", "data") + (("href",) if tag in ("link", "image", "use") else ())
        self.found += [attributes[name] for name in names if name in attributes]


def test_pages_load_only_files_of_the_site(site):
    pages = [path for kind in ("html", "css") for path in site.rglob(f"*.{kind}")]
    assert len(pages) > 40
    for page in pages:
        for address in Loads(page.read_text()).found:
            if not address.startswith("data:"):
                path = urlsplit(address).path
                # The page of errors is served at any address, so that its own addresses start at the root.
                file = site / path.removeprefix("/jet/") if page.name == "404.html" else page.parent / path
                assert not re.match(r"(?i)(\w+:)?//", address) and file.is_file(), (page, address)


def test_the_search_finds_a_name_without_another_host(site):
    if find_chromium() is None and os.environ.get("REQUIRE_BROWSER") != "1":
        pytest.skip("no Chromium on the PATH, nor in the variable CHROMIUM")
    from playwright.sync_api import sync_playwright
    from test_space_browser import OPTIONS, TIMEOUT

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home, requests, errors = f"http://127.0.0.1:{server.server_port}/", [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=OPTIONS)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(TIMEOUT)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(home)
        page.locator("label.md-header__button[for=__search]").click()
        # The page listens to keys, and to the focus that the click above gave, before anything is written.
        page.locator("input.md-search__input").press_sequentially("sample_posterior")
        page.locator("a.md-search-result__link[href*='#jet_hf.prior.JetPrior.sample_posterior']").first.click()
        page.wait_for_url("**/reference/prior/**")
        # Tables and signatures must not make a page wider than a phone.
        for place in ("reference/prior/", "performance/", "reference/commands/", "contributing/"):
            page.goto(home + place)
            assert page.evaluate("document.documentElement.scrollWidth") == 390, place
        browser.close()
    server.shutdown()
    server.server_close()
    assert errors == [] and [url for url in requests if not url.startswith((home, "data:", "blob:"))] == []


@pytest.mark.parametrize(
    "mistake",
    [
        "[a page](missing.md)",
        "[a section](index.md#missing)",
        "![a picture](missing.png)",
        "[a file that is not on the site](../recipes/README.md)",
        "[a name][jet_hf.missing]",
        "::: jet_hf.missing",
        '--8<-- "missing.md"',
    ],
)
def test_a_mistake_fails_the_build(tmp_path, mistake):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# Start\n\n{mistake}\n")
    with pytest.raises((Abort, SnippetMissingError)):
        build_site(tmp_path / "site", docs_dir=str(docs), nav=[{"Start": "index.md"}])


MODULE = '''
"""A module."""

class First:
    """
    See [`Second.run`], [`run`] and [`missing`].

    Args:
        size (`int`, *optional*, defaults to 4): Its size.
        scale (`float` or `int`, *optional*): Its scale.
        shape (`Tensor` of shape `(4,)`): Its shape.
        name: Its name.
    """

    name: str

class Second(First):
    """Another one."""

    def run(self):
        """Return [`First`]."""
'''


def test_docstrings_in_the_style_of_transformers(tmp_path, caplog):
    (tmp_path / "stand_in.py").write_text(MODULE)
    extensions = griffe.load_extensions("dataclasses", str(ROOT / "docs" / "griffe_extension.py"))
    options = {"warn_unknown_params": False, "warn_missing_types": False}
    module = griffe.load(
        "stand_in",
        search_paths=[tmp_path],
        extensions=extensions,
        docstring_parser="google",
        docstring_options=options,
    )
    text, section = module["First"].docstring.parsed
    links = re.findall(r'<autoref optional identifier="([\w.]+)"><code>([\w.]+)</code></autoref>', text.value)
    assert links == [("stand_in.Second.run", "Second.run"), ("stand_in.Second.run", "run")]
    assert "`missing`" in text.value and "`missing`, which is no name of the package" in caplog.text
    read = {item.name: (str(item.annotation), item.default, item.description) for item in section.value}
    assert read == {
        "size": ("int", "4", "Its size."),
        "scale": ("float | int", "None", "Its scale."),
        "shape": ("Tensor of shape (4,)", None, "Its shape."),
        "name": ("str", None, "Its name."),
    }
    assert 'identifier="stand_in.First"' in module["Second.run"].docstring.value
