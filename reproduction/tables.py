# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Tables of runs: those of the paper, which `paper.yaml` holds with its results and claims, and grids of the user.

The ablations of section 3.2 keep the sizes of the recipe and change one design choice. The grids over sizes and the
ablation of the dequantization flow set the sizes themselves.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml


PAPER = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))
TABLES = tuple(PAPER["tables"])
FINISHED = "finished"  # status of a run with a result
HEAD_WIDTH = 64  # in all models of appendix A.1


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
    labels: dict[str, str | int]
    fields: dict
    paper: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """
    Cells to run, with the paper's claims about them.

    Args:
        name: Name of the table and of its folder.
        title: Heading of the report.
        axes: The paper's values on each axis.
        cells: The cells.
        recipe: Recipe of a grid of the user.
        seeds: Seeds, unless others are chosen.
        setting: Data, length and sizes behind the paper's results; `None` for a grid of the user.
        claims: The paper's claims, as `paper.yaml` describes them.
        reference: Name of the cell that the others are compared with.
    """

    name: str
    title: str
    axes: dict[str, list]
    cells: list[Cell]
    recipe: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    setting: str | None = None
    claims: Sequence[dict] = ()
    reference: str | None = None


def read_grid(path: Path) -> Table:
    """
    Read a grid: a YAML file with a recipe (`config`), values of fields (`grid`), and seeds (`seeds`, by default 0).

    Returns:
        A table with a cell for each combination of values.

    Raises:
        ValueError: for a file that is not such a grid; the message names the entry.
    """
    try:
        grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be a YAML file: {error}") from error
    if not isinstance(grid, dict) or not {"config", "grid"} <= grid.keys() <= {"config", "grid", "seeds"}:
        found = ", ".join(map(str, grid)) if isinstance(grid, dict) else repr(grid)
        raise ValueError(f"{path} must have the entries config and grid, and may have seeds, got {found}.")
    axes = grid["grid"]
    lists = list(axes.values()) if isinstance(axes, dict) else []
    if not lists or not all(isinstance(values, list) and values and None not in values for values in lists):
        raise ValueError(f"`grid` in {path} must list values for each field, got {axes!r}.")
    cells = []
    for values in itertools.product(*lists):
        fields = dict(zip(axes, values, strict=True))
        labels = {name: "+".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in fields.items()}
        name = ",".join(f"{axis}={label}" for axis, label in labels.items())
        cells.append(Cell(name.replace("/", "_"), labels, fields))
    return Table(path.stem, f"Grid of {path.name}", axes, cells, str(grid["config"]), grid.get("seeds", [0]))


def read_table(name: str, axes: dict[str, list[str]] | None = None) -> Table:
    """
    Return a table of the paper.

    Args:
        name: One of `TABLES`.
        axes: Values, as text, that replace those of some axes: other sizes, or a selection of the paper's choices.

    Raises:
        ValueError: for an unknown axis, or a value that the axis does not take.
    """
    entry = PAPER["tables"][name]
    values = dict(entry["axes"])
    for axis, texts in (axes or {}).items():
        if axis not in values:
            raise ValueError(f"`axis` must name one of {', '.join(values)}, got {axis!r}.")
        values[axis] = [parse_axis_value(axis, text, values[axis]) for text in texts]
    if values.keys() <= PAPER["choices"].keys():
        cells = ablation_cells(entry, values)
    elif name == "dequantization":
        cells = dequantization_cells(*values.values())
    elif name == "cnn":
        layers, cnn_depths, cnn_widths, *vit = values.values()
        cells = size_cells(entry, [layers, cnn_depths, cnn_widths], "cnn", "cnn-")
        cells = [cell for cell in cells if (cell.labels["layers"], cell.labels["width"]) != (64, 1536)]
        cells += size_cells(PAPER["tables"]["imagenet1k_64"], [layers, *vit], "vit", "vit-")
    else:
        cells = size_cells(entry, list(values.values()), "vit")
    return Table(name, cells=cells, **{key: entry[key] for key in entry if key not in ("results", "notes")})


def parse_axis_value(axis: str, text: str, known: list) -> str | int:
    """Return a value of an axis: one of the paper's choices, or any positive integer for a size."""
    is_size = isinstance(known[0], int)
    if not (text.isdecimal() and int(text) > 0 if is_size else text in known):
        allowed = "a positive integer" if is_size else f"one of {', '.join(known)}"
        raise ValueError(f"`axis` {axis} must be {allowed}, got {text!r}.")
    return int(text) if is_size else text


def ablation_cells(table: dict, chosen: dict[str, list[str]]) -> list[Cell]:
    """Return the cells whose choices are among the chosen ones. Channel couplings alone have no spatial pattern."""
    cells = []
    for first, row in table["results"].items():
        for second, bits in row.items() if isinstance(row, dict) else [(None, row)]:
            labels = {axis: label for axis, label in zip(chosen, (first, second), strict=False) if label}
            if all(label in chosen[axis] for axis, label in labels.items()):
                name = "-".join(labels.values())
                fields = {k: v for axis, label in labels.items() for k, v in PAPER["choices"][axis][label].items()}
                labels = dict.fromkeys(chosen, "none") | labels
                cells.append(Cell(name, labels, fields, bits, table.get("notes", {}).get(name, "")))
    return cells


def dequantization_cells(num_coupling_layers: list[int], dequantization_num_coupling_layers: list[int]) -> list[Cell]:
    """Return pairs of cells with the same number of coupling layers: some in a dequantization flow, or none."""
    cells = {}
    for layers, extra in itertools.product(num_coupling_layers, dequantization_num_coupling_layers):
        flow = {"num_coupling_layers": layers, "dequantization_num_coupling_layers": extra, "dequantization": "flow"}
        uniform = {"num_coupling_layers": layers + extra, "dequantization": "uniform"}
        for name, fields in ((f"flow-{layers}-and-{extra}", flow), (f"uniform-{layers + extra}", uniform)):
            labels = {"total_layers": layers + extra, "dequantization": fields["dequantization"]}
            cells[name] = Cell(name, labels, fields)
    return list(cells.values())


def size_cells(table: dict, sizes: list[list[int]], backbone: str, prefix: str = "") -> list[Cell]:
    """
    Return the cells of a grid over numbers of coupling layers, depths and widths.

    Args:
        table: Table with the paper's results.
        sizes: Coupling layers, depths and widths of the cells. The number of attention heads follows the width.
        backbone: Kind of the conditioners.
        prefix: Start of the cells' names.
    """
    # The first and the third axis of any such table hold the layers and widths of its results.
    layers, _, widths, *_ = table["axes"].values()
    places = itertools.product(table["results"], layers, widths)
    results = dict(zip(places, itertools.chain(*table["results"].values()), strict=True))
    cells = []
    for n, depth, width in itertools.product(*sizes):
        labels = {"layers": n, "depth": depth, "width": width, "backbone": backbone}
        fields = {"num_coupling_layers": n, "num_hidden_layers": depth, "hidden_size": width}
        fields |= {"num_attention_heads": max(1, width // HEAD_WIDTH), "backbone": backbone}
        name = f"{prefix}layers{n}-depth{depth}-width{width}"
        cells.append(Cell(name, labels, fields, results.get((depth, n, width))))
    return cells
