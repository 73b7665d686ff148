# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Heat maps and a histogram, in colors that are legible on white and on black."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


INK = "#808080"
ACCENT = "#f97316"


def heat_maps(maps: Sequence[np.ndarray], titles: Sequence[str] = ("",)) -> Image.Image:
    """Draw maps of bits per dimension, each of shape (S/p, S/p), side by side with color bars."""
    figure = Figure(figsize=(4 * len(maps), 3.6))
    for axes, values, title in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, titles, strict=True):
        image = axes.imshow(values, cmap="viridis", interpolation="nearest")
        axes.axis("off")
        axes.set_title(title, color=INK, fontsize=14)
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
        bar.ax.tick_params(colors=INK, labelsize=12)
        bar.outline.set_visible(False)
    return _to_image(figure)


def overlay(
    image: Image.Image,
    values: np.ndarray,
    centered: bool = False,
    limits: tuple[float | None, float | None] = (None, None),
) -> Image.Image:
    """
    Lay a map of bits per dimension, of shape (S/p, S/p), over its image, with a color bar.

    Args:
        image: The image.
        values: Bits per dimension of the patches.
        centered: Whether zero is in the middle of the colors, for differences.
        limits: Values of the first and the last color, by default the smallest and the largest.
    """
    figure = Figure(figsize=(4.4, 3.6))
    axes = figure.subplots()
    extent = (0, image.width, image.height, 0)
    axes.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    if centered:
        limits = (-abs(values).max(), abs(values).max())
    colors = {"cmap": "coolwarm" if centered else "inferno", "vmin": limits[0], "vmax": limits[1]}
    heat = axes.imshow(values, interpolation="nearest", alpha=0.6, extent=extent, **colors)
    axes.axis("off")
    bar = figure.colorbar(heat, ax=axes, fraction=0.046, pad=0.04)
    bar.solids.set_alpha(1)  # the same colors on white and on black
    bar.set_label("bits per dimension", color=INK, fontsize=12)
    bar.ax.tick_params(colors=INK, labelsize=12)
    bar.outline.set_visible(False)
    return _to_image(figure)


def histogram(held_out: np.ndarray, bits_per_dim: float) -> Image.Image:
    """Draw the distribution of held-out scores, and the position of one score in it."""
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.subplots()
    axes.hist(held_out, bins=40, color=INK, alpha=0.6, label="held-out images")
    axes.axvline(bits_per_dim, color=ACCENT, linewidth=3, label="this image")
    axes.set_xlabel("bits per dimension (fewer: more likely)", color=INK, fontsize=15)
    axes.set_yticks([])
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, labelsize=14)
    # Above the axes, where no bar is behind it.
    axes.legend(frameon=False, labelcolor=INK, fontsize=13, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return _to_image(figure)


def _to_image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, transparent=True, bbox_inches="tight")
    return Image.open(buffer)
