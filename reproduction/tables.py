# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Tables of runs: those of the paper, with its results and claims, and grids of the user.

The ablations of section 3.2 keep the sizes of the recipe and change one design choice. The grids over sizes and the
ablation of the dequantization flow set the sizes themselves. The `axes` of a table hold its values; other values can
replace them, for example for a miniature.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml

from . import claims, paper
from .claims import Cell, Claim


HEAD_WIDTH = 64  # in all models of appendix A.1
SPATIAL_COUPLINGS = {
    "rows": ["hstripes", "hstripes-inv"],
    "columns": ["vstripes", "vstripes-inv"],
    "checkerboard": ["checkerboard", "checkerboard-inv"],
    "mix": ["checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv"],
}
ABLATIONS = "ImageNet-1k at 64 x 64, 200 epochs, 32 coupling layers of depth 2 and width 512 (section 3.2)"
GLOW_NOTE = "the paper's result is 3.727 or 3.741; the text of the table has lost which"
GLOW_NOTES = {
    "actnorm": f"{GLOW_NOTE}; training was unstable, and this is the best of several learning rates and seeds",
    "invertible_dense": GLOW_NOTE,
}


@dataclass(frozen=True)
class Table:
    """
    Cells to run, with the paper's claims about them.

    Args:
        title: Heading of the report.
        axes: Values on each axis.
        build: Makes the cells from values on the axes.
        setting: Data, length and sizes behind the paper's results; `None` for a grid of the user.
        claims: Makes the paper's claims about the cells.
        reference: Name of the cell that the others are compared with.
    """

    title: str
    axes: Mapping[str, Sequence]
    build: Callable[..., list[Cell]]
    setting: str | None = None
    claims: Callable[[list[Cell]], Sequence[Claim]] = lambda cells: []
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


def parse_axis_value(name: str, text: str, known: Sequence) -> str | int:
    """Return a value of an axis: one of the paper's choices, or any positive integer for a size."""
    if isinstance(known[0], str):
        if text not in known:
            raise ValueError(f"`axis` {name} must be one of {', '.join(known)}, got {text!r}.")
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"`axis` {name} must be a positive integer, got {text!r}.")
    return int(text)


def read_grid(path: str) -> tuple[Table, str, list[int]]:
    """
    Read a grid: a YAML file with a recipe (`config`), values of fields (`grid`), and seeds (`seeds`, by default 0).

    Returns:
        A table with a cell for each combination of values, the recipe and the seeds.

    Raises:
        ValueError: for a file that is not such a grid; the message names the entry.
    """
    try:
        grid = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be a YAML file: {error}") from error
    if not isinstance(grid, dict) or not {"config", "grid"} <= grid.keys() <= {"config", "grid", "seeds"}:
        found = ", ".join(map(str, grid)) if isinstance(grid, dict) else repr(grid)
        raise ValueError(f"{path} must have the entries config and grid, and may have seeds, got {found}.")
    axes = grid["grid"]
    lists = list(axes.values()) if isinstance(axes, dict) else []
    if not lists or not all(isinstance(values, list) and values and None not in values for values in lists):
        raise ValueError(f"`grid` in {path} must list values for each field, got {axes!r}.")
    return Table(f"Grid of {Path(path).name}", axes, grid_cells), str(grid["config"]), grid.get("seeds", [0])


def grid_cells(**axes: list) -> list[Cell]:
    """Return a cell for each combination of values of fields, named after them."""
    cells = []
    for values in itertools.product(*axes.values()):
        fields = dict(zip(axes, values, strict=True))
        labels = {name: "+".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in fields.items()}
        name = ",".join(f"{field}={label}" for field, label in labels.items())
        cells.append(Cell(name.replace("/", "_"), labels, fields))
    return cells


def product_cells(
    axes: Mapping[str, Sequence], name: str, fields: Callable[..., dict], result: Callable[..., float | None]
) -> list[Cell]:
    """Return a cell for each combination of values, from a format of its name, its fields and the paper's result."""
    return [
        Cell(name.format(*values), dict(zip(axes, values, strict=True)), fields(*values), result(*values))
        for values in itertools.product(*axes.values())
    ]


