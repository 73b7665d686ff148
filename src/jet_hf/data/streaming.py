# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Batches of a data set that is read as a stream, for training without laying it out on the disk first.

As with [`train_batches`], which image stands at a place of the endless stream depends on the seed alone.
"""

import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import datasets
import fsspec.asyn
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..model.image_processing_jet import JetImageProcessor
from .batches import Batch, Shares, outlive_termination
from .columns import find_image_column
from .decoding import (
    UndecodableImageError,
    decode_image,
    image_name,
    pixel_converter,
    stored_images,
)
from .pixels import UndecodableImagesError, UndecodableLimit, check_classes
from .sources import DataSource, label_column_of, open_split


logger = logging.getLogger(__name__)

NUM_ROWS_READ = 64
NUM_PREFETCHED = 4
MAX_SHARDS = 64
MAX_THREADS = 16
# A share is only believed from so many undecodable images on.
MIN_UNDECODABLE = 10


def stream_batches(
    source: DataSource,
    split: str,
    processor: JetImageProcessor,
    shares: Shares,
    num_steps: int,
    seed: int = 0,
    start_step: int = 0,
    shuffle_buffer_size: int = 10000,
    max_undecodable_share: float = 0.001,
    pin_memory: bool = False,
    num_classes: int | None = None,
    max_images: int | None = None,
) -> "StreamBatches":
    """
    The batches of a training run, `shares.num_micro_batches` of them an optimiser step, from a stream of images.

    Every process reads all bytes of the stream, in the same order, and decodes its own share. That is cheap on one
    machine and wasteful on many: prepare the data with `scripts/prepare_imagenet.py` for those. A run that is taken up
    reads through what it had of its epoch, without decoding it, and through the first epoch to know its length.

    The place of an image that cannot be decoded is taken by the nearest one before it in the batch of the optimiser
    step that can be (the last one comes before the first), whichever process it belongs to.

    Args:
        source, split: What to read.
        processor: Makes the pixels.
        shares: What this process takes of each step.
        num_steps: Optimiser steps of the run.
        seed: Draws the order of each epoch.
        start_step: Steps that are done already.
        shuffle_buffer_size: Encoded images in memory, of which the next ones are drawn; 1 keeps the stream's order.
        max_undecodable_share: Share of undecodable images above which iterating raises an error. Fewer are counted and
            named in the log.
        pin_memory: That of the `DataLoader`.
        num_classes: Reads the classes too, which must be fewer than this number.
        max_images: Reads the first images only.

    Raises:
        ValueError: see [`open_split`] and [`label_column_of`]; also if there is no image, or a class that there
            should not be, which may show only while iterating.
        UndecodableImagesError: while iterating, if more than the allowed share of this process's images cannot be
            decoded.
    """
    dataset = open_split(source, split, streaming=True)
    column = find_image_column(dataset.features, source.image_column)
    where = f"split {split!r} of {source.name or source.path}"
    if isinstance(dataset, datasets.Dataset):
        if len(dataset) == 0:
            raise ValueError(f"{where} holds no images.")
        if max_images is not None:
            dataset = dataset.select(range(min(max_images, len(dataset))))
        if shuffle_buffer_size > 1 and source.contents.sorted_by_folder:
            # A buffer alone does not mix the folders. These rows are paths: their order costs nothing.
            dataset = dataset.shuffle(seed=seed, keep_in_memory=True)
        dataset = dataset.to_iterable_dataset(num_shards=min(MAX_SHARDS, len(dataset)))
    else:
        logger.info("%s is read as a stream, the number of its images is not known.", where)
        if max_images is not None:
            dataset = dataset.take(max_images)
    if max_images is not None:
        logger.info("%s: using the first %d images at most, as was asked for.", where, max_images)
    labels = [] if num_classes is None else [label_column_of(source, dataset.features)]
    dataset = dataset.select_columns([column, *labels])
    if shuffle_buffer_size > 1:
        dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer_size)
    if isinstance(dataset.features[column], datasets.Array3D):
        dataset = dataset.with_format("arrow")  # Python's lists of bytes would take forever
    stream = _Stream(
        dataset,
        where,
        processor,
        shares,
        range(start_step, num_steps),
        max_undecodable_share,
        num_classes,
    )
    return StreamBatches(
        DataLoader(
            stream,
            batch_size=None,
            num_workers=1,
            prefetch_factor=NUM_PREFETCHED,
            pin_memory=pin_memory,
            worker_init_fn=outlive_termination,
            generator=torch.Generator(),  # leaves torch's own generator as it is
        )
    )


class StreamBatches:
    """Batches that a process in the background reads and decodes. It ends with the iteration."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch


class _Stream(IterableDataset):
    def __init__(
        self,
        dataset: datasets.IterableDataset,
        where: str,
        processor: JetImageProcessor,
        shares: Shares,
        steps: range,
        max_undecodable_share: float,
        num_classes: int | None,
    ):
        self.dataset, self.where, self.convert = dataset, where, pixel_converter(processor)
        self.shares, self.steps, self.max_undecodable_share = shares, steps, max_undecodable_share
        self.num_classes = num_classes
        self.num_images = 0
        self.undecodable: list[str] = []

    def __len__(self) -> int:
        return len(self.steps) * self.shares.num_micro_batches

    def __iter__(self) -> Iterator[Batch | Exception]:
        fsspec.asyn.reset_lock()  # as datasets does after a fork
        try:
            yield from self._batches()
        # The loader would raise these with the traceback of its worker as their message.
        except UndecodableImagesError as error:
            yield error
        except pa.ArrowInvalid as error:
            yield ValueError(f"{self.where} cannot be read: {error}")
        except ValueError as error:
            yield ValueError(str(error))

    def _batches(self) -> Iterator[Batch]:
        images = self._images(skip=self.steps.start * self.shares.batch_size)
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_threads = num_cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        pool = ThreadPoolExecutor(min(MAX_THREADS, max(1, num_threads)))
        steps: deque[_Step] = deque()
        try:
            for step in self.steps:
                batch = list(itertools.islice(images, self.shares.batch_size))
                steps.append(_Step(step, batch, self.shares.of_step(step), self._decode, pool))
                if len(steps) > 1:  # one step is read while another is decoded
                    yield from self._finish(steps.popleft())
            while steps:
                yield from self._finish(steps.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _images(self, skip: int) -> Iterator[tuple]:
        """The endless stream of stored images, each with its class or `None`, without the first `skip` ones."""
        length = None
        for epoch in itertools.count():
            if length is not None and skip >= length:
                skip -= length
                continue
            self.dataset.set_epoch(epoch)
            length = 0
            for batch in self.dataset.iter(batch_size=NUM_ROWS_READ):
                images, *labels = batch.columns if isinstance(batch, pa.Table) else batch.values()
                length += len(images)
                if length > skip:
                    first = max(0, len(images) - (length - skip))
                    images = images if isinstance(images, list) else stored_images(images)
                    labels = labels[0] if labels else [None] * len(images)
                    labels = labels if isinstance(labels, list) else labels.to_pylist()
                    yield from zip(images[first:], labels[first:], strict=True)
            if length == 0:
                raise ValueError(f"{self.where} holds no images.")
            skip = max(0, skip - length)

    def _decode(self, item: tuple) -> tuple[np.ndarray, int | None]:
        image, label = item
        if self.num_classes is not None:
            check_classes(
                pa.array([label], pa.int64()), self.num_classes, self.where, lambda row: image_name(image, row)
            )
        return decode_image(image, self.convert)[0], label

    def _finish(self, step: "_Step") -> Iterator[Batch]:
        for places in step.shares:
            pixels, labels = zip(*(self._decoded(step, int(place)) for place in places), strict=True)
            labels = None if self.num_classes is None else torch.tensor(labels)
            yield Batch(torch.from_numpy(np.stack(pixels)), torch.from_numpy(places), labels)

    def _decoded(self, step: "_Step", place: int) -> tuple[np.ndarray, int | None]:
        self.num_images += 1
        for back in range(len(step.images)):
            try:
                return step.decoded(place - back)
            except UndecodableImageError as error:
                if back == 0:
                    self._note(f"{image_name(step.image(place), place)}: {error}")
        raise UndecodableImagesError(
            f"not one of {len(step.images)} images of {self.where} that follow each other can be decoded; the first "
            f"are: {'; '.join(self.undecodable[:5])}."
        )

    def _note(self, name: str) -> None:
        self.undecodable.append(name)
        count, share = len(self.undecodable), self.max_undecodable_share
        logger.warning(
            "%s cannot be decoded, the one before it takes its place (%d of %d).", name, count, self.num_images
        )
        if count > share * self.num_images and (count > MIN_UNDECODABLE or share == 0):
            raise UndecodableLimit(share, self.num_images, self.where).error(self.undecodable)


class _Step:
    """The stored images of an optimiser step, and pixels of those that this process needs."""

    def __init__(self, step: int, images: list, shares: list[np.ndarray], decode, pool: ThreadPoolExecutor):
        self.first = step * len(images)
        self.images, self.shares, self.decode, self.pool = images, shares, decode, pool
        self.futures: dict[int, Future] = {}
        for places in shares:
            for place in places:
                self._start(int(place) - self.first)

    def _start(self, i: int) -> Future:
        if i not in self.futures:
            self.futures[i] = self.pool.submit(self.decode, self.images[i])
        return self.futures[i]

    def image(self, place: int):
        return self.images[(place - self.first) % len(self.images)][0]

    def decoded(self, place: int) -> tuple[np.ndarray, int | None]:
        return self._start((place - self.first) % len(self.images)).result()
