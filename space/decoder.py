# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Decode one image from standard input in a separate process, which can be killed and whose memory is bounded.

Standard output receives one line of JSON, followed by the pixels if the image could be decoded. `uploads.py` starts
this program.
"""

import io
import json
import sys

from PIL import Image


MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384
MAX_CPU_SECONDS = 8
MAX_MEMORY = 2 * 2**30
# Formats of cameras, phones and browsers. Pillow's other formats are rare, and some start programs (EPS).
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def limit_resources() -> None:
    """Let the kernel end this process if an image takes too much time or memory."""
    try:
        import resource
    except ImportError:  # on Windows, only the caller's time limit applies
        return
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. Pillow's `exif_transpose` fails on damaged EXIF data; here it is ignored."""
    try:
        method = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION))
    except Exception:
        return image
    return image if method is None else image.transpose(method)


def has_second_frame(image: Image.Image) -> bool:
    """Return whether there is a second frame, without counting all frames."""
    try:
        image.seek(1)
    except Exception:
        return False
    return True


def decode(data: bytes) -> tuple[dict, bytes]:
    """Return a description of the image or of the fault, and the pixels of the first frame."""
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # the limits below are tighter
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except Exception:
        return {"fault": "format"}, b""
    size = {"width": image.width, "height": image.height}
    if image.width * image.height > MAX_PIXELS:
        return {"fault": "pixels", **size}, b""
    if max(image.size) > MAX_SIDE:
        return {"fault": "side", **size}, b""
    try:
        frame = upright(image)
        frame.load()
        if frame.mode in ("1", "L", "P", "PA", "RGB"):
            is_transparent = frame.mode == "PA" or "transparency" in frame.info
            frame = frame.convert("RGBA" if is_transparent else "RGB")
        # The pixels leave this process, the metadata does not.
        pixels, description = frame.tobytes(), {"mode": frame.mode, "size": frame.size}
    except MemoryError:
        return {"fault": "resources"}, b""
    except Exception:  # decoders raise many kinds of errors for a damaged file
        return {"fault": "damaged"}, b""
    return {**description, "several_frames": has_second_frame(image)}, pixels


if __name__ == "__main__":
    limit_resources()
    description, pixels = decode(sys.stdin.buffer.read())
    sys.stdout.buffer.write(json.dumps(description, allow_nan=False).encode() + b"\n")
    sys.stdout.buffer.write(pixels)
