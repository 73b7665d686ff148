# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Plots of samples and of the learning curve."""

import os
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from jet_hf.analysis.sampling import image_grid
from jet_hf.training import StepMetrics
from jet_hf.utils.files import replace_file


def save_figure(path: str | os.PathLike, figure: plt.Figure) -> None:
    """Save a figure as a PNG file and close it."""
    replace_file(Path(path), lambda draft: figure.savefig(draft, dpi=120, format="png"))
    plt.close(figure)


def plot_image_rows(path: str | os.PathLike, rows: dict[str, list[Image.Image]], columns: int = 8) -> None:
    """Plot grids of small images, one below the other, each under its title."""
    num_rows = [-(-len(images) // columns) for images in rows.values()]
    figure, axes = plt.subplots(len(rows), figsize=(columns, sum(num_rows) + 0.4 * len(rows)), height_ratios=num_rows)
    for axis, (title, images) in zip(np.atleast_1d(axes), rows.items(), strict=True):
        axis.imshow(image_grid(images, columns), interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    save_figure(path, figure)


def plot_learning_curve(
    path: str | os.PathLike, history: list[StepMetrics], held_out: list[tuple[int, float]]
) -> None:
    """Plot the bits per dimension of training batches, their moving mean, and those of held-out images by step."""
    steps = np.array([metrics.step for metrics in history])
    losses = np.array([metrics.loss for metrics in history])
    width = max(1, len(losses) // 40)
    moving_mean = np.convolve(losses, np.ones(width) / width, mode="valid")
    figure, axis = plt.subplots(figsize=(7, 4))
    axis.plot(steps, losses, color="tab:blue", alpha=0.2, linewidth=0.8, label="training batch")
    axis.plot(steps[width - 1 :], moving_mean, color="tab:blue", label=f"mean of {width} batches")
    axis.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="held-out photographs")
    axis.set(xlabel="optimizer step", ylabel="bits per dimension", ylim=(None, np.quantile(losses, 0.99)))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    save_figure(path, figure)
