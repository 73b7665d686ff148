# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Bits per dimension of a dataset under a model, with their standard error, on any number of processes."""

import csv
import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from .. import __version__
from ..data import RELEASES, Batch, DataSource, PixelSplit, eval_batches, known_release
from ..data.pixels import LABEL, PIXELS, check_classes
from ..hub import EvaluationRecord
from ..model.configuration_jet import JetConfig
from ..model.modeling_jet import JetForDensityEstimation, scale_bytes
from ..model.validation_jet import check_whole, trusted_values
from ..utils.files import replace_text, strict_json
from ..utils.noise import MASK, noise_levels, normal_noise, uniform_noise
from .inference import evaluation_mode


@dataclass(frozen=True)
class Evaluation:
    """
    Scores of a dataset.

    Args:
        bits_per_dim: Score of each image, float64 (num_images,), in the order of the dataset.
        num_noise_samples: Number of draws of dequantization noise behind each score.

    Raises:
        ValueError: without scores, which have no mean.
    """

    bits_per_dim: torch.Tensor
    num_noise_samples: int = 1

    def __post_init__(self):
        if len(self.bits_per_dim) == 0:
            raise ValueError("`bits_per_dim` is empty: no image was scored.")

    @property
    def mean(self) -> float:
        """Mean bits per dimension over the images."""
        return self.bits_per_dim.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over images; NaN for a single one."""
        if len(self.bits_per_dim) < 2:
            return math.nan
        return self.bits_per_dim.std().item() / math.sqrt(len(self.bits_per_dim))


def check_processes(accelerator: Accelerator) -> None:
    """Raise ValueError if the launched processes do not work together, so that each would do all of the work."""
    if int(os.environ.get("WORLD_SIZE", 1)) > accelerator.num_processes:
        raise ValueError("the processes do not see each other; on CPUs, set ACCELERATE_USE_CPU=true.")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: datasets.Dataset,
    batch_size: int = 64,
    num_noise_samples: int = 1,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> Evaluation:
    """
    Compute the bits per dimension of every image of a dataset. All processes call it, and all get the result.

    With one draw of noise the score is the paper's upper bound. With K draws it is the importance-weighted bound
    (Burda et al., 2016), `-log(mean over k of exp(log_likelihood_k)) / (d * log(2))`, which gets tighter with K.

    Args:
        model: [`JetForDensityEstimation`], bare or prepared by `accelerator`. Its mode, training or evaluation, is
            restored afterwards.
        dataset: Pixels from [`load_pixels`], with classes for a class-conditional model, which is scored on
            `p(image | class)`.
        batch_size: Number of images that a process scores at a time.
        num_noise_samples: Number K of draws of dequantization noise for each image.
        seed: Seed of the noise, which is drawn by the index of each image in the dataset. Neither the batch size nor
            the number of processes changes a score by more than rounding.
        accelerator: Accelerator of all processes; by default this process works alone, on the device of the model.
        progress: Whether the main process shows a progress bar on stderr.

    Raises:
        ValueError: for an empty dataset, a number below 1, labels out of range, processes that do not see each other,
            or a model with `noise_std`, which has no bits per dimension.
    """
    _config_of(model).check_bits_per_dim()
    scores = score_images(model, dataset, batch_size, num_noise_samples, seed, accelerator, progress)
    return Evaluation(scores, num_noise_samples)


def _config_of(model: nn.Module) -> JetConfig:
    return cast(JetForDensityEstimation, getattr(model, "module", model)).config


@torch.no_grad()
def score_images(
    model: nn.Module,
    dataset: datasets.Dataset,
    batch_size: int = 64,
    num_noise_samples: int = 1,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """
    Return the loss of each image, float64 (num_images,): bits per dimension, or nats per dimension of the noisy image
    for a model with `noise_std`, whose mean over the draws of noise it is. If that is a range, a draw includes the
    noise level, by the seed and the index of the image, so that a model is scored on the same noisy images at every
    step of its training; the means have no weights. See [`evaluate`] for the arguments and the errors.
    """
    check_whole("batch_size", batch_size)
    check_whole("num_noise_samples", num_noise_samples)
    num_images = len(dataset)
    if num_images == 0:
        raise ValueError("`dataset` has no images to evaluate.")
    if LABEL in dataset.column_names:
        num_classes = _config_of(model).num_classes
        if num_classes is not None:  # as in training, the label after the last class stands for an unknown class
            check_classes(dataset.with_format("arrow")[:][LABEL], num_classes + 1, "`dataset`")
    process_index, num_processes, device = 0, 1, None
    if accelerator is not None:
        check_processes(accelerator)
        process_index, num_processes = accelerator.process_index, accelerator.num_processes
        device = accelerator.device
    # The permutations are on the device of the images, even if the weights are sharded or offloaded.
    device = device or next(model.buffers()).device
    batch_size = min(batch_size, -(-num_images // num_processes))
    batches = eval_batches(dataset, batch_size, process_index, num_processes, pin_memory=device.type == "cuda")
    scores = torch.zeros(num_images, dtype=torch.float64)
    combine = importance_weighted if _config_of(model).noise_std is None else mean_of_draws
    pending: list[tuple[Batch, torch.Tensor]] = []
    with evaluation_mode(model):
        for batch in tqdm(batches, unit="batch", disable=not progress or process_index > 0):
            draws = _score(model, batch.to(device, non_blocking=True), num_noise_samples, seed)
            pending.append((batch, draws))
            # Reading scores waits for the device, so the next batch is queued first.
            if len(pending) > 1:
                _store_scores(scores, *pending.pop(0), combine)
        _store_scores(scores, *pending.pop(), combine)
    if accelerator is not None and num_processes > 1:
        # Images of other processes are zero here. Not every device has float64; the scores are computed in float32.
        scores = accelerator.reduce(scores.to(device, torch.float32), "sum").cpu().double()
    return scores


def _score(model: nn.Module, batch: Batch, num_noise_samples: int, seed: int) -> torch.Tensor:
    """Return the loss of each draw, (num_noise_samples, B), on the device of the batch."""
    pixels, indices, labels = batch
    config = _config_of(model)
    draw_noise = uniform_noise if config.noise_std is None else normal_noise
    pixel_values, draws = scale_bytes(pixels, config.num_levels), []
    for draw in range(num_noise_samples):
        # Streams count down from the last one. Training draws from stream 0, often with the same seed and indices, and
        # held-out images must not be scored with the noise of training.
        noise = draw_noise(seed, indices, tuple(pixels.shape[1:]), stream=MASK - draw)
        levels = noise_levels(seed, indices, config.noise_range, stream=MASK // 2 - draw)
        with trusted_values():
            output = model(pixel_values, labels=labels, noise=noise, noise_std=levels)
        draws.append(output.bits_per_dim if config.noise_std is None else output.noisy_nats_per_dim)
    return torch.stack(draws)


def _store_scores(
    scores: torch.Tensor, batch: Batch, draws: torch.Tensor, combine: Callable[[torch.Tensor, int], torch.Tensor]
) -> None:
    """Write the combination of a batch's draws (K, B) to the scores of its images."""
    is_image = batch.indices < len(scores)  # the last batch may be padded
    scores[batch.indices[is_image]] = combine(draws.cpu().double(), batch.pixels[0].numel())[is_image]


