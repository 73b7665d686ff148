"""Facts that the documentation states about the model and about the tests."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jet_hf.model.configuration_jet import SPATIAL_COUPLINGS
from jet_hf.model.flow_jet import channel_permutation, spatial_permutation


TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[str]]:
    """Return the halves, "first" or "second", of the cells of each group, row by row."""
    groups = ElementTree.parse(DOCS / "concepts" / "splits.svg").getroot().iter("{http://www.w3.org/2000/svg}g")
    return {group.get("id", ""): [cell.get("class", "") for cell in group] for group in groups}


@pytest.mark.parametrize("name", [*SPATIAL_COUPLINGS, "channels-0", "channels-1", "channels-2"])
def test_a_drawn_split_is_that_of_the_model(drawn, name):
    is_channels = name.startswith("channels")
    order = channel_permutation(0, 1, 12) if is_channels else spatial_permutation(name, 4, 4)
    first = set(order[: len(order) // 2].tolist())
    assert drawn[name] == ["first" if place in first else "second" for place in range(len(order))]


@pytest.mark.parametrize("page", ["verified.md", "concepts/exactness.md", "concepts/coupling.md"])
def test_the_tests_that_a_page_names_exist(page):
    names = set(re.findall(r"(?:xla/)?test_\w+\.py", (DOCS / page).read_text()))
    assert names and not [name for name in names if not (TESTS / name).exists()]
