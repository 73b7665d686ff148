# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Heat maps and a histogram, in colours that can be read on white and on black."""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


INK = "#808080"
ACCENT = "#f97316"


def heat_map(values: np.ndarray) -> Image.Image:
    """One map of bits per dimension, (S/p, S/p), with its scale."""
    figure = Figure(figsize=(4, 3.4))
    _draw_map(figure, figure.subplots(), values)
    return _to_image(figure)


def heat_maps(maps: dict[str, np.ndarray]) -> Image.Image:
    """Maps side by side under their titles."""
    figure = Figure(figsize=(4 * len(maps), 3.6))
    for axis, (title, values) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        _draw_map(figure, axis, values)
        axis.set_title(title, color=INK, fontsize=14)
    return _to_image(figure)


def histogram(held_out: np.ndarray, bits_per_dim: float) -> Image.Image:
    """Where a score lies among those of held-out images."""
    figure = Figure(figsize=(5.6, 3.2))
    axis = figure.subplots()
    axis.hist(held_out, bins=40, color=INK, alpha=0.6, label="held-out images")
    axis.axvline(bits_per_dim, color=ACCENT, linewidth=3, label="this image")
    axis.set_xlabel("bits per dimension (fewer: likelier)", color=INK, fontsize=15)
    axis.set_yticks([])
    axis.spines[["top", "left", "right"]].set_visible(False)
    axis.spines["bottom"].set_color(INK)
    axis.tick_params(colors=INK, labelsize=14)
    # Above the axes, where no bar can be behind it.
    axis.legend(frameon=False, labelcolor=INK, fontsize=13, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return _to_image(figure)


def _draw_map(figure: Figure, axis, values: np.ndarray) -> None:
    picture = axis.imshow(values, cmap="viridis", interpolation="nearest")
    axis.axis("off")
    bar = figure.colorbar(picture, ax=axis, fraction=0.046, pad=0.04)
    bar.ax.tick_params(colors=INK, labelsize=12)
    bar.outline.set_visible(False)


def _to_image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, transparent=True, bbox_inches="tight")
    return Image.open(buffer)
