# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""From one image as it is stored to an array of bytes."""

import io
import os
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
from datasets.utils.file_utils import xopen
from PIL import Image

from ..model.image_processing_jet import JetImageProcessor


class UndecodableImageError(ValueError):
    """One image cannot be decoded; the message says why."""


def stored_images(column: pa.ChunkedArray) -> list[dict | np.ndarray | None]:
    """The images of a column as they are stored: files as `{"bytes", "path"}`, arrays (views of Arrow's memory)."""
    if not isinstance(column.type, pa.BaseExtensionType):
        return column.to_pylist()
    images = []
    for chunk in column.chunks:
        values = chunk.storage
        for _ in column.type.shape:
            values = values.flatten()
        arrays = iter(values.to_numpy().reshape(-1, *column.type.shape))
        images += [next(arrays) if valid else None for valid in chunk.is_valid().to_pylist()]
    return images


def decode_image(image: dict | np.ndarray | None, convert: Callable) -> tuple[np.ndarray, str | None]:
    """
    Decodes a stored image and converts it to an array.

    Args:
        image: See [`stored_images`].
        convert: From a PIL image or an array to an array.

    Returns:
        The array, and the format of the file; `None` where it was no file.

    Raises:
        UndecodableImageError: if the image is missing, broken, larger than Pillow's limit, or cannot be converted.
        ValueError: if an array is none of an image.
        OSError: if its file cannot be read, which may be no fault of the image.
    """
    if isinstance(image, np.ndarray):
        return convert(image), None
    data = _read_file(image) if image is not None else None
    if data is None:
        raise UndecodableImageError("there is no image")
    try:
        return _decode_file(data, convert)
    except (UndecodableImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:  # its message holds an address
        raise UndecodableImageError("it is no image that Pillow knows") from error
    except Exception as error:  # codecs raise all sorts of errors for broken files
        raise UndecodableImageError(f"{type(error).__name__}: {error}") from error


def _read_file(image: dict) -> bytes | None:
    if image["bytes"] is not None or image["path"] is None:
        return image["bytes"]
    # A local path may hold what would have a meaning in an address, such as "::".
    open_path = open if os.path.isabs(image["path"]) else xopen
    with open_path(image["path"], "rb") as file:
        return file.read()


def _decode_file(data: bytes, convert: Callable) -> tuple[np.ndarray, str]:
    with Image.open(io.BytesIO(data)) as file:
        # Pillow itself only warns up to twice its limit.
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and file.width * file.height > limit:
            raise UndecodableImageError(f"{file.width} x {file.height} pixels are more than Pillow's limit of {limit}")
        return convert(file), file.format


def pixel_converter(processor: JetImageProcessor) -> Callable:
    """From a PIL image or an array to pixels (C, S, S); an array of that shape holds pixels already."""
    return partial(_to_pixels, processor)


def _to_pixels(processor: JetImageProcessor, image: Image.Image | np.ndarray) -> np.ndarray:
    shape = (processor.num_channels, processor.size["height"], processor.size["width"])
    return image if isinstance(image, np.ndarray) and image.shape == shape else processor.to_uint8(image)


def image_name(image: dict | np.ndarray | None, index: int) -> str:
    """What an image is called in messages: its file's name if it has one."""
    path = image.get("path") if isinstance(image, dict) else None
    return path or f"image {index}"


def random_crops(pixels: np.ndarray, image_size: int, num_crops: int, seed: int, index: int) -> list[np.ndarray]:
    """Crops (C, image_size, image_size) of an image (C, H, W), which `seed` and the image's `index` draw."""
    if min(pixels.shape[1:]) < image_size:
        raise ValueError(f"image {index} has {pixels.shape[1:]} pixels, fewer than the crop's {image_size}.")
    rng = np.random.default_rng([seed, index])
    places = rng.integers(0, np.array(pixels.shape[1:]) - image_size + 1, size=(num_crops, 2))
    return [pixels[:, y : y + image_size, x : x + image_size] for y, x in places]
