# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The paper's tables as grids of cells: the fields of the recipe that each cell sets, and the paper's result.

The ablations of section 3.2 keep the sizes of the recipe and change one design choice. The grids over sizes and the
ablation of the dequantization flow set the sizes themselves. The `axes` of a table hold its values; other values can
replace them, for example for a miniature.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from . import claims, paper
from .cells import Cell


HEAD_WIDTH = 64  # in all models of appendix A.1
SPATIAL_COUPLINGS = {
    "rows": ["hstripes", "hstripes-inv"],
    "columns": ["vstripes", "vstripes-inv"],
    "checkerboard": ["checkerboard", "checkerboard-inv"],
    "mix": ["checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv"],
}
ABLATIONS = "ImageNet-1k at 64 x 64, 200 epochs, 32 coupling layers of depth 2 and width 512 (section 3.2)"


@dataclass(frozen=True)
class Table:
    """
    A table of the paper.

    Args:
        title: Heading of the report.
        setting: Data, length and sizes behind the paper's results.
        axes: The paper's values on each axis.
        build: Makes the cells from values on the axes.
        claims: Makes the paper's claims about the cells.
        reference: Name of the cell that the others are compared with.
    """

    title: str
    setting: str
    axes: dict[str, tuple]
    build: Callable[..., list[Cell]]
    claims: Callable[[list[Cell]], Sequence[claims.Claim | claims.FrontClaim]]
    reference: str | None = None

    def cells(self, axes: dict[str, list[str]] | None = None) -> list[Cell]:
        """
        Return the cells of the table.

        Args:
            axes: Values, as text, that replace those of some axes: other sizes, or a selection of the paper's choices.

        Raises:
            ValueError: for an unknown axis, or a value that the axis does not take.
        """
        values = dict(self.axes)
        for name, texts in (axes or {}).items():
            if name not in values:
                raise ValueError(f"`axis` must name one of {', '.join(values)}, got {name!r}.")
            values[name] = tuple(parse_axis_value(name, text, self.axes[name]) for text in texts)
        return self.build(**values)


def parse_axis_value(name: str, text: str, known: tuple) -> str | int:
    """Return a value of an axis: one of the paper's choices, or any positive integer for a size."""
    if isinstance(known[0], str):
        if text not in known:
            raise ValueError(f"`axis` {name} must be one of {', '.join(known)}, got {text!r}.")
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"`axis` {name} must be a positive integer, got {text!r}.")
    return int(text)


def layout_fields(ratio: str, pattern: str) -> dict:
    """Return the fields of a coupling layout, given a ratio of `paper.RATIOS` and the pattern of the spatial ones."""
    num_channel_couplings = 0 if ratio == "all_spatial" else int(ratio.removesuffix("to1"))
    return {
        "coupling_kinds": ["channels"] * num_channel_couplings + ["spatial"],
        "spatial_couplings": SPATIAL_COUPLINGS[pattern],
    }


def coupling_layout_cells(ratio: tuple[str, ...], pattern: tuple[str, ...]) -> list[Cell]:
    """Return a cell for each ratio and pattern, and one of channel couplings alone."""
    cells = [
        Cell(
            f"{kind}-{spatial}",
            {"ratio": kind, "pattern": spatial},
            layout_fields(kind, spatial),
            paper.COUPLING_LAYOUTS[kind][paper.PATTERNS.index(spatial)],
        )
        for kind, spatial in itertools.product(ratio, pattern)
        if kind != "all_channel"
    ]
    if "all_channel" in ratio:
        labels = {"ratio": "all_channel", "pattern": "none"}
        cells.append(Cell("all_channel", labels, {"coupling_kinds": ["channels"]}, paper.ALL_CHANNEL))
    return cells


def masking_vs_pairing_cells(ratio: tuple[str, ...], mode: tuple[str, ...]) -> list[Cell]:
    """Return a cell for each ratio, with the mix of spatial patterns, and each coupling mode."""
    return [
        Cell(
            f"{kind}-{choice}",
            {"ratio": kind, "mode": choice},
            layout_fields(kind, "mix") | {"coupling_mode": choice},
            paper.MASKING_VS_PAIRING[kind][choice == "pairing"],
        )
        for kind, choice in itertools.product(ratio, mode)
    ]


def glow_part_cells(parts: tuple[str, ...]) -> list[Cell]:
    """Return a cell for each choice of Glow's parts."""
    unclear = "the paper's result is 3.727 or 3.741; the text of the table has lost which"
    notes = {
        "actnorm": f"{unclear}; training was unstable, and this is the best of several learning rates and seeds",
        "invertible_dense": unclear,
    }
    return [
        Cell(
            choice,
            {"parts": choice},
            {
                "use_actnorm": choice in ("actnorm", "both"),
                "use_invertible_dense": choice in ("invertible_dense", "both"),
            },
            paper.GLOW_PARTS[choice],
            notes.get(choice, ""),
        )
        for choice in parts
    ]


def dequantization_cells(
    num_coupling_layers: tuple[int, ...], dequantization_num_coupling_layers: tuple[int, ...]
) -> list[Cell]:
    """Return pairs of cells with the same number of coupling layers: some in a dequantization flow, or none."""
    cells = {}
    for layers, extra in itertools.product(num_coupling_layers, dequantization_num_coupling_layers):
        total = layers + extra
        flow, uniform = f"flow-{layers}-and-{extra}", f"uniform-{total}"
        cells[flow] = Cell(
            flow,
            {"dequantization": "flow", "total_layers": total},
            {
                "num_coupling_layers": layers,
                "dequantization": "flow",
                "dequantization_num_coupling_layers": extra,
            },
        )
        cells[uniform] = Cell(
            uniform,
            {"dequantization": "uniform", "total_layers": total},
            {"num_coupling_layers": total, "dequantization": "uniform"},
        )
    return list(cells.values())


