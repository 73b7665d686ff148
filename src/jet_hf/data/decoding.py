# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Decoding of single images, from the stored file or array to an array of gray levels."""

import io
import os
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
from datasets.utils.file_utils import xopen
from PIL import Image

from ..model.configuration_jet import level_dtype
from ..model.image_processing_jet import JetImageProcessor, LevelsError, as_levels, to_numpy


# An encoded file as {"bytes", "path"}, a decoded array, or `None` where the image is missing.
StoredImage = dict | np.ndarray | None
Converter = Callable[[Image.Image | np.ndarray], np.ndarray]


class UndecodableImageError(ValueError):
    """An image cannot be decoded; the message gives the reason."""


def stored_images(column: pa.ChunkedArray) -> list[StoredImage]:
    """Return the images of a column without decoding them; arrays are views of Arrow's memory."""
    if not isinstance(column.type, pa.BaseExtensionType):
        return column.to_pylist()
    images: list[StoredImage] = []
    for chunk in column.chunks:
        values = chunk.storage
        for _ in column.type.shape:
            values = values.flatten()
        arrays = iter(values.to_numpy().reshape(-1, *column.type.shape))
        images += [next(arrays) if valid else None for valid in chunk.is_valid().to_pylist()]
    return images


def decode_image(image: StoredImage, convert: Converter, index: int = 0) -> tuple[np.ndarray, str | None]:
    """
    Decode a stored image and convert it to an array.

    Args:
        image: Stored image, see [`stored_images`].
        convert: Function from a PIL image or an array to an array.
        index: Index of the image, which names it in messages if it has no file name.

    Returns:
        The array, and the format of the file; `None` for an array.

    Raises:
        UndecodableImageError: if the image is missing, broken, larger than Pillow's limit, or cannot be converted.
        ValueError: if an array does not have the shape of an image, or an image contradicts the number of gray levels.
        OSError: if the file cannot be read, which need not be the fault of the image.
    """
    try:
        if isinstance(image, np.ndarray):
            return convert(image), None
        data = _read_file(image) if image is not None else None
        if data is None:
            raise UndecodableImageError("there is no image")
        return _decode_data(data, convert)
    except LevelsError as error:  # not a broken image but the wrong data
        raise ValueError(f"{image_name(image, index)}: {error}") from error


def _decode_data(data: bytes, convert: Converter) -> tuple[np.ndarray, str | None]:
    try:
        return _decode_file(data, convert)
    except (UndecodableImageError, LevelsError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:  # its message contains a memory address
        raise UndecodableImageError("Pillow does not recognize the file as an image") from error
    except Exception as error:  # codecs raise all kinds of errors for broken files
        raise UndecodableImageError(f"{type(error).__name__}: {error}") from error


def _read_file(image: dict) -> bytes | None:
    if image["bytes"] is not None or image["path"] is None:
        return image["bytes"]
    # `xopen` would interpret "::" and the like in a local path as parts of an address.
    open_path = open if os.path.isabs(image["path"]) else xopen
    with open_path(image["path"], "rb") as file:
        return file.read()


def _decode_file(data: bytes, convert: Converter) -> tuple[np.ndarray, str | None]:
    with Image.open(io.BytesIO(data)) as file:
        # Pillow itself only warns up to twice its limit.
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and file.width * file.height > limit:
            raise UndecodableImageError(f"{file.width} x {file.height} pixels exceed Pillow's limit of {limit}")
        return convert(file), file.format


def pixel_converter(processor: JetImageProcessor) -> Converter:
    """Return a function from an image to pixels (C, H, W), which passes arrays of this shape through unchanged."""
    return partial(_to_pixels, processor)


def _to_pixels(processor: JetImageProcessor, image: Image.Image | np.ndarray) -> np.ndarray:
    shape = (processor.num_channels, processor.size["height"], processor.size["width"])
    if isinstance(image, np.ndarray) and image.shape == shape:
        return check_levels(image, processor.num_levels)
    return processor.read_levels(image)


def check_levels(array: np.ndarray, num_levels: int) -> np.ndarray:
    """Return an array of uint8 or uint16 in the dtype of `num_levels`, or raise LevelsError for other levels."""
    return to_numpy(as_levels(array, num_levels)).astype(level_dtype(num_levels), copy=False)


def file_name(image: StoredImage) -> str | None:
    """Return the path of an image, or its name in a tar or table, or `None` if it has none."""
    return image.get("path") if isinstance(image, dict) else None


def image_name(image: StoredImage, index: int) -> str:
    """Return the file name of an image, or its index if it has none, for messages."""
    return file_name(image) or f"image {index}"


def random_crops(
    pixels: np.ndarray, height: int, width: int, num_crops: int, seed: int, index: int
) -> list[np.ndarray]:
    """
    Return crops (C, height, width) of an image (C, H, W) at random positions.

    The positions depend on `seed` and on the `index` of the image alone.

    Raises:
        ValueError: if the image is smaller than a crop.
    """
    rows, columns = pixels.shape[1:]
    if rows < height or columns < width:
        raise ValueError(f"image {index} has {rows} x {columns} pixels, fewer than the crop's {height} x {width}.")
    rng = np.random.default_rng([seed, index])
    corners = rng.integers(0, [rows - height + 1, columns - width + 1], size=(num_crops, 2))
    return [pixels[:, y : y + height, x : x + width] for y, x in corners]
