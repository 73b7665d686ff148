# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Batches of a data set of pixels, read from Arrow a batch at a time.

A training run sees one endless stream of images: epoch after epoch, each in an order of its own. Which image stands
at a place of the stream depends on the seed alone, so a run can be taken up anywhere and shared by any number of
processes.
"""

import signal
from collections.abc import Iterator
from typing import NamedTuple

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .pixels import LABEL, PIXELS


SECONDS_OF_GRACE = 60


class Batch(NamedTuple):
    """
    Images of one process.

    Args:
        pixels: uint8 tensor (B, C, S, S).
        indices: int64 tensor (B,): places in the run's stream (training) or in the data set (evaluation); they name
            the images' noise.
        labels: int64 tensor (B,) of classes, where the data were read with them.
    """

    pixels: torch.Tensor
    indices: torch.Tensor
    labels: torch.Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The batch on a device."""
        return Batch(*(None if tensor is None else tensor.to(device, non_blocking=non_blocking) for tensor in self))


class Shares:
    """
    Which places of a run's stream each process takes in each micro-batch.

    Args:
        batch_size: Images of an optimiser step, of all processes and micro-batches together.
        num_micro_batches: Parts that a process does one after the other and accumulates.
        process_index, num_processes: Which process, of how many.

    Raises:
        ValueError: if `batch_size` cannot be shared out evenly.
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

    def of_step(self, step: int) -> list[np.ndarray]:
        """The places that this process takes in an optimiser step (counted from 0), an int64 array a micro-batch."""
        first = step * self.batch_size + self.process_index * self.size
        return [
            np.arange(first, first + self.size) + micro_batch * self.num_processes * self.size
            for micro_batch in range(self.num_micro_batches)
        ]


def shuffled_rows(places: np.ndarray, num_images: int, seed: int) -> np.ndarray:
    """The image at each place of the stream, places in ascending order: every epoch holds every image once."""
    epochs = places // num_images
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _epoch_order(num_images, seed, int(epoch))[places[here] % num_images]
    return rows


_last_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    key = (num_images, seed, epoch)
    if key not in _last_orders:
        while len(_last_orders) > 1:  # a batch touches the end of one epoch and the start of the next
            _last_orders.pop(next(iter(_last_orders)))
        _last_orders[key] = np.random.default_rng([seed, epoch]).permutation(num_images)
    return _last_orders[key]


def outlive_termination(worker_id: int) -> None:
    """
    Let a worker of a loader outlive SIGTERM and Ctrl-C, which schedulers and terminals send to all processes of a job:
    the one that trains needs batches until it has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_OF_GRACE))


class _TrainOrder(Sampler):
    def __init__(self, shares: Shares, num_images: int, seed: int, start_step: int, num_steps: int):
        self.shares, self.num_images, self.seed = shares, num_images, seed
        self.steps = range(start_step, num_steps)

    def __len__(self) -> int:
        return len(self.steps) * self.shares.num_micro_batches

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in self.steps:
            for places in self.shares.of_step(step):
                yield shuffled_rows(places, self.num_images, self.seed), places


class _EvalOrder(Sampler):
    def __init__(self, num_images: int, batch_size: int, process_index: int, num_processes: int):
        stride = batch_size * num_processes
        self.num_images, self.batch_size = num_images, batch_size
        # As many batches in every process: a model that is sharded needs all of them at each call.
        self.starts = range(process_index * batch_size, -(-num_images // stride) * stride, stride)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in self.starts:
            indices = np.arange(start, start + self.batch_size)
            yield np.minimum(indices, self.num_images - 1), indices


class _Pixels(Dataset):
    def __init__(self, dataset: datasets.Dataset):
        feature = dataset.features.get(PIXELS)
        if getattr(feature, "dtype", None) != "uint8" or len(getattr(feature, "shape", ())) != 3:
            raise ValueError(f"`dataset` must have a column `{PIXELS}` of uint8 arrays (C, S, S), got {feature}.")
        self.dataset = dataset.with_format("numpy", columns=[PIXELS], dtype=np.uint8)
        labels = LABEL in dataset.column_names
        self.labels = dataset.with_format("numpy", columns=[LABEL], dtype=np.int64) if labels else None

    def __getitem__(self, item: tuple[np.ndarray, np.ndarray]) -> Batch:
        rows, indices = item
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows][LABEL])
        return Batch(torch.from_numpy(self.dataset[rows][PIXELS]), torch.from_numpy(indices), labels)


def read_pixels(dataset: datasets.Dataset) -> torch.Tensor:
    """All images of a data set of pixels: uint8 (num_images, C, S, S)."""
    return _Pixels(dataset)[np.arange(len(dataset)), np.arange(len(dataset))].pixels


def train_batches(
    dataset: datasets.Dataset,
    shares: Shares,
    num_steps: int,
    seed: int = 0,
    start_step: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """
    The batches of a training run, `shares.num_micro_batches` of them an optimiser step.

    Args:
        dataset: Pixels, as [`to_pixels`] or [`to_random_crops`] make them.
        shares: What this process takes of each step.
        num_steps: Optimiser steps of the run.
        seed: Draws the order of each epoch.
        start_step: Steps that are done already.
        num_workers, pin_memory: Those of the `DataLoader`.
    """
    order = _TrainOrder(shares, len(dataset), seed, start_step, num_steps)
    return DataLoader(
        _Pixels(dataset),
        sampler=order,
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
    The images of a data set in order, shared by all processes in batches of one size.

    Indices past the end of the data set fill up the last batches: their images count for nothing.
    """
    order = _EvalOrder(len(dataset), batch_size, process_index, num_processes)
    return DataLoader(_Pixels(dataset), sampler=order, batch_size=None, num_workers=num_workers, pin_memory=pin_memory)
