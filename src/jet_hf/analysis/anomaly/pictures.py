# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Histograms of scores, and heat maps over images. They need matplotlib, of the extra `anomaly`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ...utils.files import replace_file


COLUMNS = 4


def _save(path: Path, figure: Figure) -> None:
    replace_file(path, lambda draft: figure.savefig(draft, dpi=110, format="png"))


def plot_histograms(path: Path, groups: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """
    Plot the distribution of each score.

    Args:
        path: PNG file.
        groups: Scores (B,) by name, by the title of the images.
    """
    names = list(next(iter(groups.values())))
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.4 * min(COLUMNS, len(names)), 2.8 * rows), layout="constrained")
    for i, name in enumerate(names):
        axis = figure.add_subplot(rows, min(COLUMNS, len(names)), i + 1)
        edges = np.histogram_bin_edges(np.concatenate([scores[name] for scores in groups.values()]), bins=30).tolist()
        for title, scores in groups.items():
            # One polygon is drawn several times as fast as a bar for each bin.
            axis.hist(scores[name], edges, density=True, histtype="stepfilled", alpha=0.5, label=title)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_yticks([])
        axis.tick_params(labelsize=8)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(groups), fontsize=9)
    _save(path, figure)


def plot_heat_maps(path: Path, images: Sequence[Image.Image], maps: np.ndarray, titles: Sequence[str]) -> None:
    """
    Plot images, each with its heat map laid over it in gray on its right, on one color scale.

    Args:
        path: PNG file.
        images: B images.
        maps: Bits per dimension of the patches in excess of the reference images, float64 (B, h, w).
        titles: Titles of the images.
    """
    columns, limit = min(COLUMNS, len(images)), np.abs(maps).max()
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.8, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (image, excess, title) in enumerate(zip(images, maps, titles, strict=True)):
        plain, laid_over = axes[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
        plain.imshow(image.convert("RGB"), interpolation="nearest")
        laid_over.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
        colors = laid_over.imshow(
            excess, cmap="coolwarm", alpha=0.6, extent=extent, vmin=-limit, vmax=limit, interpolation="nearest"
        )
        plain.set_title(title, fontsize=7, loc="left", parse_math=False)  # names of files may contain "$"
    figure.colorbar(colors, ax=axes, label="bits per dimension of a patch\nin excess of the reference", shrink=0.8)
    _save(path, figure)
