# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The paper's tables as grids of cells: what each changes in a base recipe, and the paper's figure beside it.

The ablations of section 3.2 keep the base recipe's sizes and change its parts; the grids over sizes and the test of
the dequantisation flow set sizes. Both say so in `axes`, whose values can be replaced, for a miniature for example.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from . import orderings, paper
from .claims import Claim, FrontClaim


HEAD_WIDTH = 64  # in all of appendix A.1
SPATIAL_COUPLINGS = {
    "rows": ("hstripes", "hstripes-inv"),
    "columns": ("vstripes", "vstripes-inv"),
    "checkerboard": ("checkerboard", "checkerboard-inv"),
    "mix": ("checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv"),
}
ABLATIONS = "ImageNet-1k at 64 x 64, 200 epochs, 32 coupling layers of depth 2 and width 512 (section 3.2)"


@dataclass(frozen=True)
class Cell:
    """
    One configuration of a table.

    Args:
        name: Also that of its folder.
        labels: Its place on the table's axes.
        fields: Fields of JetConfig that it sets.
        paper: The paper's figure, if it is known.
        note: What is known of it otherwise.
    """

    name: str
    labels: dict[str, str | int]
    fields: dict
    paper: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """
    A table of the paper.

    Args:
        name: As it is named on the command line.
        title: As it is headed in a report.
        setting: What the paper's figures were made with.
        axes: Values of each axis in the paper.
        build: Makes cells of such values.
        claims: The paper's orderings of these cells.
        reference: The cell that others are compared with.
    """

    name: str
    title: str
    setting: str
    axes: dict[str, tuple[str, ...] | tuple[int, ...]]
    build: Callable[[dict], list[Cell]]
    claims: Callable[[list], list[Claim | FrontClaim]]
    reference: str | None = None

    def cells(self, axes: dict[str, list[str]] | None = None) -> list[Cell]:
        """
        The table's configurations.

        Args:
            axes: Other values, as text, for some axes: sizes, or some of the paper's choices.

        Raises:
            ValueError: for an axis or a value that there is not.
        """
        values = dict(self.axes)
        for name, wanted in (axes or {}).items():
            if name not in values:
                raise ValueError(f"table {self.name} has no axis {name!r}: it has {', '.join(values)}.")
            values[name] = tuple(_axis_value(name, text, self.axes[name]) for text in wanted)
        return self.build(values)


def _axis_value(name: str, text: str, known: tuple) -> str | int:
    if isinstance(known[0], str):
        if text not in known:
            raise ValueError(f"axis {name} takes {', '.join(known)}, got {text!r}.")
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"axis {name} takes positive whole numbers, got {text!r}.")
    return int(text)


def layout_fields(ratio: str, pattern: str) -> dict:
    """Fields of a coupling layout: `all_channel`, `all_spatial`, or `Kto1`, and the pattern of spatial couplings."""
    if ratio == "all_channel":
        return {"coupling_kinds": ["channels"]}
    num_channels = 0 if ratio == "all_spatial" else int(ratio.removesuffix("to1"))
    kinds = num_channels * ["channels"] + ["spatial"]
    return {"coupling_kinds": kinds, "spatial_couplings": list(SPATIAL_COUPLINGS[pattern])}


def coupling_layout_cells(axes: dict) -> list[Cell]:
    cells = []
    for ratio, pattern in itertools.product(axes["ratio"], axes["pattern"]):
        if ratio != "all_channel":
            figure = paper.COUPLING_LAYOUTS[ratio][paper.PATTERNS.index(pattern)]
            labels = {"ratio": ratio, "pattern": pattern}
            cells.append(Cell(f"{ratio}-{pattern}", labels, layout_fields(ratio, pattern), figure))
    if "all_channel" in axes["ratio"]:
        labels = {"ratio": "all_channel", "pattern": "none"}
        cells.append(Cell("all_channel", labels, layout_fields("all_channel", "none"), paper.ALL_CHANNEL))
    return cells


def masking_vs_pairing_cells(axes: dict) -> list[Cell]:
    return [
        Cell(
            f"{ratio}-{mode}",
            {"ratio": ratio, "mode": mode},
            layout_fields(ratio, "mix") | {"coupling_mode": mode},
            paper.MASKING_VS_PAIRING[ratio][mode == "pairing"],
        )
        for ratio, mode in itertools.product(axes["ratio"], axes["mode"])
    ]


def glow_part_cells(axes: dict) -> list[Cell]:
    cells = []
    for parts in axes["parts"]:
        fields = {
            "use_actnorm": parts in ("actnorm", "both"),
            "use_invertible_dense": parts in ("invertible_dense", "both"),
        }
        figure = paper.GLOW_PARTS[parts]
        note = "" if figure else "3.727 or 3.741, the text of the table no longer says which"
        if parts == "actnorm":
            note += "; highly unstable, the best of several learning rates and seeds"
        cells.append(Cell(parts, {"parts": parts}, fields, figure, note))
    return cells


