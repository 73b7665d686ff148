# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Batches of a dataset that is read as a stream, for training without copying it to the disk first.

As with [`train_batches`], the image at each index of the endless stream depends on the seed alone.
"""

import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import datasets
import fsspec.asyn
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..model.image_processing_jet import JetImageProcessor
from .batches import Batch, BatchSharding, outlive_termination
from .columns import find_image_column
from .decoding import StoredImage, UndecodableImageError, decode_image, image_name, pixel_converter, stored_images
from .pixels import ReadOptions, UndecodableImagesError, UndecodableLimit, check_classes, check_prepared_levels
from .sources import DataSource, first_label_of, label_column_of, open_split


logger = logging.getLogger(__name__)

NUM_ROWS_READ = 64
NUM_PREFETCHED = 4
MAX_SHARDS = 64
MAX_THREADS = 16
# Number of undecodable images from which on their share is trusted.
MIN_UNDECODABLE = 10

# A stored image with its label, and a decoded one.
StoredExample = tuple[StoredImage, int | None]
Example = tuple[np.ndarray, int | None]


class _Step(NamedTuple):
    """An optimizer step: its stored images, and the stream indices and decoded images of this process."""

    examples: list[StoredExample]
    indices: list[np.ndarray]
    decoded: dict[int, Future[Example]]


def stream_batches(
    source: DataSource,
    split: str,
    processor: JetImageProcessor,
    options: ReadOptions,
    sharding: BatchSharding,
    steps: range,
    shuffle_buffer_size: int = 10000,
    pin_memory: bool = False,
) -> "StreamBatches":
    """
    Return the batches of a training run, `sharding.num_micro_batches` per optimizer step, from a stream of images.

    Every process reads all bytes of the stream, in the same order, and decodes its share. That is cheap on one machine
    and wasteful on many, for which the data should be prepared with `scripts/prepare_imagenet.py`. A resumed run reads
    the consumed part of its epoch again without decoding it, and the first epoch to count its images.

    An undecodable image is replaced by the nearest decodable one before it in the batch of the optimizer step, which
    wraps around at its start, whichever process that image belongs to.

    Args:
        source, split: Data to read.
        processor: Image processor that makes the pixels.
        options: Images to read. Random crops are not supported.
        sharding: Share of this process in each step.
        steps: Optimizer steps to do, such as `range(start_step, num_steps)`.
        shuffle_buffer_size: Encoded images kept in memory, from which the next ones are drawn; 1 keeps the order.
        pin_memory: Argument of the `DataLoader`.

    Raises:
        ValueError: see [`open_split`] and [`label_column_of`]; also, while iterating, if there are no images or a
            label is missing or out of range.
        UndecodableImagesError: while iterating, if more than the allowed share of the images of this process cannot
            be decoded.
    """
    dataset = open_split(source, split, streaming=True)
    column = find_image_column(dataset.features, source.image_column)
    where = f"split {split!r} of {source.where}"
    check_prepared_levels(source.layout.records.get(source.layout.resolve(split), {}), processor, where)
    if isinstance(dataset, datasets.IterableDataset):
        logger.info(f"{where} is read as a stream, so the number of its images is unknown.")
    elif len(dataset) == 0:
        raise ValueError(f"{where} holds no images.")
    dataset = options.first_images(dataset)
    if options.max_images is not None:
        logger.info(f"{where}: using at most the first {options.max_images} images, as requested.")
    if isinstance(dataset, datasets.Dataset):
        if shuffle_buffer_size > 1 and source.layout.sorted_by_folder:
            # A buffer alone does not mix the folders. The rows are paths, so shuffling all of them is cheap.
            dataset = dataset.shuffle(seed=options.seed, keep_in_memory=True)
        dataset = dataset.to_iterable_dataset(num_shards=min(MAX_SHARDS, len(dataset)))
    labels, first_label = [], 0
    if options.num_classes is not None:
        labels, first_label = [label_column_of(source, dataset.features)], first_label_of(source, options.num_classes)
    dataset = dataset.select_columns([column, *labels])
    if shuffle_buffer_size > 1:
        dataset = dataset.shuffle(seed=options.seed, buffer_size=shuffle_buffer_size)
    if isinstance(dataset.features[column], datasets.Array3D):
        dataset = dataset.with_format("arrow")  # lists of Python integers would be very slow
    return StreamBatches(
        _Stream(dataset, where, processor, options, first_label, sharding, steps),
        batch_size=None,
        num_workers=1,
        prefetch_factor=NUM_PREFETCHED,
        pin_memory=pin_memory,
        worker_init_fn=outlive_termination,
        generator=torch.Generator(),  # leaves torch's default generator untouched
    )


class StreamBatches(DataLoader):
    """Batches that a background process reads and decodes. The process ends with the iteration."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch


class _Stream(IterableDataset):
    def __init__(
        self,
        dataset: datasets.IterableDataset,
        where: str,
        processor: JetImageProcessor,
        options: ReadOptions,
        first_label: int,
        sharding: BatchSharding,
        steps: range,
    ):
        self.dataset, self.where, self.convert = dataset, where, pixel_converter(processor)
        self.options, self.first_label, self.sharding, self.steps = options, first_label, sharding, steps
        self.num_images = 0
        self.undecodable: list[str] = []

    def __len__(self) -> int:
        return len(self.steps) * self.sharding.num_micro_batches

    def __iter__(self) -> Iterator[Batch | Exception]:
        fsspec.asyn.reset_lock()  # as `datasets` does after a fork
        try:
            yield from self._batches()
        # Raised here, these would carry the traceback of the worker in their messages.
        except UndecodableImagesError as error:
            yield error
        except pa.ArrowInvalid as error:
            yield ValueError(f"{self.where} cannot be read: {error}")
        except ValueError as error:
            yield ValueError(str(error))

    def _batches(self) -> Iterator[Batch]:
        images = self._images(skip=self.steps.start * self.sharding.batch_size)
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_threads = num_cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        pool = ThreadPoolExecutor(min(MAX_THREADS, max(1, num_threads)))
        pending: deque[_Step] = deque()
        try:
            for step in self.steps:
                examples = list(itertools.islice(images, self.sharding.batch_size))
                indices = self.sharding.indices(step)
                decoded = {i: pool.submit(self._decode, examples[i % len(examples)], i) for i in np.ravel(indices)}
                pending.append(_Step(examples, indices, decoded))
                if len(pending) > 1:  # one step is read while another one is decoded
                    yield from self._finish(pending.popleft())
            while pending:
                yield from self._finish(pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _images(self, skip: int) -> Iterator[StoredExample]:
        """Yield the endless stream of stored images with their labels, without the first `skip` images."""
        num_images = 0
        for epoch in itertools.count():
            if epoch > 0 and skip >= num_images:
                skip -= num_images
                continue
            self.dataset.set_epoch(epoch)
            num_images = 0
            for batch in self.dataset.iter(batch_size=NUM_ROWS_READ):
                images, *columns = batch.columns if isinstance(batch, pa.Table) else batch.values()
                num_images += len(images)
                if num_images > skip:
                    first = max(0, len(images) - (num_images - skip))
                    images = images if isinstance(images, list) else stored_images(images)
                    labels = columns[0] if columns else [None] * len(images)
                    labels = labels if isinstance(labels, list) else labels.to_pylist()
                    yield from zip(images[first:], labels[first:], strict=True)
            if num_images == 0:
                raise ValueError(f"{self.where} holds no images.")
            skip = max(0, skip - num_images)

    def _decode(self, example: StoredExample, index: int) -> Example:
        image, label = example
        if self.options.num_classes is not None:
            labels = pc.subtract(pa.array([label], pa.int64()), self.first_label)
            check_classes(labels, self.options.num_classes, self.where, lambda row: image)
            label = labels[0].as_py()
        return decode_image(image, self.convert, index)[0], label

    def _finish(self, step: _Step) -> Iterator[Batch]:
        for indices in step.indices:
            pixels, labels = zip(*(self._decoded(step, index) for index in indices), strict=True)
            classes = None if self.options.num_classes is None else torch.tensor(labels)
            yield Batch(torch.from_numpy(np.stack(pixels)), torch.from_numpy(indices), classes)

    def _decoded(self, step: _Step, index: int) -> Example:
        """Return the image at a stream index, or the nearest decodable one before it in the step."""
        self.num_images += 1
        size = len(step.examples)  # a step starts at a multiple of it
        for back in range(size):
            example = step.examples[(index - back) % size]
            try:
                return step.decoded[index].result() if back == 0 else self._decode(example, index - back)
            except UndecodableImageError as error:
                if back == 0:
                    self._record_undecodable(f"{image_name(example[0], index)}: {error}")
        raise UndecodableImagesError(
            f"none of {size} consecutive images of {self.where} can be decoded; the first are: "
            f"{'; '.join(self.undecodable[:5])}."
        )

    def _record_undecodable(self, name: str) -> None:
        self.undecodable.append(name)
        count, share = len(self.undecodable), self.options.max_undecodable_share
        logger.warning(
            f"image cannot be decoded and is replaced by the one before it ({count} of {self.num_images}): {name}"
        )
        if count > share * self.num_images and (count > MIN_UNDECODABLE or share == 0):
            raise UndecodableLimit(share, self.num_images, self.where).error(self.undecodable)