def size_cells(
    results: Mapping[tuple[int, int, int], float | None],
    num_coupling_layers: tuple[int, ...],
    num_hidden_layers: tuple[int, ...],
    hidden_size: tuple[int, ...],
    backbone: str = "vit",
    prefix: str = "",
) -> list[Cell]:
    """Return the cells of a grid over sizes; the number of attention heads follows the width."""
    return [
        Cell(
            f"{prefix}layers{layers}-depth{depth}-width{width}",
            {"backbone": backbone, "layers": layers, "depth": depth, "width": width},
            {
                "num_coupling_layers": layers,
                "num_hidden_layers": depth,
                "hidden_size": width,
                "num_attention_heads": max(1, width // HEAD_WIDTH),
                "backbone": backbone,
            },
            results.get((layers, depth, width)),
        )
        for layers, depth, width in itertools.product(num_coupling_layers, num_hidden_layers, hidden_size)
    ]


def cnn_cells(
    num_coupling_layers: tuple[int, ...],
    cnn_depth: tuple[int, ...],
    cnn_width: tuple[int, ...],
    vit_depth: tuple[int, ...],
    vit_width: tuple[int, ...],
) -> list[Cell]:
    """Return the grids of the CNNs and of the ViTs, without the widest CNN of 64 layers, which the paper left out."""
    cnn_results = paper.by_sizes(paper.CNN, paper.CNN_COLUMNS)
    vit_columns = itertools.product(paper.GRID_1K_LAYERS, paper.GRID_1K_WIDTHS)
    vit_results = paper.by_sizes(paper.IMAGENET1K_64, vit_columns)
    cnn = size_cells(cnn_results, num_coupling_layers, cnn_depth, cnn_width, "cnn", "cnn-")
    vit = size_cells(vit_results, num_coupling_layers, vit_depth, vit_width, "vit", "vit-")
    return [cell for cell in cnn if (cell.labels["layers"], cell.labels["width"]) != (64, 1536)] + vit


def size_table(
    data: str, grid: Mapping, epochs: int, layers: tuple[int, ...], widths: tuple[int, ...], orderings: Callable
) -> Table:
    """Return a table of appendix A.2, over coupling layers, depth and width."""
    results = paper.by_sizes(grid, itertools.product(layers, widths))
    return Table(
        f"{data}: coupling layers, depth and width of the ViTs",
        f"{data}, {epochs} epochs (appendix A.2, to two decimals)",
        {"num_coupling_layers": layers, "num_hidden_layers": paper.VIT_DEPTHS, "hidden_size": widths},
        partial(size_cells, results),
        orderings,
    )


GRID_1K = 200, paper.GRID_1K_LAYERS, paper.GRID_1K_WIDTHS, claims.imagenet1k
GRID_21K = 50, paper.GRID_21K_LAYERS, paper.GRID_21K_WIDTHS, claims.imagenet21k

TABLES = {
    "coupling_layouts": Table(
        "Channel and spatial couplings",
        ABLATIONS,
        {"ratio": (*paper.RATIOS, "all_channel"), "pattern": paper.PATTERNS},
        coupling_layout_cells,
        claims.coupling_layouts,
        reference="4to1-mix",
    ),
    "masking_vs_pairing": Table(
        "Masking and pairing",
        ABLATIONS,
        {"ratio": paper.RATIOS, "mode": ("masking", "pairing")},
        masking_vs_pairing_cells,
        claims.masking_vs_pairing,
        reference="4to1-pairing",
    ),
    "glow_parts": Table(
        "Activation normalization and invertible dense layers",
        ABLATIONS,
        {"parts": tuple(paper.GLOW_PARTS)},
        glow_part_cells,
        claims.glow_parts,
        reference="none",
    ),
    "cnn": Table(
        "CNNs and ViTs in the coupling layers",
        "ImageNet-1k at 64 x 64, 200 epochs (section 3.2.3, appendix A.2, to two decimals)",
        {
            "num_coupling_layers": paper.GRID_1K_LAYERS,
            "cnn_depth": paper.CNN_DEPTHS,
            "cnn_width": paper.CNN_WIDTHS,
            "vit_depth": paper.VIT_DEPTHS,
            "vit_width": paper.GRID_1K_WIDTHS,
        },
        cnn_cells,
        claims.cnn,
    ),
    "dequantization": Table(
        "Uniform noise and a dequantization flow",
        "64 coupling layers and a dequantization flow of 16, against 80 coupling layers (section 3.2.6, no numbers)",
        {"num_coupling_layers": (64,), "dequantization_num_coupling_layers": (16,)},
        dequantization_cells,
        claims.dequantization,
    ),
    "imagenet1k_32": size_table("ImageNet-1k at 32 x 32", paper.IMAGENET1K_32, *GRID_1K),
    "imagenet1k_64": size_table("ImageNet-1k at 64 x 64", paper.IMAGENET1K_64, *GRID_1K),
    "imagenet21k_32": size_table("ImageNet-21k at 32 x 32", paper.IMAGENET21K_32, *GRID_21K),
    "imagenet21k_64": size_table("ImageNet-21k at 64 x 64", paper.IMAGENET21K_64, *GRID_21K),
}
