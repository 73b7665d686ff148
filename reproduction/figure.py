# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The plot of a sweep: bits per dimension against training compute."""

import os

from examples.plots import plt, save_figure

from .results import CellResult, pareto_front


# Labels that cells are coloured by, the first that a table has.
GROUPED_BY = ("backbone", "pattern", "mode", "dequantization", "parts")
MARKERS = "osD^vP*X"


def plot_compute(path: str | os.PathLike, title: str, results: list[CellResult]) -> None:
    """
    Writes the means of cells with their standard errors over seeds, and the Pareto front through them.

    Args:
        path: Of a PNG file.
        title: Of the plot.
        results: Those without a finished run are passed over.
    """
    run = [result for result in results if result.bits and result.flops]
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for i, (group, members) in enumerate(group_by_label(run).items()):
        axis.errorbar(
            [result.flops for result in members],
            [result.mean for result in members],
            [result.standard_error or 0.0 for result in members],
            fmt=MARKERS[i % len(MARKERS)],
            color=f"C{i % 10}",
            markersize=5,
            capsize=2,
            label=group,
        )
    front = pareto_front([(result.flops, result.mean) for result in run])
    if front:
        axis.plot(*zip(*front, strict=True), color="black", linewidth=1, alpha=0.6, label="Pareto front", zorder=0)
    for result in run:
        if (result.flops, result.mean) in front:
            axis.annotate(
                result.cell.name, (result.flops, result.mean), (4, -9), textcoords="offset points", fontsize=6
            )
    axis.set(xscale="log", xlabel="FLOPs of training", ylabel="bits per dimension, held out", title=title)
    axis.margins(x=0.2)  # room for the names
    axis.grid(alpha=0.3, which="both")
    if run:
        axis.legend(fontsize=8)
    figure.tight_layout()
    save_figure(path, figure)


def group_by_label(results: list[CellResult]) -> dict[str, list[CellResult]]:
    """Cells of the same kind together."""
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        labels = result.cell.labels
        key = next((key for key in GROUPED_BY if key in labels), "layers")
        groups.setdefault(f"{key} {labels.get(key, '')}".strip(), []).append(result)
    return groups
