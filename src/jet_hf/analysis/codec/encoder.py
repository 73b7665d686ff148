# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Encoder: images, one after another, onto the stack of a file."""

import math
import zlib
from dataclasses import dataclass, field

import numpy as np

from .container import GROUP, STRIP, TILES
from .errors import CannotEncode
from .integer_flow import OFFSETS, IntegerFlow, Tally
from .regions import encode_webp, strips, tiles
from .stack import Stack


# Tiles of a group: with more, the conditioners are no faster.
LARGEST_GROUP = 32
# Tiles that are coded as WebP to have bits to borrow, at most: flat tiles have few bits however many there are.
MOST_FIRST_TILES = 8
# Bits that a tile borrows for each dimension, until the first group shows how many it is.
BORROWED_BITS = 14.0
# With fewer bits left, a group has borrowed all that the stack had.
EMPTY_BITS = 64


@dataclass
class Weight:
    """
    Size of a file and its parts.

    Args:
        num_bytes: Bytes of the whole file.
        num_dims: Number of dimensions of all images.
        is_webp: Whether the file holds plain WebP images, and none of the parts below.
        tally: Bits of the tiles that the flow encoded.
        stack_bits: Bits that these tiles added to the stack.
        tile_bytes: Bytes of the tiles that were coded as WebP.
        num_retries: Number of times that a group was encoded again, for a value near a rounding boundary.
    """

    num_bytes: int = 0
    num_dims: int = 0
    is_webp: bool = False
    tally: Tally = field(default_factory=Tally)
    stack_bits: int = 0
    tile_bytes: int = 0
    num_retries: int = 0

    @property
    def bits_per_dim(self) -> float:
        """Bits per dimension of the whole file; NaN without images."""
        return 8 * self.num_bytes / self.num_dims if self.num_dims else float("nan")


class Encoder:
    """
    Encoder of images with a flow.

    The strips of an image are pushed when it is added. Its tiles wait until they fill a group, which may have tiles of
    several images.

    Args:
        flow: Flow as integer maps.
    """

    def __init__(self, flow: IntegerFlow):
        self.flow, self.stack, self.weight = flow, Stack(), Weight()
        self.steps: list[list[int]] = []
        self.shapes: list[tuple[int, int]] = []
        self.checksums: list[int] = []
        self._tiles: list[np.ndarray] = []
        self._labels: list[int] = []
        self._borrowed = BORROWED_BITS * flow.config.num_dims
        self._has_first_bits = False

    def add(self, image: np.ndarray, label: int | None) -> None:
        """Add an image, uint8 (H, W, C), and its class."""
        shape = image.shape[0], image.shape[1]
        self.shapes.append(shape)
        self.checksums.append(zlib.crc32(image.tobytes()))
        self.weight.num_dims += image.size
        for region in strips(shape, self.flow.tile_shape):
            data = encode_webp(region.of(image))
            self.stack.push_bytes(data)
            self.steps.append([STRIP, len(data)])
        for region in tiles(shape, self.flow.tile_shape):
            self._tiles.append(region.of(image))
            self._labels += [] if label is None else [label]
            if len(self._tiles) == LARGEST_GROUP:
                self._encode_tiles()

    def finish(self) -> bytes:
        """Encode the last tiles, and return the stack."""
        while self._tiles:
            self._encode_tiles()
        return self.stack.to_bytes()

    def _encode_tiles(self) -> None:
        """Encode as many of the waiting tiles as can borrow their bits from the stack."""
        count = min(int(self.stack.num_bits // self._borrowed), len(self._tiles))
        if count == 0 and not self._has_first_bits:
            self._encode_first_tiles()
            return
        self._has_first_bits = True
        count = max(1, count)
        levels = np.stack(self._tiles[:count])
        labels = np.array(self._labels[:count], dtype=np.int64) if self._labels else None
        before = self.stack.save()
        num_bits = self.stack.num_bits
        for place, offset in enumerate(OFFSETS):
            try:
                tally = self.flow.encode(self.stack, levels, labels, offset)
            except CannotEncode:
                self.stack.restore(before)
                self.weight.num_retries += 1
                continue
            self.steps.append([GROUP, count, place])
            self.weight.tally.add(tally)
            self.weight.stack_bits += self.stack.num_bits - num_bits
            self._measure(num_bits, count)
            self._drop(count)
            return
        self._encode_as_webp(count)

    def _encode_first_tiles(self) -> None:
        for count in range(1, min(MOST_FIRST_TILES, len(self._tiles)) + 1):
            data = encode_webp(np.concatenate(self._tiles[:count]))
            if self.stack.num_bits + 8 * len(data) >= self._borrowed:
                break
        self._has_first_bits = True
        self._encode_as_webp(count)

    def _encode_as_webp(self, count: int) -> None:
        data = encode_webp(np.concatenate(self._tiles[:count]))
        self.stack.push_bytes(data)
        self.steps.append([TILES, count, len(data)])
        self.weight.tile_bytes += len(data)
        self._drop(count)

    def _measure(self, num_bits: int, count: int) -> None:
        """Learn from a group how many bits a tile borrows."""
        left = self.stack.fewest_bits
        if left is not None:
            # Other tiles may borrow more, the more so the fewer they are.
            borrowed = (num_bits - left) / count * (1 + 0.4 / math.sqrt(count))
            self._borrowed = max(borrowed, self._borrowed) if left < EMPTY_BITS else borrowed

    def _drop(self, count: int) -> None:
        self._tiles, self._labels = self._tiles[count:], self._labels[count:]