def importance_weighted(draws: torch.Tensor, num_dims: int) -> torch.Tensor:
    """Return the importance-weighted bounds (B,) of draws of bits per dimension (K, B)."""
    nats_per_bit = num_dims * math.log(2)
    return (math.log(len(draws)) - torch.logsumexp(-draws * nats_per_bit, dim=0)) / nats_per_bit


def mean_of_draws(draws: torch.Tensor, num_dims: int) -> torch.Tensor:
    """Return the means (B,) of draws (K, B): each draw is another noisy image, not another bound for the same one."""
    return draws.mean(dim=0)


def score_classes(
    model: nn.Module,
    dataset: datasets.Dataset,
    batch_size: int = 64,
    num_noise_samples: int = 1,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """
    Return the loss of each image under each class, float64 (num_images, num_classes), whose `argmin` over the classes
    is the Bayes classifier of the model for classes of equal frequency. All classes are scored with the same noise.
    See [`score_images`] for the arguments.

    Raises:
        ValueError: for a model without classes, a loss that is not finite, or what [`score_images`] refuses.
    """
    num_classes = _config_of(model).num_classes
    if num_classes is None:
        raise ValueError("scores of classes need a model with classes, but `config.num_classes` is None.")
    images, scores = dataset.select_columns([PIXELS]), []
    for label in tqdm(range(num_classes), unit="class", disable=not progress):
        labeled = images.add_column(LABEL, np.full(len(images), label))
        scores.append(score_images(model, labeled, batch_size, num_noise_samples, seed, accelerator))
    losses = torch.stack(scores, dim=1)
    if not losses.isfinite().all():
        raise ValueError("the model must give finite densities under every class, got NaN or infinite ones.")
    return losses


def describe_evaluation(evaluation: Evaluation, source: DataSource, split: str, pixels: PixelSplit) -> dict:
    """Return the results of an evaluation and its settings, ready for JSON; an unknown standard error is `None`."""
    error = evaluation.standard_error
    return describe_data(source, split, pixels) | {
        "num_images": len(evaluation.bits_per_dim),
        "num_noise_samples": evaluation.num_noise_samples,
        "bits_per_dim": evaluation.mean,
        "standard_error": error if math.isfinite(error) else None,
    }


def describe_data(source: DataSource, split: str, pixels: PixelSplit) -> dict:
    """Return the description of evaluated images, and the versions of the packages, ready for JSON."""
    release = known_release(source)
    return {
        "dataset": source.name or source.path,
        "dataset_config": source.config,
        "release": RELEASES[release].title if release else None,
        "split": split,
        "num_images": len(pixels.dataset),
        "num_skipped": pixels.num_skipped,
        "lossy_source_format": pixels.source_format if pixels.lossy else None,
        "versions": {"jet_hf": __version__}
        | {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")},
    }


def check_scores_file(path: str | os.PathLike, source: DataSource) -> None:
    """
    Check that [`write_scores`] can write to a path; to be called before scoring.

    Raises:
        ValueError: for a folder, a folder that does not exist or cannot be written to, or a path inside the dataset.
    """
    source.check_output(path, "scores_file", "dataset")
    check_writable(Path(path), "scores_file")


def check_writable(path: Path, argument: str) -> None:
    """Raise ValueError unless `path`, from the argument of this name, can be written as a new or another file."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        with tempfile.TemporaryFile(dir=path.parent):  # permissions alone do not tell, for root and network disks
            pass
    except OSError as error:
        raise ValueError(
            f"`{argument}` must be a file in an existing, writable folder, got {path}: {error.strerror or error}."
        ) from error


def write_scores(
    path: str | os.PathLike, evaluation: Evaluation, source: DataSource, split: str, pixels: PixelSplit
) -> None:
    """
    Write the score of each image in full precision, in the order of the dataset.

    Args:
        path: CSV file with the columns `name` and `bits_per_dim`. A name that ends in `.json` gives a JSON file with
            the dataset and the scores instead; the demo shows `held_out_scores.json` of a model's folder.
        evaluation: Scores.
        source, split: Dataset and split that were scored.
        pixels: Images that were scored.

    Raises:
        ValueError: see [`check_scores_file`].
    """
    check_scores_file(path, source)
    scores = evaluation.bits_per_dim.tolist()
    if Path(path).suffix == ".json":
        content = {
            "dataset": data_title(source),
            "split": split,
            "num_images": len(scores),
            "num_noise_samples": evaluation.num_noise_samples,
            "bits_per_dim": scores,
        }
        replace_text(Path(path), strict_json(content) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "bits_per_dim"))
    writer.writerows(zip(image_names(source, pixels), scores, strict=True))
    replace_text(Path(path), text.getvalue())


def image_names(source: DataSource, pixels: PixelSplit) -> list[str]:
    """Return the name of each image: its path in the dataset, its name in a tar or table, or else its index."""
    folder = "" if source.path is None else os.path.join(os.path.abspath(Path(source.path).expanduser()), "")
    return [name.removeprefix(folder) for name in pixels.names()]


def data_title(source: DataSource) -> str:
    """Return the title of a dataset in reports: its release, within which scores are comparable, or else its name."""
    release = known_release(source)
    return RELEASES[release].title if release else source.title


def dataset_fields(source: DataSource, split: str) -> dict[str, Any]:
    """Return the fields of a dataset in the records of a card."""
    return {"dataset_name": data_title(source), "dataset_type": source.name or "imagefolder", "split": split}


def evaluation_record(source: DataSource, split: str, scores: Mapping[str, Any]) -> EvaluationRecord:
    """Return the record of scores in the form of [`describe_evaluation`], with NaN for `None`."""
    names = ("bits_per_dim", "standard_error")
    bits_per_dim, standard_error = (math.nan if scores[name] is None else scores[name] for name in names)
    return EvaluationRecord(
        **dataset_fields(source, split),
        num_images=scores["num_images"],
        bits_per_dim=bits_per_dim,
        standard_error=standard_error,
        num_noise_samples=scores.get("num_noise_samples", 1),
    )
