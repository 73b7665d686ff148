# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Decoder: the images of a file, with a memory that does not grow with their number."""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np

from .container import GROUP, STRIP, Header, checksum
from .encoder import LARGEST_GROUP
from .errors import CodecError
from .integer_flow import OFFSETS, IntegerFlow
from .regions import Region, Shape, decode_webp, largest_webp, num_tiles, strips, tiles
from .stack import Stack


DAMAGED = "the file is damaged: its parts do not fit its images."


def decode_webp_images(header: Header, body: memoryview) -> Iterator[tuple[int, np.ndarray]]:
    """
    Yield index and pixels of each image of a file of plain WebP images, uint8 (H, W, C).

    Raises:
        CodecError: for a body that does not fit the header.
    """
    sizes = [size for (size,) in header.steps] if all(len(step) == 1 for step in header.steps) else []
    if len(sizes) != header.num_images or sum(sizes) != len(body):
        raise CodecError(DAMAGED)
    start, checksums = 0, []
    for i, (size, shape) in enumerate(zip(sizes, header.image_shapes(), strict=True)):
        image = decode_webp(bytes(body[start : start + size]), shape, header.channels)
        start += size
        checksums.append(zlib.crc32(image.tobytes()))
        yield i, image
    check_pixels(header, checksums)


def decode_stack(flow: IntegerFlow, header: Header, body: memoryview) -> Iterator[tuple[int, np.ndarray]]:
    """
    Yield index and pixels of each image of a file, uint8 (H, W, C), as they become complete: roughly from the last to
    the first.

    Raises:
        CodecError: for a body that does not fit the header, or images without its checksum. The images have been
            yielded by then.
    """
    _check_steps(header, flow.tile_shape)
    _check_labels(header, flow.config.num_classes)
    try:
        stack = Stack(bytes(body))
    except ValueError as error:
        raise CodecError(DAMAGED) from error
    decoder = _StackDecoder(flow, header, stack)
    for step in reversed(header.steps):
        yield from decoder.decode(step)
    if stack.num_bits:
        raise CodecError(DAMAGED)
    check_pixels(header, decoder.checksums)


def check_pixels(header: Header, checksums: list[int]) -> None:
    """Raise CodecError unless images have the checksum of the header."""
    if checksum(checksums) != header.pixels:
        raise CodecError(
            f"the decoded images must have the checksum {header.pixels:08x}, got {checksum(checksums):08x}: this "
            "machine computes the model's conditioners with other rounding errors than the codec allows for."
        )


def _check_steps(header: Header, tile_shape: Shape) -> None:
    """Raise CodecError unless the steps have the tiles and strips of the images."""
    counts = [0, 0]
    for kind, *numbers in header.steps:
        if kind == STRIP and len(numbers) == 1:
            counts[0] += 1
        elif kind <= GROUP and len(numbers) == 2 and numbers[0] <= LARGEST_GROUP:
            counts[1] += numbers[0]
        else:
            raise CodecError(DAMAGED)
        if kind == GROUP and (numbers[0] == 0 or numbers[1] >= len(OFFSETS)):
            raise CodecError(DAMAGED)
    for count, height, width in header.shapes:
        counts[0] -= count * len(list(strips((height, width), tile_shape)))
        counts[1] -= count * num_tiles((height, width), tile_shape)
    if any(counts):
        raise CodecError(DAMAGED)


def _check_labels(header: Header, num_classes: int | None) -> None:
    """Raise CodecError unless there is a class for each image of a class-conditional model."""
    count = 0 if num_classes is None else header.num_images
    if sum(run for run, _ in header.labels) != count or any(label > (num_classes or 0) for _, label in header.labels):
        raise CodecError(DAMAGED)


class _StackDecoder:
    """Decoder of the steps of a stack, the last one first."""

    def __init__(self, flow: IntegerFlow, header: Header, stack: Stack):
        self.flow, self.stack, self.channels = flow, stack, header.channels
        self.shapes, self.labels = header.image_shapes(), header.image_labels()
        self.checksums = [0] * len(self.shapes)
        self._tiles = self._backwards(tiles)
        self._strips = self._backwards(strips)
        self._open: dict[int, np.ndarray] = {}
        self._missing: dict[int, int] = {}

    def _backwards(self, regions_of: Callable[[Shape, Shape], Iterator[Region]]) -> Iterator[tuple[int, Region]]:
        """Yield the regions of all images from the last to the first, with the index of the image."""
        for i in reversed(range(len(self.shapes))):
            regions = list(regions_of(self.shapes[i], self.flow.tile_shape))
            yield from ((i, region) for region in reversed(regions))

    def decode(self, step: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Undo a step of the encoder, and yield the images that it completes."""
        kind, *numbers = step
        height, width = self.flow.tile_shape
        if kind == STRIP:
            places = [next(self._strips)]
            parts: Iterable[np.ndarray] = [self._decode_webp(numbers[0], places[0][1][2:])]
        else:
            count, last = numbers
            places = list(islice(self._tiles, count))[::-1]
            if kind == GROUP:
                labels = np.array([self.labels[i] for i, _ in places]) if self.labels else None
                parts = self.flow.decode(self.stack, count, labels, OFFSETS[last])
            else:
                parts = np.split(self._decode_webp(last, (count * height, width)), count)
        for (i, region), pixels in zip(places, parts, strict=True):
            if i not in self._open:
                self._open[i] = np.empty((*self.shapes[i], self.channels), dtype=np.uint8)
                self._missing[i] = math.prod(self.shapes[i])
            region.of(self._open[i])[:] = pixels
            self._missing[i] -= region.height * region.width
            if self._missing[i] == 0:
                image = self._open.pop(i)
                self.checksums[i] = zlib.crc32(image.tobytes())
                yield i, image

    def _decode_webp(self, size: int, shape: Shape) -> np.ndarray:
        if size > largest_webp(shape):
            raise CodecError(DAMAGED)
        return decode_webp(self.stack.pop_bytes(size), shape, self.channels)
