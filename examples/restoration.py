# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Restore held-out photographs with a model as the prior, beside the methods of scikit-image.

    python -m examples.restoration --model space/model --output_dir restoration

It writes a table, two pictures and `results.json`. The table in `docs/prior.md` is that of the defaults.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from skimage import metrics, restoration

from jet_hf import JetForDensityEstimation
from jet_hf.model.modeling_jet import scale_bytes
from jet_hf.prior import JetPrior, LinearOperator, downsample, identity, mask
from jet_hf.utils.files import new_folder, strict_json
from jet_hf.utils.tables import markdown_table

from .photographs import SPLITS, load_photograph
from .plots import save_figure


# Photographs are reduced, because the originals are smooth at the size of a tile.
REDUCTION = 2
CROP_SIZE = 64
SIGMAS = (15, 25, 50)  # in gray levels
KEPT_SHARE = 0.5  # of the pixels for inpainting
FACTOR = 2  # of super-resolution
# Noise of a prior that restores measurements without noise, in gray levels.
SMALL_SIGMA = 2.0
PEAK = 255.0

# Restores measurements (B, ...) on the model's scale to images (B, C, H, W), given a parameter.
Method = Callable[[torch.Tensor, float], torch.Tensor]


def read_crops(split: str, num_crops: int, seed: int) -> torch.Tensor:
    """Return random crops of each reduced photograph of a split on the model's scale, float32 (B, 3, 64, 64)."""
    generator, crops = np.random.default_rng(seed), []
    for name in SPLITS[split]:
        pixels = np.asarray(Image.fromarray(load_photograph(name)).reduce(REDUCTION))
        for _ in range(num_crops):
            top, left = (int(generator.integers(size - CROP_SIZE + 1)) for size in pixels.shape[:2])
            crops.append(pixels[top : top + CROP_SIZE, left : left + CROP_SIZE].transpose(2, 0, 1))
    return scale_bytes(torch.from_numpy(np.stack(crops)))


def to_unit(images: torch.Tensor) -> np.ndarray:
    """Return images (B, C, H, W) of the model's scale on the scale [0, 1], as an array (B, H, W, C)."""
    return ((images + 1) / 2).permute(0, 2, 3, 1).numpy()


def by_image(function: Callable[[np.ndarray], np.ndarray], images: torch.Tensor) -> torch.Tensor:
    """Apply a function of scikit-image, of arrays (H, W, C) on the scale [0, 1], to images (B, C, H, W)."""
    results = np.stack([function(image) for image in to_unit(images)])
    return torch.from_numpy(2 * results - 1).permute(0, 3, 1, 2).float()


def quality(restored: torch.Tensor, clean: torch.Tensor) -> dict[str, list[float]]:
    """Return the PSNR in decibels and the SSIM of each image, of 8-bit images."""
    pairs = list(zip(to_bytes(restored), to_bytes(clean), strict=True))
    return {
        "psnr": [float(metrics.peak_signal_noise_ratio(image, result)) for result, image in pairs],
        "ssim": [float(metrics.structural_similarity(image, result, channel_axis=-1)) for result, image in pairs],
    }


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """Return images (B, C, H, W) of the model's scale as bytes (B, H, W, C)."""
    return (to_unit(images).clip(0, 1) * PEAK).round().astype(np.uint8)


class Restorer:
    """Methods that restore images, each with a grid of one parameter, from which training photographs choose."""

    def __init__(self, model: JetForDensityEstimation, num_steps: int):
        self.model = model
        self.num_steps = num_steps

    def map(self, measurements: torch.Tensor, weight: float, operator: LinearOperator, sigma: float) -> torch.Tensor:
        """Restore images with the flow, given the weight of the prior."""
        prior = JetPrior(self.model, weight=weight)
        return prior.restore(measurements, operator, 2 * sigma / PEAK, num_steps=self.num_steps).images

    def flow(self, operator: LinearOperator, sigma: float) -> tuple[Method, list[float]]:
        """Return the flow's method, and the weights to choose from."""
        return partial(self.map, operator=operator, sigma=sigma), [0.5, 1.0]

    def denoisers(self, sigma: float) -> dict[str, tuple[Method, list[float]]]:
        """Return the methods for noise of `sigma` gray levels, which they know, and their parameters."""
        unit = sigma / PEAK
        return {
            "TV": (
                lambda noisy, weight: by_image(
                    partial(restoration.denoise_tv_chambolle, weight=weight * unit, channel_axis=-1), noisy
                ),
                [0.6, 0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5],
            ),
            "wavelet": (
                lambda noisy, scale: by_image(
                    partial(
                        restoration.denoise_wavelet,
                        sigma=scale * unit,
                        channel_axis=-1,
                        convert2ycbcr=True,
                        rescale_sigma=True,
                    ),
                    noisy,
                ),
                [0.6, 0.8, 1.0, 1.25, 1.5, 2.0],
            ),
            "non-local means": (
                lambda noisy, strength: by_image(
                    partial(
                        restoration.denoise_nl_means,
                        h=strength * unit,
                        sigma=unit,
                        patch_size=5,
                        patch_distance=8,
                        fast_mode=False,
                        channel_axis=-1,
                    ),
                    noisy,
                ),
                [0.4, 0.6, 0.8, 1.0, 1.25],
            ),
            "flow": self.flow(identity(), sigma),
        }


