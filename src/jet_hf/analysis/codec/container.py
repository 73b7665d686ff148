# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The file: fixed fields, a header, and a body.

    4 bytes   magic number
    1 byte    version of the format
    1 byte    kind: 0 for the stack of a flow, 1 for plain WebP images one after another
    4 bytes   CRC-32 of all bytes but the magic number and this field
    4 bytes   number of bytes N of the header
    8 bytes   number of bytes M of the body
    N bytes   header, JSON compressed by zlib
    M bytes   body

All numbers are little-endian. Files may follow one another in one file, which then holds the images of all of them.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby

from .errors import CodecError


MAGIC = b"\x89JET"
VERSION = 1
FLOW, WEBP = 0, 1
FIXED = struct.Struct("<4sBBIIQ")
CHECKED = struct.Struct("<BBIQ")
# No file has a larger header: a billion images of equal size take a few bytes.
LARGEST_HEADER = 2**28

# Steps that made the body, in the order of the encoder.
STRIP, TILES, GROUP = 0, 1, 2


@dataclass
class Header:
    """
    Header of a file.

    Args:
        channels: Number of channels of all images.
        shapes: Runs `[count, height, width]` of images of equal shape.
        pixels: CRC-32 of the CRC-32s of all images, as little-endian words.
        names: Names of the images, or none.
        model: Fingerprint of the model, in hexadecimal digits; empty for plain WebP.
        settings: Fingerprint of the codec's tables and constants.
        steps: `[STRIP, num_bytes]`, `[TILES, num_tiles, num_bytes]` or `[GROUP, num_tiles, offset]`; the number of
            bytes of each image for plain WebP.
        labels: Runs `[count, label]` of the images' classes, or none.
    """

    channels: int
    shapes: list[list[int]]
    pixels: int
    names: list[str]
    model: str
    settings: str
    steps: list[list[int]]
    labels: list[list[int]]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(count for count, _, _ in self.shapes)

    def image_shapes(self) -> list[tuple[int, int]]:
        """Return height and width of each image."""
        return [(height, width) for count, height, width in self.shapes for _ in range(count)]

    def image_labels(self) -> list[int]:
        """Return the class of each image; empty without classes."""
        return [label for count, label in self.labels for _ in range(count)]


def runs(items: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """Return runs of equal items, each as its length and the item."""
    return [[len(list(group)), *item] for item, group in groupby(items)]


def checksum(image_checksums: Sequence[int]) -> int:
    """Return the CRC-32 of the CRC-32s of images."""
    return zlib.crc32(struct.pack(f"<{len(image_checksums)}I", *image_checksums))


def pack(kind: int, header: Header, body: bytes) -> bytes:
    """Return a file."""
    text = zlib.compress(json.dumps(asdict(header), separators=(",", ":"), allow_nan=False).encode(), 9)
    crc = zlib.crc32(body, zlib.crc32(text, zlib.crc32(CHECKED.pack(VERSION, kind, len(text), len(body)))))
    return FIXED.pack(MAGIC, VERSION, kind, crc, len(text), len(body)) + text + body


def unpack(data: bytes) -> Iterator[tuple[int, Header, memoryview]]:
    """
    Yield kind, header and body of each file in `data`.

    Raises:
        CodecError: for data that are no such files, or damaged.
    """
    rest = memoryview(data)
    while True:
        if bytes(rest[: len(MAGIC)]) != MAGIC[: max(1, len(rest))]:
            raise CodecError("the data are no file of `jet-hf compress`: they do not start with its magic number.")
        if len(rest) < FIXED.size:
            raise CodecError(f"the file is cut short: it must have at least {FIXED.size} bytes, got {len(rest)}.")
        _, version, kind, crc, header_size, body_size = FIXED.unpack(rest[: FIXED.size])
        if version != VERSION:
            raise CodecError(f"the file's format must be version {VERSION}, got {version}: it needs another jet_hf.")
        size = FIXED.size + header_size + body_size
        if len(rest) < size:
            raise CodecError(f"the file is cut short: it must have {size} bytes, got {len(rest)}.")
        found = zlib.crc32(rest[FIXED.size : size], zlib.crc32(CHECKED.pack(version, kind, header_size, body_size)))
        if found != crc:
            raise CodecError(f"the file is damaged: its checksum must be {crc:08x}, got {found:08x}.")
        text, body = rest[FIXED.size : FIXED.size + header_size], rest[FIXED.size + header_size : size]
        yield kind, _read_header(text), body
        rest = rest[size:]
        if not len(rest):
            return


def _read_header(text: memoryview) -> Header:
    try:
        content = json.loads(zlib.decompressobj().decompress(text, LARGEST_HEADER))
        header = Header(**content)
    except (zlib.error, ValueError, TypeError) as error:
        raise CodecError(f"the file's header cannot be read: {error}") from error
    expected = {
        "channels": lambda value: value in (1, 3),
        "shapes": lambda value: _are_rows(value, (3,), 1),
        "pixels": lambda value: isinstance(value, int),
        "names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "model": lambda value: isinstance(value, str),
        "settings": lambda value: isinstance(value, str),
        "steps": lambda value: _are_rows(value, (1, 2, 3), 0),
        "labels": lambda value: _are_rows(value, (2,), 0),
    }
    for item in fields(Header):
        if not expected[item.name](getattr(header, item.name)):
            raise CodecError(f"the file's header has a wrong field `{item.name}`.")
    return header


def _are_rows(rows: object, lengths: tuple[int, ...], least: int) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) in lengths
        and all(isinstance(number, int) and least <= number < 2**40 for number in row)
        for row in rows
    )
