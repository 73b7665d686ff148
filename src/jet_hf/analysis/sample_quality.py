# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Figures for samples: how well a model's samples stand in for real images.

N samples are compared with held-out images. Beside them, N real images of another split, usually those that the model
has trained on, take the place of the samples. Both comparisons have the same sizes, and thereby the same bias of the
distances. A sampler that repeats its training images would reach the figures of the real images.
"""

import logging
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ..arguments import FIGURES, LABEL_FIGURES, MIN_SAMPLES
from ..data import read_pixels
from ..data.pixels import LABEL
from ..model.configuration_jet import JetConfig
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation
from .evaluation import score_classes
from .features import FeatureExtractor, build_extractor, extract_features
from .inference import prepared_for_inference
from .sampling import sample_levels


logger = logging.getLogger(__name__)

ROUNDING = 1e-6  # of distances, as a share of the largest norm
NEIGHBORS = 3  # of Kynkäänniemi et al. (2019)
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # of Bińkowski et al. (2018); sets of less than 2000 images are halved
NUM_HALVES = 20
MOST_FEATURES_OF_ERROR = 128  # each Fréchet distance of more takes seconds


class Figure(NamedTuple):
    """A figure and its standard error over images, NaN if it is unknown."""

    value: float
    standard_error: float = math.nan


class FeatureSet(NamedTuple):
    """Features of images, float64 (num_images, D), and their classes (num_images,), if they have any."""

    features: np.ndarray
    labels: np.ndarray | None = None


# Figures of two sets of features


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """
    Return the Fréchet distance of the normal distributions with the moments of two sets (Heusel et al., 2017).

    The distance of finite sets is too large on average, the more so the smaller they are: compare equal sizes only.
    """
    metric = FrechetInceptionDistance(_Features(first.shape[1]), sync_on_compute=False)
    metric.update(torch.from_numpy(first), real=True)
    metric.update(torch.from_numpy(second), real=False)
    return max(metric.compute().item(), 0.0)


def kernel_distance(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Figure:
    """
    Return the squared maximum mean discrepancy of two sets with a cubic kernel, KID (Bińkowski et al., 2018): mean and
    standard deviation over 100 random subsets of 1000 images, or of half of the smaller set.

    The estimator is unbiased: it may be negative, and its mean does not depend on the sizes.
    """
    size = min(KID_SUBSET_SIZE, len(first) // 2, len(second) // 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(
            _Features(first.shape[1]), subsets=KID_SUBSETS, subset_size=size, sync_on_compute=False
        )
    metric.update(torch.from_numpy(first), real=True)
    metric.update(torch.from_numpy(second), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return Figure(mean.item(), deviation.item())


def precision_recall(samples: np.ndarray, real: np.ndarray) -> tuple[Figure, Figure]:
    """
    Return the share of samples in the manifold of real images, and that of real images in the manifold of samples
    (Kynkäänniemi et al., 2019). A manifold is the union of balls around images that reach to their third neighbor.
    """
    return _share_inside(samples, real), _share_inside(real, samples)


def _share_inside(images: np.ndarray, manifold: np.ndarray) -> Figure:
    radii = NearestNeighbors(n_neighbors=NEIGHBORS).fit(manifold).kneighbors()[0][:, -1] + _tolerance(images, manifold)
    inside = pairwise_distances_chunked(
        images, manifold, reduce_func=lambda distances, _: (distances <= radii).any(axis=1)
    )
    return _proportion(np.concatenate(list(inside)))


def nearest_neighbor_accuracy(first: np.ndarray, second: np.ndarray) -> Figure:
    """
    Return the leave-one-out accuracy with which the nearest neighbor tells two sets of equal size apart (Lopez-Paz and
    Oquab, 2017): 0.5 for equal distributions, 1 for disjoint ones, and less than 0.5 for copies. Of several neighbors
    at the same distance, each counts in part.
    """
    features, tolerance = np.concatenate([first, second]), _tolerance(first, second)
    is_first = np.arange(len(features)) < len(first)

    def shares(distances: np.ndarray, start: int) -> np.ndarray:
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf  # no image is its own neighbor
        is_nearest = distances <= distances.min(axis=1, keepdims=True) + tolerance
        is_right = is_first[start + rows, None] == is_first
        return (is_nearest & is_right).sum(axis=1) / is_nearest.sum(axis=1)

    return _proportion(np.concatenate(list(pairwise_distances_chunked(features, reduce_func=shares))))


def _tolerance(*sets: np.ndarray) -> float:
    """Return the difference up to which distances count as equal. Images of few gray levels have many equal ones."""
    return ROUNDING * max(np.linalg.norm(features, axis=1).max() for features in sets)


def seam_strength(levels: np.ndarray, patch_size: int) -> Figure:
    """
    Return the mean absolute difference of neighboring pixels across borders of patches over that inside patches, about
    1 for real images.

    Args:
        levels: Gray levels (num_images, C, H, W) of images of more than one patch.
        patch_size: Side of a patch, at least 2.
    """
    across, inside = [], []
    for axis in (2, 3):
        differences = np.abs(np.diff(levels.astype(np.int64), axis=axis))
        at_border = np.arange(1, levels.shape[axis]) % patch_size == 0
        across.append(np.compress(at_border, differences, axis=axis).reshape(len(levels), -1))
        inside.append(np.compress(~at_border, differences, axis=axis).reshape(len(levels), -1))
    across_means, inside_means = (np.concatenate(parts, axis=1).mean(axis=1) for parts in (across, inside))
    with np.errstate(invalid="ignore", divide="ignore"):  # images of one color have no differences and no strength
        strength = across_means.mean() / inside_means.mean()
        deviation = np.std(across_means - strength * inside_means, ddof=1) / inside_means.mean()
    return Figure(float(strength), float(deviation / math.sqrt(len(levels))))


def classifier_accuracy(train: FeatureSet, test: FeatureSet) -> Figure:
    """Return the accuracy of a logistic regression that is fitted to a set and tested on another."""
    return _proportion(LogisticRegression(max_iter=5000).fit(*train).predict(test.features) == test.labels)


def _proportion(hits: np.ndarray) -> Figure:
    share = float(np.mean(hits))
    return Figure(share, math.sqrt(share * (1 - share) / len(hits)))


def _error_from_halves(
    measure: Callable[[np.ndarray, np.ndarray], float], sets: tuple[np.ndarray, np.ndarray], seed: int
) -> float:
    """
    Return the standard error of a measure of two sets: its standard deviation over random halves of both. The mean of
    a half of a finite set varies as that of the set, and a half holds no image twice, unlike a bootstrap's resample.
    """
    rng = np.random.default_rng(seed)
    halves = [[part[rng.permutation(len(part))[: len(part) // 2]] for part in sets] for _ in range(NUM_HALVES)]
    return float(np.std([measure(*half) for half in halves], ddof=1))


class _Features(torch.nn.Identity):
    """
    The extractor that torchmetrics asks for, of features that are extracted already.

    Its metrics must not synchronize, since the main process alone computes them, from all images.
    """

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def compare(images: FeatureSet, held_out: FeatureSet, figures: list[str], seed: int = 0) -> dict[str, Figure]:
    """
    Compute figures of images in comparison with held-out ones.

    Args:
        images: Samples, or real images in their place.
        held_out: Held-out real images.
        figures: Names of the figures, see [`FIGURES`].
        seed: Seed of random subsets.

    Returns:
        The figures by name, in the order of [`FIGURES`], without those that need levels or the model.
    """
    sets, results = (images.features, held_out.features), {}
    if "frechet_distance" in figures:
        is_cheap = images.features.shape[1] <= MOST_FEATURES_OF_ERROR
        error = _error_from_halves(frechet_distance, sets, seed) if is_cheap else math.nan
        results["frechet_distance"] = Figure(frechet_distance(*sets), error)
    if "kernel_distance" in figures:
        results["kernel_distance"] = kernel_distance(*sets, seed)
    if "precision" in figures or "recall" in figures:
        results["precision"], results["recall"] = precision_recall(*sets)
    if "nearest_neighbor_accuracy" in figures:
        size = min(map(len, sets))
        results["nearest_neighbor_accuracy"] = nearest_neighbor_accuracy(*(part[:size] for part in sets))
    if "classifier_accuracy" in figures:
        results["classifier_accuracy"] = classifier_accuracy(images, held_out)
    return {name: figure for name, figure in results.items() if name in figures}


# Figures of a model


@dataclass(frozen=True)
class SampleOptions:
    """
    Options of [`evaluate_samples`].

    Args:
        num_samples: Number N of samples, and of the real images beside them.
        features: Feature extractor, or its name, see [`build_extractor`].
        figures: Names of the figures; by default all that the model has.
        num_noise_samples: Number of draws of noise that the Bayes classifier takes for each image.
        batch_size: Number of images of a batch of a process.
        seed: Seed of the samples, the noise, and the choice of real images.
        sampling: Arguments of [`decode_samples`], such as `temperature`.
    """

    num_samples: int
    features: str | FeatureExtractor = "pixels"
    figures: list[str] | None = None
    num_noise_samples: int = 8
    batch_size: int = 64
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleReport:
    """
    Figures of samples and, beside them, of as many real images.

    Args:
        samples, real: Figures by name. The Bayes classifier has no counterpart without the model.
        num_samples: Number of samples, and of real images in their place.
        num_held_out: Number of held-out images.
        num_features: Number of features, `None` if no images were sampled.
    """

    samples: dict[str, Figure]
    real: dict[str, Figure]
    num_samples: int
    num_held_out: int
    num_features: int | None


def figures_of(config: JetConfig, figures: list[str] | None = None) -> list[str]:
    """
    Return the names of the requested figures, by default of all that a model has, in the order of [`FIGURES`].

    Raises:
        ValueError: for an unknown figure, or one that the model does not have.
    """
    missing: dict[str, str] = {}
    if config.num_classes is None:
        missing |= dict.fromkeys(LABEL_FIGURES, "a model with classes, but `config.num_classes` is None")
    if config.patch_size == 1 or config.num_patches == 1:
        missing["seam_strength"] = "several patches of several pixels, but an image is one patch or a patch one pixel"
    if figures is None:
        return [name for name in FIGURES if name not in missing]
    for name in figures:
        if name not in FIGURES:
            raise ValueError(f"`figures` must be of {', '.join(FIGURES)}, got {name!r}.")
        if name in missing:
            raise ValueError(f"`figures` {name} needs {missing[name]}.")
    return [name for name in FIGURES if name in figures]


def evaluate_samples(
    model: JetForDensityEstimation,
    processor: JetImageProcessor,
    held_out: datasets.Dataset,
    real: datasets.Dataset,
    options: SampleOptions,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> SampleReport | None:
    """
    Sample a model and compute the figures of the samples. All processes call it; the main one gets the report.

    Class-conditional samples have the classes of the N real images that stand beside them.

    Args:
        model: Model in evaluation mode.
        processor: Image processor of the model.
        held_out: Held-out images, as pixels from [`load_pixels`], with classes for a class-conditional model.
        real: Other real images, at least as many as samples.
        options: Options.
        accelerator: Accelerator of all processes; by default this process works alone.
        progress: Whether the main process shows progress bars on stderr.

    Raises:
        ValueError: for too few images, figures that the model does not have, invalid features, options of sampling
            that the model refuses, or samples that are not finite.
    """
    names = figures_of(model.config, options.figures)
    _check_sizes(options.num_samples, len(held_out), len(real))
    rng = np.random.default_rng(options.seed)
    real = real.select(rng.choice(len(real), options.num_samples, replace=False))
    if "classifier_accuracy" in names and len(set(real[LABEL])) < 2:
        raise ValueError("`figures` classifier_accuracy needs real images of two classes or more, got one class.")
    on_samples = [name for name in names if name != "bayes_accuracy"]
    sets = {}
    if on_samples:
        mixed = held_out.select(rng.permutation(len(held_out)))  # a part of them may stand for all
        sets = {"held_out": _levels(mixed), "real": _levels(real)}
        extractor = _build_extractor(sets["held_out"], model.config.num_levels, options, accelerator)
        sets["samples"] = _sample(model, processor, sets["real"].labels, options, accelerator, progress)
    bayes = _bayes_accuracy(model, held_out, options, accelerator, progress) if "bayes_accuracy" in names else None
    if accelerator is not None and not accelerator.is_main_process:
        return None
    features = {
        side: FeatureSet(extract_features(extractor, levels, model.config.num_levels, options.batch_size), labels)
        for side, (levels, labels) in sets.items()
    }
    results = {
        side: compare(features[side], features["held_out"], on_samples, options.seed) if features else {}
        for side in ("samples", "real")
    }
    if "seam_strength" in names:
        for side, result in results.items():
            result["seam_strength"] = seam_strength(sets[side].levels, model.config.patch_size)
    if bayes is not None:
        results["samples"]["bayes_accuracy"] = bayes
    results = {side: {name: result[name] for name in names if name in result} for side, result in results.items()}
    num_features = features["held_out"].features.shape[1] if features else None
    _warn_of_few_images(on_samples, num_features or 0, min(options.num_samples, len(held_out)))
    return SampleReport(
        **results, num_samples=options.num_samples, num_held_out=len(held_out), num_features=num_features
    )


class _Levels(NamedTuple):
    """Gray levels of images (num_images, C, S, S), and their classes (num_images,), if they have any."""

    levels: np.ndarray
    labels: np.ndarray | None


def _levels(dataset: datasets.Dataset) -> _Levels:
    labels = np.asarray(dataset[LABEL][:]) if LABEL in dataset.column_names else None
    return _Levels(read_pixels(dataset).numpy(), labels)


def _check_sizes(num_samples: int, num_held_out: int, num_real: int) -> None:
    for name, number in (("samples", num_samples), ("held-out images", num_held_out)):
        if number < MIN_SAMPLES:
            raise ValueError(f"figures of samples need at least {MIN_SAMPLES} {name}, got {number}.")
    if num_real < num_samples:
        raise ValueError(
            f"the samples must be at most as many as the real images beside them, {num_real}, got {num_samples}."
        )


def _build_extractor(
    held_out: _Levels, num_levels: int, options: SampleOptions, accelerator: Accelerator | None
) -> FeatureExtractor:
    """Build the extractor, and try it on two images before the samples are drawn."""
    extractor = options.features
    if isinstance(extractor, str):
        # The first process may download weights.
        with nullcontext() if accelerator is None else accelerator.main_process_first():
            device = "cpu" if accelerator is None else accelerator.device
            extractor = build_extractor(extractor, held_out.levels, num_levels, device, options.seed)
    extract_features(extractor, held_out.levels[:2], num_levels)
    return extractor


def _sample(
    model: JetForDensityEstimation,
    processor: JetImageProcessor,
    labels: np.ndarray | None,
    options: SampleOptions,
    accelerator: Accelerator | None,
    progress: bool,
) -> _Levels:
    # The layers of prepared models have no gradients, which denoising takes.
    denoises = model.denoises(options.sampling.get("denoise"))
    settings = (options.num_samples, None if labels is None else torch.from_numpy(labels), options.seed)
    precision = nullcontext() if accelerator is None else accelerator.autocast()
    with precision, nullcontext() if denoises else prepared_for_inference(model):
        levels = sample_levels(
            model, processor, *settings, options.batch_size, accelerator, progress, **options.sampling
        )
    return _Levels(levels, labels)


def _bayes_accuracy(
    model: JetForDensityEstimation,
    held_out: datasets.Dataset,
    options: SampleOptions,
    accelerator: Accelerator | None,
    progress: bool,
) -> Figure:
    with prepared_for_inference(model):
        settings = (options.batch_size, options.num_noise_samples, options.seed)
        losses = score_classes(model, held_out, *settings, accelerator, progress)
    return _proportion(losses.argmin(dim=1).numpy() == np.asarray(held_out[LABEL][:]))


def _warn_of_few_images(figures: list[str], num_features: int, num_images: int) -> None:
    if "frechet_distance" in figures and num_images <= num_features:
        logger.warning(
            f"{num_images} images do not determine the covariance of {num_features} features: the Fréchet distance "
            "means little without that of the real images beside it."
        )


def describe_samples(report: SampleReport) -> dict[str, dict[str, float | None]]:
    """Return the figures by name, each with its value, its error and the same of real images, ready for JSON."""
    figures = {}
    for name, figure in report.samples.items():
        real = report.real.get(name, Figure(math.nan))
        values = dict(zip(("samples", "standard_error", "real", "real_standard_error"), (*figure, *real), strict=True))
        figures[name] = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return figures
