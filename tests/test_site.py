"""The site: every public name and every command is on it, nothing of it comes from elsewhere, and mistakes fail."""

import http.server
import json
import logging
import os
import re
import threading
from functools import partial
from html.parser import HTMLParser
from importlib import import_module

import griffe
import pytest
from conftest import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from space_server import find_chromium

from jet_hf.cli import COMMANDS


MODULES = ["jet_hf", *(f"jet_hf.{name}" for name in ("anomaly", "codec", "data", "hub", "importers", "prior", "training"))]


def build_site(folder, **options) -> None:
    """Build the site as `make docs` does; `options` replace those of mkdocs.yml."""
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder), **options)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build_site(folder)
    return folder


@pytest.fixture(scope="module")
def index(site):
    """Return the places that the search knows."""
    return {entry["location"] for entry in json.loads((site / "search" / "search_index.json").read_text())["docs"]}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference_and_found_by_the_search(index, module):
    anchors = {location.partition("#")[2] for location in index if location.startswith("reference/")}
    missing = {f"{module}.{name}" for name in import_module(module).__all__} - anchors
    assert missing <= {"jet_hf.training.EXPECTED_ERRORS"}  # a tuple for the command


def test_the_help_of_every_command_is_in_the_reference(site, index):
    text = (site / "reference" / "commands" / "index.html").read_text()
    for name, arguments in COMMANDS.items():
        assert f"reference/commands/#jet-hf-{name}" in index
        assert all(f"--{field}" in text or field in text for field in arguments.__dataclass_fields__), name


class Loads(HTMLParser):
    """Collect the addresses of what a page loads."""

    def __init__(self, page: str):
        super().__init__()
        self.found = re.findall(r"(?:@import|url\()\s*[\"']?([^\"')]+)", page)
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "srcset", "poster", "data")]
        self.found += [value for name, value in attributes if name == "href" and tag in ("link", "image", "use")]


def test_no_page_loads_anything_from_another_host(site):
    pages = [path for kind in ("html", "css") for path in site.rglob(f"*.{kind}")]
    assert len(pages) > 30
    for path in pages:
        for address in Loads(path.read_text()).found:
            assert not re.match(r"(?i)(https?:)?//", address), (path, address)
