# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The parts of an image: tiles of the model's size, and strips at the edges, which WebP codes without loss."""

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from .errors import CodecError


# The largest side of a WebP image.
LONGEST_SIDE = 16383
# Method 6 takes twice as long, and makes files of small images larger.
WEBP = {"lossless": True, "quality": 80, "method": 4}


class Region(NamedTuple):
    """Rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return this part of an image (H, W, C)."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


Shape = tuple[int, int]


def tiles(shape: Shape, tile_shape: Shape) -> Iterator[Region]:
    """Yield the tiles of an image of height and width `shape` in raster order, from its upper left corner."""
    (height, width), (tile_height, tile_width) = shape, tile_shape
    for top in range(0, height - tile_height + 1, tile_height):
        for left in range(0, width - tile_width + 1, tile_width):
            yield Region(top, left, tile_height, tile_width)


def num_tiles(shape: Shape, tile_shape: Shape) -> int:
    """Return the number of tiles of an image."""
    return (shape[0] // tile_shape[0]) * (shape[1] // tile_shape[1])


def strips(shape: Shape, tile_shape: Shape) -> Iterator[Region]:
    """Yield the strips beside and below the tiles of an image, or the whole image if it has no tile."""
    height, width = shape
    tiled_height, tiled_width = height // tile_shape[0] * tile_shape[0], width // tile_shape[1] * tile_shape[1]
    if not tiled_height or not tiled_width:
        tiled_height = tiled_width = 0
    yield from _pieces(Region(0, tiled_width, height, width - tiled_width))
    yield from _pieces(Region(tiled_height, 0, height - tiled_height, tiled_width))


def _pieces(region: Region) -> Iterator[Region]:
    for top in range(0, region.height, LONGEST_SIDE):
        for left in range(0, region.width, LONGEST_SIDE):
            height, width = min(LONGEST_SIDE, region.height - top), min(LONGEST_SIDE, region.width - left)
            yield Region(region.top + top, region.left + left, height, width)


def encode_webp(pixels: np.ndarray) -> bytes:
    """Return an image, uint8 (H, W, C) with 1 or 3 channels, as lossless WebP."""
    if pixels.shape[2] == 1:  # WebP has no gray images
        pixels = pixels.repeat(3, axis=2)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "webp", **WEBP)
    return buffer.getvalue()


def largest_webp(shape: Shape) -> int:
    """Return a number of bytes that no image of [`encode_webp`] with this height and width exceeds."""
    return 1024 + 6 * shape[0] * shape[1]


def decode_webp(data: bytes, shape: Shape, channels: int) -> np.ndarray:
    """
    Return the image of [`encode_webp`].

    Raises:
        CodecError: for data that are no WebP of this size.
    """
    if int.from_bytes(data[4:8], "little") + 8 != len(data):  # Pillow ignores what follows an image
        raise CodecError("the file is damaged: a part is no WebP image.")
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            if (image.height, image.width) != shape:
                raise CodecError("the file is damaged: a part has another size than its image.")
            return np.asarray(image.convert("RGB"))[:, :, :channels]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise CodecError(f"the file is damaged: a part is no WebP image: {error}") from error
