# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Scores a data set: bits per dimension with its standard error, on any number of processes."""

import math
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from .. import __version__
from ..data import RELEASES, Batch, DataSource, PixelSplit, eval_batches, known_release
from ..data.pixels import LABEL, check_classes
from ..hub import EvaluationRecord
from ..model.modeling_jet import scale_bytes
from ..model.validation_jet import check_whole, trusted_values
from ..utils.files import replace_text, strict_json
from ..utils.noise import MASK, uniform_noise


@dataclass(frozen=True)
class Evaluation:
    """
    Scores of a data set.

    Args:
        bits_per_dim: Of each image, float64 (num_images,), in the data set's order.
        num_noise_samples: Draws of dequantisation noise behind each of them.

    Raises:
        ValueError: for no images, whose mean is nothing.
    """

    bits_per_dim: torch.Tensor
    num_noise_samples: int = 1

    def __post_init__(self):
        if len(self.bits_per_dim) == 0:
            raise ValueError("`bits_per_dim` is empty: no image was scored.")

    @property
    def mean(self) -> float:
        return self.bits_per_dim.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over images; NaN for a single one."""
        if len(self.bits_per_dim) < 2:
            return math.nan
        return self.bits_per_dim.std().item() / math.sqrt(len(self.bits_per_dim))


def check_processes(accelerator: Accelerator) -> None:
    """Raises ValueError if more processes were started than work together: each would do everything alone."""
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
    num_workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """
    Bits per dimension of every image of a data set; all processes call it, and all get the result.

    With one draw of noise it is the paper's upper bound. With K draws it is the importance-weighted one (Burda et al.,
    2016), `-log(mean over k of exp(log_likelihood_k)) / (d * log(2))`, which gets tighter with K.

    Args:
        model: A [`JetForDensityEstimation`], bare or prepared by `accelerator`. Is left in the mode, training or
            evaluation, that it was in.
        dataset: Pixels, as [`load_pixels`] makes them, with classes for a class-conditional model, which is scored on
            `p(image | class)`.
        batch_size: Images that a process scores at a time.
        num_noise_samples: Draws K of dequantisation noise for each image.
        seed: Draws the noise of each image by its place in the data set, so that neither batch size nor number of
            processes changes a score by more than rounding.
        accelerator: Of all processes; by default this process works alone, where the model is.
        num_workers: Processes that read batches.
        progress: Whether the main process shows a progress bar, on stderr.

    Raises:
        ValueError: for an empty data set, a number below 1, or processes that do not see each other.
    """
    check_whole("batch_size", batch_size)
    check_whole("num_noise_samples", num_noise_samples)
    num_images = len(dataset)
    if num_images == 0:
        raise ValueError("`dataset` has no images to evaluate.")
    if LABEL in dataset.column_names:
        num_classes = getattr(model, "module", model).config.num_classes
        if num_classes is not None:  # as in training, the last one stands for no label
            check_classes(dataset.with_format("arrow")[:][LABEL], num_classes + 1, "`dataset`")
    process_index, num_processes, device = 0, 1, None
    if accelerator is not None:
        process_index, num_processes = accelerator.process_index, accelerator.num_processes
        device = accelerator.device
        check_processes(accelerator)
    # The permutations stay on the device where images start, however the weights are sharded or offloaded.
    device = device or next(model.buffers()).device
    batch_size = min(batch_size, -(-num_images // num_processes))
    pin_memory = device.type == "cuda"
    batches = eval_batches(dataset, batch_size, process_index, num_processes, num_workers, pin_memory)
    scores = torch.zeros(num_images, dtype=torch.float64)
    was_training = model.training
    model.eval()
    at_work = None
    try:
        for batch in tqdm(batches, unit="batch", disable=not progress or process_index > 0):
            draws = _score(model, batch.to(device, non_blocking=True), num_noise_samples, seed)
            # A look at the scores waits for the device, which has the next batch to do by then.
            if at_work is not None:
                _collect(scores, *at_work)
            at_work = batch, draws
        _collect(scores, *at_work)
    finally:
        model.train(was_training)
    if num_processes > 1:
        # Zeros but from the process that scored the image. Not every device has float64; the scores came as float32.
        scores = accelerator.reduce(scores.to(device, torch.float32), "sum").cpu().double()
    return Evaluation(scores, num_noise_samples)


def _score(model: nn.Module, batch: Batch, num_noise_samples: int, seed: int) -> torch.Tensor:
    """Bits per dimension of each draw of a batch, (num_noise_samples, B), where the batch is."""
    pixels, indices, labels = batch
    pixel_values, draws = scale_bytes(pixels), []
    for draw in range(num_noise_samples):
        # Counted from the last stream down. Training takes stream 0, with indices and often a seed that are the same
        # numbers: held-out images must not be scored with the noise that training saw.
        noise = uniform_noise(seed, indices, tuple(pixels.shape[1:]), stream=MASK - draw)
        with trusted_values():
            draws.append(model(pixel_values, labels=labels, noise=noise).bits_per_dim)
    return torch.stack(draws)


def _collect(scores: torch.Tensor, batch: Batch, draws: torch.Tensor) -> None:
    """Puts the importance-weighted bound of a batch's draws (K, B) where its images have their scores."""
    nats_per_bit = batch.pixels[0].numel() * math.log(2)
    total = torch.logsumexp(-draws.cpu().double() * nats_per_bit, dim=0)
    counts = batch.indices < len(scores)
    scores[batch.indices[counts]] = ((math.log(len(draws)) - total) / nats_per_bit)[counts]


