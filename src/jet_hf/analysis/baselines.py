# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Bits per dimension of baselines: lossless image codecs, and the histogram of pixel values."""

import io
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image


PILLOW_SETTINGS: dict[str, dict[str, Any]] = {
    "png": {"optimize": True},
    "webp": {"lossless": True, "quality": 100, "method": 6},
}
FAST_PILLOW_SETTINGS = PILLOW_SETTINGS | {"webp": {"lossless": True, "quality": 100, "method": 4}}


def available_codecs() -> list[str]:
    """Return the codecs of [`codec_bits_per_dim`] whose packages are installed."""
    return ["png", "webp", *(["jpegls", "jpegxl"] if find_spec("imagecodecs") else [])]


def codec_bits_per_dim(pixels: np.ndarray, codec: str, fast: bool = False) -> np.ndarray:
    """
    Return the bits per dimension of each image as a lossless file, headers included.

    Args:
        pixels: uint8 array (B, C, H, W) with 1 or 3 channels.
        codec: `"png"` or `"webp"`, at the highest effort in Pillow; `"jpegls"` or `"jpegxl"`, at the highest effort
            but the slowest two, which need imagecodecs.
        fast: Whether to compress at medium effort, which takes a tenth of the time.

    Returns:
        float64 array (B,).
    """
    bits = []
    for image in pixels:
        image = image.transpose(1, 2, 0)
        image = np.ascontiguousarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        bits.append(8 * len(encode_lossless(image, codec, fast)) / image.size)
    return np.array(bits)


def encode_lossless(image: np.ndarray, codec: str, fast: bool = False) -> bytes:
    """Return an image, uint8 (H, W) or (H, W, 3), as a lossless file, see [`codec_bits_per_dim`]."""
    if codec in PILLOW_SETTINGS:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, codec, **(FAST_PILLOW_SETTINGS if fast else PILLOW_SETTINGS)[codec])
        return buffer.getvalue()
    import imagecodecs

    if codec == "jpegls":
        return bytes(imagecodecs.jpegls_encode(image))
    return bytes(imagecodecs.jpegxl_encode(image, lossless=True, effort=5 if fast else 8))


def histogram_bits_per_dim(train_pixels: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """
    Return the bits per dimension of each image under independent histograms of the channels.

    The histograms count the 256 levels in the training images, with one count added to each level.

    Args:
        train_pixels: uint8 array (A, C, H, W).
        pixels: uint8 array (B, C, H, W).

    Returns:
        float64 array (B,).
    """
    bits = np.zeros(len(pixels))
    for channel in range(pixels.shape[1]):
        counts = np.bincount(train_pixels[:, channel].ravel(), minlength=256) + 1
        bits_of_level = -np.log2(counts / counts.sum())
        bits += bits_of_level[pixels[:, channel]].mean(axis=(1, 2))
    return bits / pixels.shape[1]
