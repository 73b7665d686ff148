# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that appear under their final name only when they are whole, and strict JSON to fill them."""

import json
import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: str | os.PathLike, replaces: str | None = None) -> Iterator[Path]:
    """
    Gives an empty folder to write to, and renames it to `path` at the end; after an exception nothing is left.

    Args:
        path: Final place of the folder.
        replaces: Name of a file by which a folder at `path` is known as an earlier version, to be replaced.

    Raises:
        FileExistsError: see [`check_is_free`].
    """
    check_is_free(path, replaces)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not named after the folder, whose name may be as long as the file system allows.
    draft = Path(tempfile.mkdtemp(prefix=".draft.", dir=path.parent))
    try:
        draft.chmod(0o777 & ~_umask())
        yield draft
        publish_folder(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write a hidden draft, and give it its name once all of it is on the disk."""
    name = os.fsencode(f".{path.name}")[: os.pathconf(path.parent, "PC_NAME_MAX")]
    draft = path.with_name(os.fsdecode(name))
    write(draft)
    fsync(draft)
    os.replace(draft, path)
    fsync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """[`replace_file`] by a text."""
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def strict_json(value: object, **options) -> str:
    """
    Serialize a value as standard JSON, in which unknown numbers are null.

    Python's own NaN and Infinity are not JSON: strict parsers, the Hub's among them, refuse the whole file.

    Args:
        value: Dictionaries, lists, strings, numbers, booleans and `None`.
        options: Keyword arguments of `json.dumps`.
    """
    return json.dumps(_null_unless_finite(value), allow_nan=False, **options)


def _null_unless_finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _null_unless_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_unless_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def publish_folder(draft: Path, path: Path) -> None:
    """Gives a finished folder its final name, once all of it is on the disk; what was there is replaced."""
    for file in [*draft.rglob("*"), draft]:
        if file.is_file():
            _open_to_others(file)
        fsync(file)
    replace_folder(draft, path)
    fsync(path.parent)


def publish_files(draft: Path, folder: Path, last: str) -> None:
    """
    Moves the files of a finished draft into a folder that holds other things, each replacing its earlier version.

    Args:
        draft: Folder on the same disk; gone afterwards.
        folder: Their final place.
        last: Name of the file without which the others are not looked at; moved last.
    """
    files = sorted(draft.iterdir(), key=lambda file: file.name == last)
    for file in files:
        _open_to_others(file)
        fsync(file)
    for file in files:
        os.replace(file, folder / file.name)
    fsync(folder)
    draft.rmdir()


def replace_folder(new: Path, path: Path) -> None:
    """Renames the folder `new` to `path`; what was there is moved aside first and deleted last."""
    old = new.with_name(new.name + ".old")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        if old.exists():
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_is_free(path: str | os.PathLike, replaces: str | None = None) -> None:
    """
    Raises FileExistsError if there is something at `path` already, other than an empty folder or, where `replaces` is
    given, a folder with a file of that name.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if replaces is None or not (path / replaces).is_file():
        known = "" if replaces is None else f", nor one with a file {replaces}"
        raise FileExistsError(f"{path} already exists and is not an empty folder{known}.")


def _open_to_others(file: Path) -> None:
    """Give a file the permissions of any new file; the writers of weights make theirs private."""
    file.chmod(0o666 & ~_umask())


def _umask() -> int:
    # It can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def fsync(path: Path) -> None:
    """Makes sure that a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shared_command(argv: list[str]) -> str:
    """A command line that others may see: of folders and files of this machine only the last part."""
    parts = []
    for part in argv:
        flag, equals, value = part.partition("=") if part.startswith("--") else ("", "", part)
        parts.append(flag + equals + (Path(value).name if os.path.isabs(value) else value))
    return shlex.join(parts)