def plain(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Method, list[float]]:
    """Return a method without a parameter."""
    return lambda measurements, _: function(measurements), [0.0]


def inpaint_biharmonic(kept: torch.Tensor, measurements: torch.Tensor) -> torch.Tensor:
    """Fill the pixels that are not kept by scikit-image's biharmonic interpolation."""
    hole = ~kept.numpy()
    return by_image(lambda image: restoration.inpaint_biharmonic(image, hole, channel_axis=-1), measurements)


def enlarge_bicubic(measurements: torch.Tensor) -> torch.Tensor:
    """Enlarge images by bicubic interpolation."""
    return torch.nn.functional.interpolate(measurements, scale_factor=FACTOR, mode="bicubic", align_corners=False)


def compare(
    methods: dict[str, tuple[Method, list[float]]],
    measure: Callable[[torch.Tensor], torch.Tensor],
    chosen_on: torch.Tensor,
    crops: torch.Tensor,
) -> dict[str, dict]:
    """
    Restore crops by each method, with the parameter that gives other crops the best mean PSNR.

    Returns:
        By method: its parameter, the restored images, their PSNR and SSIM, and the processor time in seconds.
    """
    rows = {}
    tried, measured = measure(chosen_on), measure(crops)
    for name, (method, parameters) in methods.items():
        scores = {value: np.mean(quality(method(tried, value), chosen_on)["psnr"]) for value in parameters}
        best = max(scores, key=lambda value: scores[value])
        start = time.process_time()
        images = method(measured, best)
        seconds = time.process_time() - start
        rows[name] = {"parameter": best, "images": images, "seconds": seconds} | quality(images, crops)
        print(
            f"{name}: {np.mean(rows[name]['psnr']):.2f} dB with {best} in {seconds:.0f} CPU seconds",
            flush=True,
        )
    return rows


def run(options: argparse.Namespace) -> None:
    """
    Compare the methods; write the table, the pictures and the results to a new folder.

    Raises:
        FileExistsError: if `output_dir` holds anything but earlier results.
    """
    with new_folder(options.output_dir, replaces="results.json") as folder:
        tasks = write_results(options, folder)
    print(format_table(tasks))


