# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures from strangers: opened without blocking, decoded within bounds, or refused with a reason."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import decoder
from decoder import MAX_PIXELS, MAX_SIDE
from PIL import Image


MAX_FILE_SIZE = 20 * 2**20
# The decoder's own bound is processor time; this one holds on a busy machine too.
DECODE_SECONDS = 10


class UnreadableImageError(ValueError):
    """A picture that cannot be used; the message is a sentence for its sender."""


@dataclass(frozen=True)
class Upload:
    """
    A decoded picture.

    Args:
        image: The picture, upright, without metadata.
        notes: Remarks for the sender, in sentences.
        name: Name of the picture in messages.
    """

    image: Image.Image
    notes: tuple[str, ...] = ()
    name: str = "image"


def missing(name: str) -> str:
    return f"`{name}` is missing: upload, paste or pick a picture first."


def not_an_upload(name: str) -> str:
    """The one answer to whatever is not an upload, so that it does not tell which files exist."""
    return f"`{name}` must be a picture that was uploaded here within the last hour: upload it (again) first."


def read_upload(path: str | os.PathLike | None, name: str = "image") -> Upload:
    """
    Open and decode a picture.

    Args:
        path: File of the picture, or None if none was sent.
        name: Name of the picture in messages.

    Raises:
        UnreadableImageError: if there is no picture, it cannot be decoded, or it is too large.
    """
    if path is None:
        raise UnreadableImageError(missing(name))
    description, pixels = decode(read_bytes(path, name), name)
    if fault := description.get("fault"):
        width, height = description.get("width", 0), description.get("height", 0)
        reasons = {
            "format": "is not a picture that can be read; expected a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file.",
            "pixels": f"must have at most {MAX_PIXELS:,} pixels, got {width:,} x {height:,}.",
            "side": f"must be at most {MAX_SIDE:,} pixels wide and high, got {width:,} x {height:,}.",
            "damaged": "is damaged: only a part of it can be decoded.",
            "resources": "takes too much time or memory to decode: save it anew as a plain PNG or JPEG.",
        }
        raise UnreadableImageError(f"`{name}` {reasons[fault]}")
    image = Image.frombytes(description["mode"], tuple(description["size"]), pixels)
    notes = ("It has several frames: only the first frame is used.",) if description["several_frames"] else ()
    return Upload(image, notes, name)


def read_bytes(path: str | os.PathLike, name: str) -> bytes:
    """
    Return the content of a regular file of at most `MAX_FILE_SIZE` bytes. Links, devices and pipes are refused like
    files that do not exist; opening them does not block.
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


def decode(data: bytes, name: str) -> tuple[dict, bytes]:
    """
    Return the description and the pixels that `decoder.py` makes of a picture. It runs in another process, because
    nothing can stop a thread that decodes, say, a JPEG of ten thousand scans.
    """
    command = [sys.executable, "-P", str(Path(decoder.__file__))]
    try:
        finished = subprocess.run(command, input=data, capture_output=True, timeout=DECODE_SECONDS)
        description, _, pixels = finished.stdout.partition(b"\n")
        return json.loads(description), pixels
    except (subprocess.TimeoutExpired, ValueError):  # killed here, or by the kernel before it could answer
        return {"fault": "resources"}, b""
