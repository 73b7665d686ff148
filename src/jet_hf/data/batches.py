# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Batches of a dataset of pixels, read from Arrow one batch at a time.

A training run consumes one endless stream of images: epoch after epoch, each in a different order. The image at each
index of the stream depends on the seed alone, so a run can be resumed anywhere and sharded over any number of
processes.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .columns import LEVEL_DTYPES
from .pixels import LABEL, PIXELS


SECONDS_OF_GRACE = 60


class Batch(NamedTuple):
    """
    Images of one process.

    Args:
        pixels: uint8 tensor (B, C, H, W), or uint16 for more than 256 gray levels.
        indices: int64 tensor (B,): indices into the training stream or the evaluated dataset, which seed the noise of
            the images.
        labels: int64 tensor (B,) of classes, if they were read.
    """

    pixels: torch.Tensor
    indices: torch.Tensor
    labels: torch.Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        pixels, indices = (part.to(device, non_blocking=non_blocking) for part in (self.pixels, self.indices))
        return Batch(pixels, indices, labels)


class BatchSharding:
    """
    Assignment of the indices of a training stream to processes and micro-batches.

    Args:
        batch_size: Images of an optimizer step, summed over all processes and micro-batches.
        num_micro_batches: Micro-batches that each process accumulates per optimizer step.
        process_index, num_processes: Rank of this process, and number of processes.

    Raises:
        ValueError: if `batch_size` cannot be divided evenly.
    """

    def __init__(self, batch_size: int, num_micro_batches: int = 1, process_index: int = 0, num_processes: int = 1):
        if batch_size < 1 or batch_size % (num_micro_batches * num_processes):
            raise ValueError(
                "`train_batch_size` must be a multiple of gradient_accumulation_steps * num_processes, got "
                f"{batch_size} for {num_micro_batches} * {num_processes}."
            )
        self.batch_size = batch_size
        self.num_micro_batches = num_micro_batches
        self.process_index = process_index
        self.num_processes = num_processes
        self.size = batch_size // (num_micro_batches * num_processes)

    def indices(self, step: int) -> list[np.ndarray]:
        """Return the stream indices of this process in an optimizer step, counted from 0: int64, per micro-batch."""
        first = step * self.batch_size + self.process_index * self.size
        return [
            np.arange(first, first + self.size) + micro_batch * self.num_processes * self.size
            for micro_batch in range(self.num_micro_batches)
        ]


def shuffled_rows(indices: np.ndarray, num_images: int, seed: int) -> np.ndarray:
    """Return the dataset row at each stream index; every epoch contains every row once."""
    epochs = indices // num_images
    rows = np.empty_like(indices)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        rows[in_epoch] = _epoch_order(num_images, seed, int(epoch))[indices[in_epoch] % num_images]
    return rows


@lru_cache(maxsize=2)  # a batch may span the end of one epoch and the start of the next
def _epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def outlive_termination(worker_id: int) -> None:
    """
    Let a data loader worker survive SIGTERM and Ctrl-C for a minute.

    Schedulers and terminals send these signals to all processes of a job, but the training process needs batches
    until it has saved a checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_OF_GRACE))


class _Order(Sampler):
    """Rows and indices of the images of each batch, computed when they are needed."""

    def __init__(self, num_batches: int, locate: Callable[[int], tuple[np.ndarray, np.ndarray]]):
        self.num_batches, self.locate = num_batches, locate

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return map(self.locate, range(self.num_batches))


class _Pixels(Dataset):
    """Batches by the rows of their images and their indices."""

    def __init__(self, dataset: datasets.Dataset):
        feature = dataset.features.get(PIXELS)
        dtype = getattr(feature, "dtype", None)
        if dtype not in LEVEL_DTYPES or len(getattr(feature, "shape", ())) != 3:
            raise ValueError(
                f"`dataset` must have a column `{PIXELS}` of uint8 or uint16 arrays (C, H, W), got {feature}."
            )
        self.has_labels = LABEL in dataset.column_names
        self.dataset = dataset.with_format("arrow", columns=[PIXELS, LABEL] if self.has_labels else [PIXELS])

    def __getitem__(self, item: tuple[np.ndarray, np.ndarray]) -> Batch:
        rows, indices = item
        table = self.dataset[rows]
        # The numpy format of `datasets` makes an array of each image first.
        column = table[PIXELS]
        values = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
        while pa.types.is_list(values.type):
            values = pc.list_flatten(values)
        pixels = values.to_numpy().copy().reshape(len(rows), *self.dataset.features[PIXELS].shape)
        labels = torch.from_numpy(table[LABEL].to_numpy().astype(np.int64)) if self.has_labels else None
        return Batch(torch.from_numpy(pixels), torch.from_numpy(indices), labels)


def read_pixels(dataset: datasets.Dataset) -> torch.Tensor:
    """Return all images of a dataset of pixels: uint8 or uint16 (num_images, C, H, W)."""
    rows = np.arange(len(dataset))
    return _Pixels(dataset)[rows, rows].pixels


class PixelImages(Sequence[np.ndarray]):
    """
    Images of a dataset of pixels as arrays (H, W, C), read on access.

    Args:
        dataset: Pixels from [`load_pixels`].
    """

    def __init__(self, dataset: datasets.Dataset):
        dtype = np.dtype(dataset.features[PIXELS].dtype)
        self.dataset = dataset.with_format("numpy", columns=[PIXELS], dtype=dtype)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index][PIXELS].transpose(1, 2, 0)


def train_batches(
    dataset: datasets.Dataset,
    sharding: BatchSharding,
    steps: range,
    seed: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """
    Return the batches of a training run, `sharding.num_micro_batches` per optimizer step.

    Args:
        dataset: Dataset of pixels, see [`load_pixels`].
        sharding: Share of this process in each step.
        steps: Optimizer steps to do, such as `range(start_step, num_steps)`.
        seed: Seed of the order of each epoch.
        num_workers, pin_memory: Arguments of the `DataLoader`.
    """

    def locate(batch: int) -> tuple[np.ndarray, np.ndarray]:
        step, micro_batch = divmod(batch, sharding.num_micro_batches)
        indices = sharding.indices(steps[step])[micro_batch]
        return shuffled_rows(indices, len(dataset), seed), indices

    return DataLoader(
        _Pixels(dataset),
        sampler=_Order(len(steps) * sharding.num_micro_batches, locate),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=outlive_termination if num_workers else None,
    )


def eval_batches(
    dataset: datasets.Dataset,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """
    Return the images of a dataset in order, in batches of equal size that are dealt out to the processes.

    The last batches are padded with images whose indices lie past the end of the dataset; ignore their results.
    """

    def locate(batch: int) -> tuple[np.ndarray, np.ndarray]:
        indices = np.arange(batch_size) + (batch * num_processes + process_index) * batch_size
        return np.minimum(indices, len(dataset) - 1), indices

    # Every process gets the same number of batches: a sharded model needs all processes in each call.
    order = _Order(-(-len(dataset) // (batch_size * num_processes)), locate)
    return DataLoader(_Pixels(dataset), sampler=order, batch_size=None, num_workers=num_workers, pin_memory=pin_memory)
