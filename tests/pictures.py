"""Image files that visitors may send: unusual ones that are accepted, and ones that are refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


SIDE = 40
NOT_AN_IMAGE = "must be a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF image, got a file of another format"


def photograph() -> Image.Image:
    """Return an image without symmetry."""
    rows, columns = np.mgrid[0:SIDE, 0 : SIDE + 8]
    pixels = np.stack([5 * rows, 5 * columns, 3 * (rows + columns) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def write_good(folder: Path) -> dict[str, Path]:
    """Write images of many formats and modes, and return their paths by name."""
    image, files = photograph(), {}

    def save(name: str, picture: Image.Image, **options):
        files[name] = folder / name
        picture.save(files[name], **options)

    save("plain.png", image)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("rotated.jpg", image.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=100, subsampling=0)
    junk = b"Exif\0\0" + b"II*\0" + bytes(4) + b"\xff" * 40
    save("junk_exif.jpg", image, exif=junk, quality=100, subsampling=0)
    # Needs a rotation, and has a resolution that is text, which Pillow cannot write again.
    junk = b"Exif\0\0MM\0*" + struct.pack(">IH HHIHH HHII I", 8, 2, 0x0112, 3, 1, 6, 0, 0x011A, 2, 1, 0, 0)
    save("broken_exif.jpg", image.transpose(Image.Transpose.ROTATE_90), exif=junk, quality=100, subsampling=0)
    save("cmyk.jpg", image.convert("CMYK"))
    save("gray_alpha.png", image.convert("LA"))
    save("palette.gif", image.convert("P"))
    save("bilevel.png", image.convert("1"))
    gray = np.asarray(image.convert("L"))
    save("16bit.png", Image.fromarray(gray.astype(np.uint16) * 257))
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.fromarray(255 - gray))
    save("alpha.webp", transparent, lossless=True)
    save("animated.gif", image, save_all=True, append_images=[Image.new("RGB", image.size)])
    save("one_pixel.png", Image.new("RGB", (1, 1), "red"))
    save("thin.png", image.resize((300, 2)))
    save("big.tiff", image.resize((2000, 1500)))
    save("no_name", image, format="PNG")
    return files


def write_bad(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write files that cannot be scored, and return their paths and a part of the error message by name."""
    whole = write_good(folder)["plain.png"].read_bytes()
    Image.fromarray(np.full((64, 64), 0.5, dtype=np.float32)).save(folder / "float.tiff")
    contents = {
        "text.png": (b"not a picture", NOT_AN_IMAGE),
        "empty.png": (b"", NOT_AN_IMAGE),
        "cut_off.png": (whole[: len(whole) // 2], "is damaged"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', NOT_AN_IMAGE),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", NOT_AN_IMAGE),
        "page.html": (b"<script>alert(1)</script>", NOT_AN_IMAGE),
        "bomb.png": (png_of_size(20_000, 20_000), "must have at most 50,000,000 pixels"),
        "large.png": (png_of_size(8_000, 7_000), "must have at most 50,000,000 pixels, got 8,000 x 7,000"),
        "line.png": (png_of_size(1, 49_999_999), "must be at most 16,384 pixels wide and high, got 1 x 49,999,999"),
        "float.tiff": ((folder / "float.tiff").read_bytes(), "is ambiguous"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: (folder / name, message) for name, (_, message) in contents.items()}


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size, and which contains one row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(width + 1))) + chunk(b"IEND", b"")


def jpeg_of_scans(side: int, repetitions: int) -> bytes:
    """Return a JPEG of few bytes with many scans, each of which covers all pixels."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 99).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * repetitions + content[-2:]
