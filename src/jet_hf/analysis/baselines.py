# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Bits per dimension of baselines: lossless image codecs, and the histogram of pixel values."""

import io

import numpy as np
from PIL import Image


def codec_bits_per_dim(pixels: np.ndarray, codec: str) -> np.ndarray:
    """
    Return the bits per dimension of each image as a lossless file, headers included.

    Args:
        pixels: uint8 array (B, C, H, W) with 1 or 3 channels.
        codec: `"png"` or `"webp"`, at the highest effort in Pillow.

    Returns:
        float64 array (B,).
    """
    settings: dict[str, dict[str, int]] = {
        "png": {"optimize": True},
        "webp": {"lossless": True, "quality": 100, "method": 6},
    }
    bits = []
    for image in pixels:
        buffer = io.BytesIO()
        image = image.transpose(1, 2, 0)
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, codec, **settings[codec])
        bits.append(8 * buffer.tell() / image.size)
    return np.array(bits)


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
