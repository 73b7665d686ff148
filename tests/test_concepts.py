"""The drawing of the splits in the documentation shows the model's own permutations."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from jet_hf.model.configuration_jet import SPATIAL_COUPLINGS
from jet_hf.model.flow_jet import channel_permutation, spatial_permutation


DRAWING = Path(__file__).parent.parent / "docs" / "concepts" / "splits.svg"


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[str]]:
    """Return the halves, "first" or "second", of the cells of each group, row by row."""
    groups = ElementTree.parse(DRAWING).getroot().iter("{http://www.w3.org/2000/svg}g")
    return {group.get("id", ""): [cell.get("class", "") for cell in group] for group in groups}


@pytest.mark.parametrize("name", [*SPATIAL_COUPLINGS, "channels-0", "channels-1", "channels-2"])
def test_a_drawn_split_is_that_of_the_model(drawn, name):
    is_channels = name.startswith("channels")
    order = channel_permutation(0, 0, 12) if is_channels else spatial_permutation(name, 4, 4)
    first = set(order[: len(order) // 2].tolist())
    assert drawn[name] == ["first" if place in first else "second" for place in range(len(order))]