def write_results(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, dict]]:
    """Compare the methods, write the files, and return the results by task and method."""
    model = JetForDensityEstimation.from_pretrained(options.model).eval().requires_grad_(False)
    restorer = Restorer(model, options.num_steps)
    crops = read_crops("validation", options.num_crops, options.seed)
    chosen_on = read_crops("train", 1, options.seed)[:3]
    generator = torch.Generator().manual_seed(options.seed)
    kept = torch.rand(CROP_SIZE, CROP_SIZE, generator=generator) < KEPT_SHARE
    tasks = {}
    for sigma in options.sigmas:
        print(f"noise of {sigma} gray levels", flush=True)
        measure = partial(add_noise, sigma=sigma, seed=options.seed)
        methods = {"noisy": plain(lambda noisy: noisy)} | restorer.denoisers(sigma)
        tasks[f"noise {sigma}"] = compare(methods, measure, chosen_on, crops)
    for title, operator, baseline, function in (
        ("inpainting", mask(kept), "biharmonic", partial(inpaint_biharmonic, kept)),
        (f"super-resolution x {FACTOR}", downsample(FACTOR), "bicubic", enlarge_bicubic),
    ):
        print(title, flush=True)
        methods = {baseline: plain(function), "flow": restorer.flow(operator, SMALL_SIGMA)}
        tasks[title] = compare(methods, operator.forward, chosen_on, crops)
    shown = options.sigmas[len(options.sigmas) // 2]
    plot_denoising(folder / "denoising.png", crops, tasks[f"noise {shown}"])
    posterior = JetPrior(model).sample_posterior(
        mask(kept).forward(crops[-2:]),
        mask(kept),
        2 * SMALL_SIGMA / PEAK,
        num_steps=options.langevin_steps,
        start=tasks["inpainting"]["flow"]["images"][-2:],
        generator=generator,
    )
    plot_inpainting(folder / "inpainting.png", crops[-2:], kept, tasks["inpainting"], posterior)
    (folder / "table.md").write_text(format_table(tasks) + "\n")
    results = {
        task: {name: {key: value for key, value in row.items() if key != "images"} for name, row in rows.items()}
        for task, rows in tasks.items()
    }
    (folder / "results.json").write_text(strict_json(results, indent=2) + "\n")
    return tasks


def add_noise(images: torch.Tensor, sigma: float, seed: int) -> torch.Tensor:
    """Add Gaussian noise of `sigma` gray levels to images."""
    generator = torch.Generator().manual_seed(seed)
    return images + 2 * sigma / PEAK * torch.randn(images.shape, generator=generator)


def format_table(tasks: dict[str, dict[str, dict]]) -> str:
    """Return the Markdown table of all tasks and methods, with standard errors over the crops."""
    lines = [["task", "method", "PSNR (dB)", "flow minus method (dB)", "SSIM", "parameter", "CPU s per crop"]]
    for task, rows in tasks.items():
        for name, row in rows.items():
            difference = np.subtract(rows["flow"]["psnr"], row["psnr"])
            lines.append(
                [
                    task,
                    name,
                    with_error(row["psnr"], 2),
                    "" if name == "flow" else with_error(difference, 2),
                    with_error(row["ssim"], 3),
                    f"{row['parameter']:g}" if row["parameter"] else "",
                    f"{row['seconds'] / len(row['psnr']):.2f}",
                ]
            )
    return markdown_table(lines, left=2)


def with_error(values: list[float] | np.ndarray, digits: int) -> str:
    """Return the mean and its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def plot_denoising(path, crops: torch.Tensor, rows: dict[str, dict]) -> None:
    """Plot crops: noisy, restored by the best method of scikit-image and by the flow, and clean."""
    best = max((name for name in rows if name not in ("noisy", "flow")), key=lambda name: np.mean(rows[name]["psnr"]))
    columns = {name: rows[name]["images"] for name in ("noisy", best, "flow")} | {"clean": crops}
    plot_columns(path, {name: to_bytes(images)[[0, len(crops) // 2, -1]] for name, images in columns.items()})


def plot_inpainting(path, crops: torch.Tensor, kept: torch.Tensor, rows: dict[str, dict], posterior) -> None:
    """Plot crops: measured, restored, clean, and the mean and the standard deviation of the posterior."""
    std = posterior.std.mean(dim=1, keepdim=True)
    columns = {
        "measured": to_bytes(torch.where(kept, crops, -1.0)),
        "biharmonic": to_bytes(rows["biharmonic"]["images"])[-2:],
        "flow, MAP": to_bytes(rows["flow"]["images"])[-2:],
        "flow, mean": to_bytes(posterior.mean),
        f"uncertainty, 0 to {float(std.max()) * PEAK / 2:.0f} levels": to_bytes(2 * std / std.max() - 1)[..., 0],
        "clean": to_bytes(crops),
    }
    plot_columns(path, columns)


def plot_columns(path, columns: dict[str, np.ndarray]) -> None:
    """Plot columns of images of bytes under their titles."""
    num_rows = len(next(iter(columns.values())))
    figure, axes = plt.subplots(num_rows, len(columns), figsize=(2.2 * len(columns), 2.3 * num_rows), squeeze=False)
    for column, (title, images) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=9)
        for row, image in enumerate(images):
            axes[row, column].imshow(image, cmap="inferno", vmin=0, vmax=255, interpolation="nearest")
            axes[row, column].axis("off")
    figure.tight_layout(pad=0.3)
    save_figure(path, figure)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Restore held-out photographs with a model as the prior.")
    parser.add_argument("--model", default="space/model", help="folder of the model or its name on the Hub")
    parser.add_argument("--output_dir", default="restoration", help="folder to write; earlier results are replaced")
    parser.add_argument("--num_crops", type=int, default=4, help="crops of each held-out photograph")
    parser.add_argument("--num_steps", type=int, default=64, help="steps of each restoration with the flow")
    parser.add_argument("--sigmas", type=int, nargs="+", default=SIGMAS, help="standard deviations of the noise")
    parser.add_argument("--langevin_steps", type=int, default=120, help="steps of the posterior samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of crops, noise and masks")
    run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
