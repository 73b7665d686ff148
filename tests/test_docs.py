"""Every code block of the documentation is executed: pages from top to bottom, and the examples of docstrings."""

import importlib
import os
from contextlib import chdir
from unittest import mock

import pytest
import torch
from conftest import ROOT
from doc_blocks import MARK, parse_docstrings, parse_page, reason_before
from doc_workplace import copy_workplace, write_workplace
from huggingface_hub import constants, hf_api


# Its test looks into what its blocks compute.
RUN_BY_TEST_INTEGRATIONS = "docs/guides/integrations.md"
PAGES = ["README.md", "CONTRIBUTING.md", "recipes/README.md"]
PAGES += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md"))]
MODULES = [path for path in sorted((ROOT / "src").rglob("*.py")) if "```python" in path.read_text()]


@pytest.fixture(scope="module")
def workplace(running_hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "workplace"
    variables = running_hub.environment("author") | {"ACCELERATE_USE_CPU": "true"}
    with mock.patch.dict(os.environ, variables):
        read_settings_of_hub()
        write_workplace(folder)
        yield folder
    read_settings_of_hub()


def read_settings_of_hub():
    """Let the client of the Hub, which reads the environment when it is imported, read it again."""
    importlib.reload(constants)
    hf_api.api.endpoint = constants.ENDPOINT


@pytest.mark.parametrize("page", [page for page in PAGES if page != RUN_BY_TEST_INTEGRATIONS])
def test_the_blocks_of_a_page_run(page, workplace, tmp_path, subtests):
    document = parse_page(ROOT / page)
    copy_workplace(workplace, tmp_path / "page")
    torch.manual_seed(0)
    with chdir(tmp_path / "page"):
        for example in document:
            with subtests.test(line=example.line):
                example.evaluate()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_examples_of_docstrings_run(path, subtests):
    for example in parse_docstrings(path):
        with subtests.test(line=example.line):
            example.evaluate()


@pytest.mark.parametrize("page", PAGES)
def test_a_mark_gives_the_reason_for_which_the_block_after_it_is_not_run(page):
    text = (ROOT / page).read_text()
    for mark in MARK.finditer(text):
        assert mark[1].startswith(": ") and reason_before(text, mark.end() + 1), mark[0]
        assert text[mark.end() :].lstrip("\n ").startswith("```"), mark[0]
