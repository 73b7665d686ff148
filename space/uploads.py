# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures that strangers send: opened with care, or refused in words that help."""

import os
from dataclasses import dataclass

from PIL import Image, ImageOps


MAX_FILE_SIZE = 20 * 2**20
MAX_PIXELS = 50_000_000
# Those of cameras, phones and browsers. Others of Pillow's are rarer, and some start programs (EPS) or are unguarded.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF")


class UnreadableImageError(ValueError):
    """A picture that cannot be used, and why, in a sentence for whoever sent it."""


@dataclass(frozen=True)
class Upload:
    """
    A picture as it was sent.

    Args:
        image: Decoded, turned upright.
        notes: What the sender should know, in sentences.
    """

    image: Image.Image
    notes: tuple[str, ...] = ()


def read_upload(path: str | os.PathLike | None, name: str = "image") -> Upload:
    """
    Opens a picture.

    Args:
        path: File that was sent, or None if none was.
        name: What the picture is called in messages.

    Raises:
        UnreadableImageError: if there is no picture, it cannot be decoded, or it is too large.
    """
    if path is None:
        raise UnreadableImageError(f"`{name}` is missing: upload, paste or pick a picture first.")
    size = os.path.getsize(path)
    if size > MAX_FILE_SIZE:
        raise UnreadableImageError(
            f"`{name}` must have at most {MAX_FILE_SIZE // 2**20} MB, got {size / 2**20:.1f} MB."
        )
    try:
        image = Image.open(path, formats=[name for name in FORMATS if name in supported_formats()])
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"`{name}` must have at most {MAX_PIXELS:,} pixels, got far more.") from None
    except Exception:
        raise UnreadableImageError(
            f"`{name}` is not a picture that can be read; expected a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file."
        ) from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImageError(
                f"`{name}` must have at most {MAX_PIXELS:,} pixels, got {image.width:,} x {image.height:,}."
            )
        notes = ("It is animated: this is its first frame.",) if getattr(image, "n_frames", 1) > 1 else ()
        try:
            # Decoders fail in many ways over a damaged file.
            return Upload(ImageOps.exif_transpose(image), notes)
        except Exception:
            raise UnreadableImageError(f"`{name}` is damaged: only a part of it can be decoded.") from None


def supported_formats() -> set[str]:
    """Formats that this Pillow was built with."""
    Image.init()
    return set(Image.OPEN)
