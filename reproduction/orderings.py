# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
What the paper claims of each table, for the cells that a sweep has.

Each function takes cells (see [`Cell`]); a claim about cells that are left out has no parts, and is "not run". The
text that these were read from has lost some numbers; there, the table's figures say which cells a sentence is about.
"""

from .claims import Claim, Contrast, FrontClaim, above


def _find(cells: list, **labels: str | int) -> list[str]:
    """Names of the cells with these labels."""
    return [cell.name for cell in cells if all(cell.labels[key] == value for key, value in labels.items())]


def _pairs(cells: list, higher: dict, lower: dict) -> list[Contrast]:
    """`higher` above `lower`, for cells that are alike in all other labels."""
    found = []
    for cell in cells:
        if all(cell.labels[key] == value for key, value in higher.items()):
            found += [above(cell.name, other) for other in _find(cells, **(cell.labels | lower))]
    return found


def _claims(*claims: tuple[str, list[Contrast]]) -> list[Claim]:
    return [Claim(text, tuple(parts)) for text, parts in claims]


def coupling_layouts(cells: list) -> list[Claim]:
    """Section 3.2.1."""
    names = {cell.name for cell in cells}
    mixed = [cell for cell in cells if cell.labels["ratio"].endswith("to1") and cell.labels["pattern"] == "mix"]
    alone = [name for name in ("all_spatial-mix", "all_channel") if name in names]
    best = [name for name in ("4to1-mix",) if name in names]
    singles = [cell for cell in cells if cell.labels["pattern"] in ("rows", "columns", "checkerboard")]
    spatial = [cell for cell in cells if cell.labels["ratio"] == "all_spatial"]
    return _claims(
        (
            "Channel couplings with a mix of spatial ones are better than either kind alone.",
            [above(other, cell.name) for cell in mixed for other in alone],
        ),
        (
            "Four channel couplings to a spatial one of the mix are the best of all layouts.",
            [above(cell.name, name) for name in best for cell in cells if cell.name != name],
        ),
        (
            "Alternating the spatial patterns is better than any single pattern.",
            [
                above(cell.name, other)
                for cell in singles
                for other in _find(cells, ratio=cell.labels["ratio"], pattern="mix")
            ],
        ),
        (
            "Spatial couplings alone are worse than any layout with channel couplings and the same pattern.",
            [
                above(cell.name, other.name)
                for cell in spatial
                for other in cells
                if other.labels["ratio"].endswith("to1") and other.labels["pattern"] == cell.labels["pattern"]
            ],
        ),
        (
            "Channel couplings alone are competitive: better than spatial ones alone.",
            [above(cell.name, other) for cell in spatial for other in _find(cells, ratio="all_channel")],
        ),
    )


def masking_vs_pairing(cells: list) -> list[Claim]:
    """Section 3.2.4. The two tie at 3:1 in the paper's table, so ratios with channel couplings are averaged."""
    names = {(cell.labels["ratio"], cell.labels["mode"]): cell.name for cell in cells}
    both = [ratio for ratio, mode in names if mode == "masking" and (ratio, "pairing") in names]

    def difference(ratio: str, weight: float) -> tuple[tuple[str, float], ...]:
        return (names[ratio, "masking"], weight), (names[ratio, "pairing"], -weight)

    mixed = [ratio for ratio in both if ratio != "all_spatial"]
    average = sum((difference(ratio, 1 / len(mixed)) for ratio in mixed), ())
    spatial = (
        [above(*(names["all_spatial", mode] for mode in ("masking", "pairing")))] if "all_spatial" in both else []
    )
    return _claims(
        ("Pairing is better than masking with spatial couplings alone.", spatial),
        (
            "Pairing is slightly better than masking with channel couplings in between, on average over the ratios.",
            [Contrast("masking above pairing, on average", average)] if mixed else [],
        ),
        (
            "The difference is smaller with channel couplings in between.",
            [
                Contrast(
                    f"masking less pairing, all_spatial above {ratio}",
                    difference("all_spatial", 1.0) + difference(ratio, -1.0),
                )
                for ratio in mixed
                if spatial
            ],
        ),
    )


def glow_parts(cells: list) -> list[Claim]:
    """Section 3.2.5."""
    names = [cell.name for cell in cells]
    parts = [above(name, "none") for name in names if name != "none"] if "none" in names else []
    return _claims(("Neither of Glow's parts is the best choice.", parts))


def cnn(cells: list) -> list[Claim | FrontClaim]:
    """
    Section 3.2.3, "lags significantly behind". That every CNN is behind the ViTs at its own compute is not among
    these: with operations as they are counted here, the paper's own figures of small CNNs are ahead.
    """
    kinds = (tuple(_find(cells, backbone=backbone)) for backbone in ("vit", "cnn"))
    return [
        FrontClaim("The best CNN is behind the best ViT that takes no more compute.", *kinds),
        *_claims(
            (
                "With the same coupling layers, depth and width, ViTs are better than CNNs.",
                _pairs(cells, {"backbone": "cnn"}, {"backbone": "vit"}),
            )
        ),
    ]


def dequantization(cells: list) -> list[Claim]:
    """Section 3.2.6, which claims no more than that the flow is not significantly better."""
    parts = _pairs(cells, {"dequantization": "flow"}, {"dequantization": "uniform"})
    return _claims(
        (
            "A dequantisation flow is no better than as many coupling layers more (no more is claimed than that it is "
            "not significantly better, which a figure within the error agrees with).",
            parts,
        )
    )


def _shallow(cells: list) -> tuple[str, list[Contrast]]:
    return "Conditioners of depth 1 are worse than those of depth 2.", _pairs(cells, {"depth": 1}, {"depth": 2})


def imagenet1k(cells: list) -> list[Claim]:
    """Sections 3.1 and 3.2.2."""
    layers, width = (max(cell.labels[key] for cell in cells) for key in ("layers", "width"))
    largest = [cell for cell in cells if cell.labels["layers"] == layers and cell.labels["width"] == width]
    deep = [cell for cell in largest if cell.labels["depth"] > 2]
    return _claims(
        _shallow(cells),
        (
            "Large models overfit: with the most coupling layers and the largest width, depths beyond 2 are worse.",
            [above(cell.name, name) for cell in deep for name in _find(largest, depth=2)],
        ),
    )


def imagenet21k(cells: list) -> list[Claim]:
    """Sections 3.1 and 3.2.2."""
    claims = [_shallow(cells)]
    for key in ("layers", "depth", "width"):
        values = sorted({cell.labels[key] for cell in cells})
        parts = _pairs(cells, {key: values[0]}, {key: values[-1]}) if len(values) > 1 else []
        claims.append((f"Larger is better: the largest {key} against the smallest.", parts))
    parts = [
        above(name, cell.name)
        for cell in cells
        if cell.labels["depth"] == 4
        for name in _find(cells, layers=4 * cell.labels["layers"], depth=1, width=cell.labels["width"])
    ]
    claims.append(("Depth 4 is better than four times the coupling layers of depth 1, at like compute.", parts))
    return _claims(*claims)