def layout_fields(ratio: str, pattern: str) -> dict:
    """Return the fields of a coupling layout, given a ratio of `paper.RATIOS` and the pattern of the spatial ones."""
    num_channel_couplings = 0 if ratio == "all_spatial" else int(ratio.removesuffix("to1"))
    return {
        "coupling_kinds": ["channels"] * num_channel_couplings + ["spatial"],
        "spatial_couplings": SPATIAL_COUPLINGS[pattern],
    }


def coupling_layout_cells(ratio: Sequence[str], pattern: Sequence[str]) -> list[Cell]:
    """Return a cell for each ratio and pattern, and one of channel couplings alone."""
    axes = {"ratio": [kind for kind in ratio if kind != "all_channel"], "pattern": pattern}
    cells = product_cells(
        axes, "{}-{}", layout_fields, lambda kind, spatial: paper.COUPLING_LAYOUTS[kind][paper.PATTERNS.index(spatial)]
    )
    if "all_channel" in ratio:
        labels = {"ratio": "all_channel", "pattern": "none"}
        cells.append(Cell("all_channel", labels, {"coupling_kinds": ["channels"]}, paper.ALL_CHANNEL))
    return cells


def masking_vs_pairing_cells(ratio: Sequence[str], mode: Sequence[str]) -> list[Cell]:
    """Return a cell for each ratio, with the mix of spatial patterns, and each coupling mode."""
    return product_cells(
        {"ratio": ratio, "mode": mode},
        "{}-{}",
        lambda kind, choice: layout_fields(kind, "mix") | {"coupling_mode": choice},
        lambda kind, choice: paper.MASKING_VS_PAIRING[kind][choice == "pairing"],
    )


def glow_part_cells(parts: Sequence[str]) -> list[Cell]:
    """Return a cell for each choice of Glow's parts."""
    return [
        Cell(
            choice,
            {"parts": choice},
            {f"use_{part}": choice in (part, "both") for part in ("actnorm", "invertible_dense")},
            paper.GLOW_PARTS[choice],
            GLOW_NOTES.get(choice, ""),
        )
        for choice in parts
    ]


def dequantization_cells(
    num_coupling_layers: Sequence[int], dequantization_num_coupling_layers: Sequence[int]
) -> list[Cell]:
    """Return pairs of cells with the same number of coupling layers: some in a dequantization flow, or none."""
    cells = {}
    for layers, extra in itertools.product(num_coupling_layers, dequantization_num_coupling_layers):
        flow = {"num_coupling_layers": layers, "dequantization_num_coupling_layers": extra}
        uniform = {"num_coupling_layers": layers + extra}
        for kind, name, sizes in (("flow", f"{layers}-and-{extra}", flow), ("uniform", f"{layers + extra}", uniform)):
            labels = {"dequantization": kind, "total_layers": layers + extra}
            cells[kind, name] = Cell(f"{kind}-{name}", labels, sizes | {"dequantization": kind})
    return list(cells.values())


