# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Folders that appear under their final name only when they are whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    Gives an empty folder to write to, and renames it to `path` at the end; after an exception nothing is left.

    Args:
        path: Final place of the folder; must not exist, or be an empty folder.

    Raises:
        FileExistsError: if there is something at `path` already.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} already exists and is not an empty folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        draft.chmod(0o755)
        yield draft
        for file in [*draft.rglob("*"), draft]:
            fsync(file)
        os.replace(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Makes sure that a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
