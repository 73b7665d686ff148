# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Datasets of all kinds as batches of bytes. Pixels stay uint8 until they reach the device."""

from .batches import Batch, BatchSharding, PixelImages, eval_batches, read_pixels, train_batches
from .columns import find_image_column
from .pixels import PixelSplit, ReadOptions, UndecodableImagesError, load_pixels
from .releases import RELEASES, Release, check_release
from .sources import (
    DataSource,
    can_hold_out,
    held_out_split,
    known_release,
    label_column_of,
    open_split,
    split_to_score,
    stream_fingerprint,
)
from .splits import HELD_OUT, KEPT, UnknownSplitError
from .streaming import stream_batches


__all__ = [
    "HELD_OUT",
    "KEPT",
    "RELEASES",
    "Batch",
    "BatchSharding",
    "DataSource",
    "PixelImages",
    "PixelSplit",
    "ReadOptions",
    "Release",
    "UndecodableImagesError",
    "UnknownSplitError",
    "can_hold_out",
    "check_release",
    "eval_batches",
    "find_image_column",
    "held_out_split",
    "known_release",
    "label_column_of",
    "load_pixels",
    "open_split",
    "read_pixels",
    "split_to_score",
    "stream_batches",
    "stream_fingerprint",
    "train_batches",
]