def size_cells(
    results: Mapping[tuple, float | None],
    num_coupling_layers: Sequence[int],
    num_hidden_layers: Sequence[int],
    hidden_size: Sequence[int],
    backbone: str = "vit",
    prefix: str = "",
) -> list[Cell]:
    """Return the cells of a grid over sizes; the number of attention heads follows the width."""
    axes = {"layers": num_coupling_layers, "depth": num_hidden_layers, "width": hidden_size}
    cells = product_cells(
        axes,
        prefix + "layers{}-depth{}-width{}",
        lambda layers, depth, width: {
            "num_coupling_layers": layers,
            "num_hidden_layers": depth,
            "hidden_size": width,
            "num_attention_heads": max(1, width // HEAD_WIDTH),
            "backbone": backbone,
        },
        lambda *sizes: results.get(sizes),
    )
    return [replace(cell, labels={"backbone": backbone, **cell.labels}) for cell in cells]


def cnn_cells(
    num_coupling_layers: Sequence[int],
    cnn_depth: Sequence[int],
    cnn_width: Sequence[int],
    vit_depth: Sequence[int],
    vit_width: Sequence[int],
) -> list[Cell]:
    """Return the grids of the CNNs and of the ViTs, without the widest CNN of 64 layers, which the paper left out."""
    cnn_results = paper.by_sizes(paper.CNN, paper.LAYERS_1K, paper.CNN_WIDTHS)
    vit_results = paper.by_sizes(paper.IMAGENET1K_64, paper.LAYERS_1K, paper.WIDTHS_1K)
    cnn = size_cells(cnn_results, num_coupling_layers, cnn_depth, cnn_width, "cnn", "cnn-")
    vit = size_cells(vit_results, num_coupling_layers, vit_depth, vit_width, "vit", "vit-")
    return [cell for cell in cnn if (cell.labels["layers"], cell.labels["width"]) != (64, 1536)] + vit


def size_table(data: str, grid: Mapping, epochs: int, layers: tuple, widths: tuple, claims: Callable) -> Table:
    """Return a table of appendix A.2, over coupling layers, depth and width."""
    return Table(
        f"{data}: coupling layers, depth and width of the ViTs",
        {"num_coupling_layers": layers, "num_hidden_layers": paper.VIT_DEPTHS, "hidden_size": widths},
        partial(size_cells, paper.by_sizes(grid, layers, widths)),
        f"{data}, {epochs} epochs (appendix A.2, to two decimals)",
        claims,
    )


GRID_1K = 200, paper.LAYERS_1K, paper.WIDTHS_1K, claims.imagenet1k
GRID_21K = 50, paper.LAYERS_21K, paper.WIDTHS_21K, claims.imagenet21k

TABLES = {
    "coupling_layouts": Table(
        "Channel and spatial couplings",
        {"ratio": (*paper.RATIOS, "all_channel"), "pattern": paper.PATTERNS},
        coupling_layout_cells,
        ABLATIONS,
        claims.coupling_layouts,
        reference="4to1-mix",
    ),
    "masking_vs_pairing": Table(
        "Masking and pairing",
        {"ratio": paper.RATIOS, "mode": ("masking", "pairing")},
        masking_vs_pairing_cells,
        ABLATIONS,
        claims.masking_vs_pairing,
        reference="4to1-pairing",
    ),
    "glow_parts": Table(
        "Activation normalization and invertible dense layers",
        {"parts": tuple(paper.GLOW_PARTS)},
        glow_part_cells,
        ABLATIONS,
        claims.glow_parts,
        reference="none",
    ),
    "cnn": Table(
        "CNNs and ViTs in the coupling layers",
        {
            "num_coupling_layers": paper.LAYERS_1K,
            "cnn_depth": paper.CNN_DEPTHS,
            "cnn_width": paper.CNN_WIDTHS,
            "vit_depth": paper.VIT_DEPTHS,
            "vit_width": paper.WIDTHS_1K,
        },
        cnn_cells,
        "ImageNet-1k at 64 x 64, 200 epochs (section 3.2.3, appendix A.2, to two decimals)",
        claims.cnn,
    ),
    "dequantization": Table(
        "Uniform noise and a dequantization flow",
        {"num_coupling_layers": (64,), "dequantization_num_coupling_layers": (16,)},
        dequantization_cells,
        "64 coupling layers and a dequantization flow of 16, against 80 coupling layers (section 3.2.6, no numbers)",
        claims.dequantization,
    ),
    "imagenet1k_32": size_table("ImageNet-1k at 32 x 32", paper.IMAGENET1K_32, *GRID_1K),
    "imagenet1k_64": size_table("ImageNet-1k at 64 x 64", paper.IMAGENET1K_64, *GRID_1K),
    "imagenet21k_32": size_table("ImageNet-21k at 32 x 32", paper.IMAGENET21K_32, *GRID_21K),
    "imagenet21k_64": size_table("ImageNet-21k at 64 x 64", paper.IMAGENET21K_64, *GRID_21K),
}
