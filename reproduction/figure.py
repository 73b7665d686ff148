# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The plot of a table: bits per dimension against training compute."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from jet_hf.utils.files import replace_file


MARKERS = "osD^vP*X"


def plot_compute(path: Path, title: str, cells: pd.DataFrame) -> None:
    """
    Plot the means of the cells with their standard errors over seeds, and the Pareto front through them.

    Args:
        path: PNG file to write.
        title: Title of the plot.
        cells: Table with the columns `group`, `flops`, `mean` and `sem`, indexed by the names of the cells.
    """
    finished = cells.dropna(subset=["flops", "mean"])
    front = pareto_front(finished)
    figure = Figure(figsize=(7, 4.5), layout="tight")
    axes = figure.subplots()
    for i, (group, members) in enumerate(finished.groupby("group", sort=False)):
        axes.errorbar(
            members["flops"],
            members["mean"],
            members["sem"].fillna(0.0),
            fmt=MARKERS[i % len(MARKERS)],
            color=f"C{i % 10}",
            markersize=5,
            capsize=2,
            label=group,
        )
    axes.plot(front["flops"], front["mean"], color="black", linewidth=1, alpha=0.6, label="Pareto front", zorder=0)
    for name, point in front.iterrows():
        axes.annotate(name, (point["flops"], point["mean"]), (4, -9), textcoords="offset points", fontsize=6)
    axes.set(xscale="log", xlabel="training FLOPs", ylabel="bits per dimension of held-out images", title=title)
    axes.margins(x=0.2)  # room for the names
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    replace_file(path, lambda draft: figure.savefig(draft, dpi=120, format="png"))


def pareto_front(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells that no other cell undercuts in both `flops` and `mean`, cheapest first."""
    cells = cells.sort_values(["flops", "mean"])
    return cells[cells["mean"] < cells["mean"].cummin().shift(fill_value=float("inf"))]
