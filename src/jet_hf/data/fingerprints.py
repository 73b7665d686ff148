# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Fingerprints of data. They depend on the content and not on its location, so that a moved dataset keeps its own."""

import hashlib
import os
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa


# Relative name, path and size in bytes of a file. The path is `None` where the name identifies the content.
StoredFile = tuple[str, str | None, int]
NUM_FILES_SAMPLED = 512
NUM_BLOCKS, BLOCK_SIZE = 16, 4096


def stored_files(root: str, names: Iterable[str]) -> Iterator[StoredFile]:
    """Yield the files with these names in a folder."""
    for name in names:
        path = os.path.join(root, name)
        yield name, path, os.path.getsize(path)


def fingerprint_of_rows(digests: pa.ChunkedArray) -> str:
    """Return the fingerprint of a sequence of images from their digests."""
    total = hashlib.blake2b(digest_size=8)
    for chunk in digests.chunks:
        total.update(b"".join(chunk.to_pylist()))
    return total.hexdigest()


def digest_of_row(pixels: np.ndarray, label: int | None) -> bytes:
    """Return the digest of an image and its label."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(f"{pixels.shape} {label}".encode())
    return digest.digest()


def fingerprint_of_files(files: Iterable[StoredFile]) -> str:
    """
    Return a fingerprint of the names and sizes of all files and of a sample of their bytes.

    Up to 512 evenly spaced files are sampled, each in 16 blocks of 4 KiB, which cover a file of up to 64 KiB.
    """
    files = list(files)
    total = hashlib.blake2b(digest_size=8)
    for name, _, size in files:
        total.update(f"{name}\0{size}\0".encode())
    for i in np.unique(np.linspace(0, len(files) - 1, min(NUM_FILES_SAMPLED, len(files))).astype(int)):
        _, path, size = files[i]
        if path is not None:
            with open(path, "rb") as file:
                for start in np.unique(np.linspace(0, max(0, size - BLOCK_SIZE), NUM_BLOCKS).astype(int)):
                    file.seek(int(start))
                    total.update(file.read(BLOCK_SIZE))
    return total.hexdigest()
