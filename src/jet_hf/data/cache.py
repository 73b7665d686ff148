# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Cached results of files: the stamps that are part of their keys, and the folder that holds them."""

import os
from pathlib import Path
from typing import NamedTuple

import datasets


class Stamp(NamedTuple):
    """Size, modification time and inode of a file. Cached results stay valid as long as the stamp does."""

    size: int
    mtime_ns: int
    inode: int


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file from its status."""
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def cache_file(name: str) -> Path:
    """Return the path of a file in jet_hf's folder in the cache of `datasets`, which is created if needed."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "jet_hf"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