def describe_evaluation(evaluation: Evaluation, source: DataSource, split: str, pixels: PixelSplit) -> dict:
    """Return the facts of an evaluation and its results, ready for JSON; an unknown standard error is `None`."""
    release = known_release(source)
    error = evaluation.standard_error
    return {
        "dataset": source.name or source.path,
        "dataset_config": source.config,
        "release": RELEASES[release].title if release else None,
        "split": split,
        "num_images": len(evaluation.bits_per_dim),
        "num_skipped": pixels.num_skipped,
        "lossy_source_format": pixels.source_format if pixels.lossy else None,
        "num_noise_samples": evaluation.num_noise_samples,
        "bits_per_dim": evaluation.mean,
        "standard_error": error if math.isfinite(error) else None,
        "versions": {"jet_hf": __version__}
        | {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")},
    }


def write_scores(path: str | os.PathLike, evaluation: Evaluation, source: DataSource, split: str) -> None:
    """
    Writes the score of each image, for histograms; in a model's folder as `held_out_scores.json` the demo shows it.

    Args:
        path: JSON file.
        evaluation, source, split: What was scored and how it came out.
    """
    content = {
        "dataset": data_title(source),
        "split": split,
        "num_images": len(evaluation.bits_per_dim),
        "num_noise_samples": evaluation.num_noise_samples,
        "bits_per_dim": [round(bits, 4) for bits in evaluation.bits_per_dim.tolist()],
    }
    replace_text(Path(path), strict_json(content) + "\n")


def data_title(source: DataSource) -> str:
    """What a data set is called in reports: its release, which figures can be compared within, or else its name."""
    release = known_release(source)
    return RELEASES[release].title if release else source.title


def evaluation_record(evaluation: Evaluation, source: DataSource, split: str) -> EvaluationRecord:
    """A score in the form that model cards take."""
    return score_record(
        source,
        split,
        num_images=len(evaluation.bits_per_dim),
        bits_per_dim=evaluation.mean,
        standard_error=evaluation.standard_error,
        num_noise_samples=evaluation.num_noise_samples,
    )


def score_record(source: DataSource, split: str, **scores) -> EvaluationRecord:
    """[`evaluation_record`] of an evaluation that was written down: `scores` are the record's other fields."""
    return EvaluationRecord(
        dataset_name=data_title(source), dataset_type=source.name or "imagefolder", split=split, **scores
    )
