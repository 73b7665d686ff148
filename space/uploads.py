# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Untrusted images: opened without blocking and decoded with bounded resources, or refused with a reason."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import decoder
from decoder import MAX_PIXELS, MAX_SIDE
from PIL import Image


MAX_FILE_SIZE = 20 * 2**20
# The decoder limits its own processor time. This limit also holds on a busy machine.
DECODE_SECONDS = 10


class UnreadableImageError(ValueError):
    """Image that cannot be used. The message is meant for its sender."""


def missing(name: str) -> str:
    """Return the error message for a missing image."""
    return f"`{name}` is missing: upload, paste or choose an image first."


def not_an_upload(name: str) -> str:
    """Return the one error message for all that is not an upload. It must not reveal which files exist."""
    return f"`{name}` must be a file that was uploaded here within the last hour: upload it (again) first."


def read_upload(path: str | os.PathLike, name: str = "image") -> tuple[Image.Image, tuple[str, ...]]:
    """
    Open and decode an image.

    Args:
        path: Path of the image.
        name: Name of the image in messages.

    Returns:
        The upright image without metadata, and remarks for its sender, as sentences.

    Raises:
        UnreadableImageError: If the file is not a decodable image, or is too large.
    """
    description, pixels = decode(read_bytes(path, name))
    if fault := description.get("fault"):
        width, height = description.get("width", 0), description.get("height", 0)
        reasons = {
            "format": "must be a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF image, got a file of another format.",
            "pixels": f"must have at most {MAX_PIXELS:,} pixels, got {width:,} x {height:,}.",
            "side": f"must be at most {MAX_SIDE:,} pixels wide and high, got {width:,} x {height:,}.",
            "damaged": "is damaged: only a part of it can be decoded.",
            "resources": "takes too much time or memory to decode: save it again as a plain PNG or JPEG.",
        }
        raise UnreadableImageError(f"`{name}` {reasons[fault]}")
    image = Image.frombytes(description["mode"], tuple(description["size"]), pixels)
    notes = ("The file has several frames; only the first is used.",) if description["several_frames"] else ()
    return image, notes


def read_bytes(path: str | os.PathLike, name: str) -> bytes:
    """
    Return the content of a regular file of at most `MAX_FILE_SIZE` bytes.

    Links, devices and pipes are refused like files that do not exist, and opening them does not block.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError):
        raise UnreadableImageError(not_an_upload(name)) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnreadableImageError(not_an_upload(name))
    with open(descriptor, "rb") as file:
        data = file.read(MAX_FILE_SIZE + 1) if status.st_size <= MAX_FILE_SIZE else b""
    size = max(status.st_size, len(data))
    if size > MAX_FILE_SIZE:
        raise UnreadableImageError(
            f"`{name}` must have at most {MAX_FILE_SIZE // 2**20} MB, got {size / 2**20:.1f} MB."
        )
    return data


def decode(data: bytes) -> tuple[dict, bytes]:
    """Run `decoder.py`, because a thread that decodes a JPEG of ten thousand scans could not be stopped."""
    command = [sys.executable, "-P", str(Path(decoder.__file__))]
    try:
        finished = subprocess.run(command, input=data, capture_output=True, timeout=DECODE_SECONDS)
        description, _, pixels = finished.stdout.partition(b"\n")
        return json.loads(description), pixels
    except (subprocess.TimeoutExpired, ValueError):  # killed here, or by the kernel before it could answer
        return {"fault": "resources"}, b""
