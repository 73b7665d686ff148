# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The cells of a table, and the paper's claims as comparisons of cells.

Each function takes the cells of a sweep. A claim about cells that the sweep leaves out has no contrasts. The text that
the claims were read from has lost some numbers; there, the table identifies the cells that a sentence refers to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


SINGLE_PATTERNS = ("rows", "columns", "checkerboard")
MIXED_RATIOS = ("1to1", "2to1", "3to1", "4to1", "5to1")


@dataclass(frozen=True)
class Cell:
    """
    One configuration of a table.

    Args:
        name: Name of the cell and of its folder.
        labels: Coordinates on the axes of the table.
        fields: Training arguments that the cell sets.
        paper: The paper's bits per dimension, if known.
        note: Remark on the paper's result.
    """

    name: str
    labels: Mapping[str, str | int]
    fields: dict
    paper: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Contrast:
    """A sum of the cells' bits per dimension, with a weight for each cell, that is claimed to be positive."""

    text: str
    weights: dict[str, float]


@dataclass(frozen=True)
class Claim:
    """
    An ordering of the paper. It holds if all of its contrasts are positive.

    Args:
        text: The claim in words.
        contrasts: Contrasts that it consists of, or a function that returns them, given the mean bits per dimension
            and the training FLOPs of the cells.
    """

    text: str
    contrasts: list[Contrast] | Callable[[dict[str, float], dict[str, float]], list[Contrast]]


def above(higher: str, lower: str) -> Contrast:
    """Claim that one cell has more bits per dimension than another."""
    return Contrast(f"{higher} above {lower}", {higher: 1.0, lower: -1.0})


def best_above(behind: list[str], ahead: list[str]) -> Callable:
    """Claim that the best cell of one kind is above the best one of another kind that takes no more compute."""

    def select(means: dict[str, float], flops: dict[str, float]) -> list[Contrast]:
        known = means.keys() & flops.keys()
        best = min((name for name in behind if name in known), key=means.__getitem__, default=None)
        rivals = [name for name in ahead if best and name in known and flops[name] <= flops[best]]
        return [above(best, min(rivals, key=means.__getitem__))] if best and rivals else []

    return select


def pairs(cells: list[Cell], label: str, higher: str | int, lower: str | int) -> list[Contrast]:
    """Claim that cells with one value of a label are above those with another, all other labels being equal."""
    names = {frozenset(cell.labels.items()): cell.name for cell in cells}
    twins = {cell.name: frozenset({**cell.labels, label: lower}.items()) for cell in cells}
    above_twin = [cell.name for cell in cells if cell.labels[label] == higher and twins[cell.name] in names]
    return [above(name, names[twins[name]]) for name in above_twin]


def coupling_layouts(cells: list[Cell]) -> list[Claim]:
    """Return the claims of section 3.2.1."""
    names = [cell.name for cell in cells]
    mixed = [cell.name for cell in cells if cell.labels["ratio"] in MIXED_RATIOS and cell.labels["pattern"] == "mix"]
    spatial = [cell.name for cell in cells if cell.labels["ratio"] == "all_spatial"]
    return [
        Claim(
            "Channel couplings with a mix of spatial ones are better than either kind alone.",
            [above(alone, name) for name in mixed for alone in ("all_spatial-mix", "all_channel") if alone in names],
        ),
        Claim(
            "Four channel couplings per spatial coupling, with the mix of patterns, are the best layout.",
            [above(name, "4to1-mix") for name in names if "4to1-mix" in names and name != "4to1-mix"],
        ),
        Claim(
            "Alternating the spatial patterns is better than any single pattern.",
            [contrast for pattern in SINGLE_PATTERNS for contrast in pairs(cells, "pattern", pattern, "mix")],
        ),
        Claim(
            "Spatial couplings alone are worse than any layout with channel couplings and the same pattern.",
            [contrast for ratio in MIXED_RATIOS for contrast in pairs(cells, "ratio", "all_spatial", ratio)],
        ),
        Claim(
            "Channel couplings alone are competitive: better than spatial ones alone.",
            [above(name, "all_channel") for name in spatial if "all_channel" in names],
        ),
    ]