def dequantization_cells(axes: dict) -> list[Cell]:
    cells = []
    for layers, extra in itertools.product(axes["num_coupling_layers"], axes["dequantization_num_coupling_layers"]):
        # As many coupling layers in all, once as a part of the noise, once of the flow.
        flow = {
            "num_coupling_layers": layers,
            "dequantization": "flow",
            "dequantization_num_coupling_layers": extra,
        }
        uniform = {"num_coupling_layers": layers + extra, "dequantization": "uniform"}
        for name, fields in ((f"flow-{layers}-and-{extra}", flow), (f"uniform-{layers + extra}", uniform)):
            labels = {"dequantization": fields["dequantization"], "layers": layers, "noise_layers": extra}
            cells.append(Cell(name, labels, fields))
    return cells


def size_cells(
    backbone: str, layers: tuple, depths: tuple, widths: tuple, figures: dict, prefix: str = ""
) -> list[Cell]:
    """Cells of a grid over sizes; the number of heads follows the width."""
    return [
        Cell(
            f"{prefix}layers{number}-depth{depth}-width{width}",
            {"backbone": backbone, "layers": number, "depth": depth, "width": width},
            {
                "num_coupling_layers": number,
                "num_hidden_layers": depth,
                "hidden_size": width,
                "num_attention_heads": max(1, width // HEAD_WIDTH),
                "backbone": backbone,
            },
            figures.get((number, depth, width)),
        )
        for number, depth, width in itertools.product(layers, depths, widths)
    ]


def cnn_cells(axes: dict) -> list[Cell]:
    layers = axes["num_coupling_layers"]
    figures = paper.by_sizes(paper.CNN, paper.CNN_COLUMNS)
    cnn = size_cells("cnn", layers, axes["cnn_depth"], axes["cnn_width"], figures, "cnn-")
    cnn = [cell for cell in cnn if (cell.labels["layers"], cell.labels["width"]) != (64, 1536)]
    columns = list(itertools.product(paper.GRID_1K_LAYERS, paper.GRID_1K_WIDTHS))
    figures = paper.by_sizes(paper.IMAGENET1K_64, columns)
    return cnn + size_cells("vit", layers, axes["vit_depth"], axes["vit_width"], figures, "vit-")


def _grid_table(name: str, title: str, figures: dict, layers: tuple, widths: tuple, claims: Callable) -> Table:
    by_sizes = paper.by_sizes(figures, list(itertools.product(layers, widths)))
    return Table(
        name,
        f"{title}: coupling layers, depth and width of their ViTs",
        f"{title}, {'200' if '1k' in name else '50'} epochs (appendix A.2, to two decimals)",
        {"num_coupling_layers": layers, "num_hidden_layers": paper.VIT_DEPTHS, "hidden_size": widths},
        lambda axes: size_cells(
            "vit", axes["num_coupling_layers"], axes["num_hidden_layers"], axes["hidden_size"], by_sizes
        ),
        claims,
    )


GRID_1K = paper.GRID_1K_LAYERS, paper.GRID_1K_WIDTHS, orderings.imagenet1k
GRID_21K = paper.GRID_21K_LAYERS, paper.GRID_21K_WIDTHS, orderings.imagenet21k

TABLES = {
    table.name: table
    for table in (
        Table(
            "coupling_layouts",
            "Channel and spatial couplings",
            ABLATIONS,
            {"ratio": (*paper.RATIOS, "all_channel"), "pattern": paper.PATTERNS},
            coupling_layout_cells,
            orderings.coupling_layouts,
            reference="4to1-mix",
        ),
        Table(
            "masking_vs_pairing",
            "Masking and pairing",
            ABLATIONS,
            {"ratio": paper.RATIOS, "mode": ("masking", "pairing")},
            masking_vs_pairing_cells,
            orderings.masking_vs_pairing,
            reference="4to1-pairing",
        ),
        Table(
            "glow_parts",
            "Activation normalisation and invertible dense layers",
            ABLATIONS,
            {"parts": ("none", "actnorm", "invertible_dense", "both")},
            glow_part_cells,
            orderings.glow_parts,
            reference="none",
        ),
        Table(
            "cnn",
            "CNNs and ViTs in the coupling layers",
            "ImageNet-1k at 64 x 64, 200 epochs (section 3.2.3, appendix A.2, to two decimals)",
            {
                "num_coupling_layers": paper.GRID_1K_LAYERS,
                "cnn_depth": paper.CNN_DEPTHS,
                "cnn_width": (256, 512, 768, 1024, 1536),
                "vit_depth": paper.VIT_DEPTHS,
                "vit_width": paper.GRID_1K_WIDTHS,
            },
            cnn_cells,
            orderings.cnn,
        ),
        Table(
            "dequantization",
            "Uniform noise and a dequantisation flow",
            "64 coupling layers and 16 of a dequantisation flow, against 80 (section 3.2.6, which has no figures)",
            {"num_coupling_layers": (64,), "dequantization_num_coupling_layers": (16,)},
            dequantization_cells,
            orderings.dequantization,
        ),
        _grid_table("imagenet1k_32", "ImageNet-1k at 32 x 32", paper.IMAGENET1K_32, *GRID_1K),
        _grid_table("imagenet1k_64", "ImageNet-1k at 64 x 64", paper.IMAGENET1K_64, *GRID_1K),
        _grid_table("imagenet21k_32", "ImageNet-21k at 32 x 32", paper.IMAGENET21K_32, *GRID_21K),
        _grid_table("imagenet21k_64", "ImageNet-21k at 64 x 64", paper.IMAGENET21K_64, *GRID_21K),
    )
}
