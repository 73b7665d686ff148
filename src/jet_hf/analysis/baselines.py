# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Bits per dimension of what everybody has: image codecs, and the histogram of pixel values."""

import io

import numpy as np
from PIL import Image


def codec_bits_per_dim(pixels: np.ndarray, codec: str) -> np.ndarray:
    """
    Bits per dimension of each image as a lossless file of its own, headers included.

    Args:
        pixels: uint8 array (B, C, H, W) with 1 or 3 channels.
        codec: `"png"` or `"webp"`, at their highest effort in Pillow.

    Returns:
        float64 array (B,).
    """
    options = {"png": {"optimize": True}, "webp": {"lossless": True, "quality": 100, "method": 6}}[codec]
    bits = []
    for image in pixels:
        buffer = io.BytesIO()
        image = image.transpose(1, 2, 0)
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, codec, **options)
        bits.append(8 * buffer.tell() / image.size)
    return np.array(bits)


def histogram_bits_per_dim(train_pixels: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """
    Bits per dimension of each image under a model that draws every number on its own from the histogram of its
    channel in the training images, with one count added to each of the 256 levels.

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