def masking_vs_pairing(cells: list[Cell]) -> list[Claim]:
    """Return the claims of section 3.2.4. Masking and pairing tie at 3:1 in the paper, so the ratios are averaged."""
    gaps = {contrast.text.split("-")[0]: contrast for contrast in pairs(cells, "mode", "masking", "pairing")}
    spatial = [gaps.pop("all_spatial")] if "all_spatial" in gaps else []
    average = {name: weight / len(gaps) for gap in gaps.values() for name, weight in gap.weights.items()}
    wider = [
        Contrast(
            f"masking minus pairing: all_spatial above {ratio}",
            wide.weights | {name: -weight for name, weight in gap.weights.items()},
        )
        for wide in spatial
        for ratio, gap in gaps.items()
    ]
    return [
        Claim("Pairing is better than masking with spatial couplings alone.", spatial),
        Claim(
            "Pairing is slightly better than masking with channel couplings in between, on average over the ratios.",
            [Contrast("masking above pairing, on average", average)] if average else [],
        ),
        Claim("The difference is smaller with channel couplings in between.", wider),
    ]


def glow_parts(cells: list[Cell]) -> list[Claim]:
    """Return the claim of section 3.2.5."""
    names = [cell.name for cell in cells]
    contrasts = [above(name, "none") for name in names if "none" in names and name != "none"]
    return [Claim("Neither of Glow's parts is the best choice.", contrasts)]


def cnn(cells: list[Cell]) -> list[Claim]:
    """
    Return the claims of section 3.2.3, in which the CNNs lag "significantly behind".

    The claim that every CNN is worse than the ViTs of its own compute is not among them: by the FLOPs that are counted
    here, it does not hold for the small CNNs of the paper.
    """
    vit, cnn = ([cell.name for cell in cells if cell.labels["backbone"] == kind] for kind in ("vit", "cnn"))
    return [
        Claim("The best CNN is worse than the best ViT that takes no more compute.", best_above(cnn, vit)),
        Claim(
            "With the same coupling layers, depth and width, ViTs are better than CNNs.",
            pairs(cells, "backbone", "cnn", "vit"),
        ),
    ]


def dequantization(cells: list[Cell]) -> list[Claim]:
    """Return the claim of section 3.2.6, which says only that the flow is not significantly better."""
    return [
        Claim(
            "A dequantization flow is no better than the same number of additional coupling layers. (The paper claims "
            "only that it is not significantly better, with which a result within the error agrees.)",
            pairs(cells, "dequantization", "flow", "uniform"),
        )
    ]


def shallow(cells: list[Cell]) -> Claim:
    """Return the claim about conditioners of depth 1 in section 3.2.2."""
    return Claim("Conditioners of depth 1 are worse than those of depth 2.", pairs(cells, "depth", 1, 2))


def imagenet1k(cells: list[Cell]) -> list[Claim]:
    """Return the claims of sections 3.1 and 3.2.2 about ImageNet-1k."""
    layers, width = (max(cell.labels[key] for cell in cells) for key in ("layers", "width"))
    largest = [cell for cell in cells if (cell.labels["layers"], cell.labels["width"]) == (layers, width)]
    depths = sorted({cell.labels["depth"] for cell in largest} - {1, 2})
    return [
        shallow(cells),
        Claim(
            "Large models overfit: with the most coupling layers and the largest width, depths above 2 are worse.",
            [contrast for depth in depths for contrast in pairs(largest, "depth", depth, 2)],
        ),
    ]


def imagenet21k(cells: list[Cell]) -> list[Claim]:
    """Return the claims of sections 3.1 and 3.2.2 about ImageNet-21k."""
    sizes = {key: sorted({cell.labels[key] for cell in cells}) for key in ("layers", "depth", "width")}
    names = {(cell.labels["layers"], cell.labels["depth"], cell.labels["width"]): cell.name for cell in cells}
    larger = [
        Claim(
            f"Larger is better: the largest {key} against the smallest.",
            pairs(cells, key, values[0], values[-1]) if len(values) > 1 else [],
        )
        for key, values in sizes.items()
    ]
    deeper = [
        above(names[4 * layers, 1, width], name)
        for (layers, depth, width), name in names.items()
        if depth == 4 and (4 * layers, 1, width) in names
    ]
    text = "Depth 4 is better than four times as many coupling layers of depth 1, at similar compute."
    return [shallow(cells), *larger, Claim(text, deeper)]
