# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Atomic writes of files and folders, and strict JSON."""

import json
import math
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: str | os.PathLike, replaces: str | None = None) -> Iterator[Path]:
    """
    Yield an empty draft folder that is renamed to `path` on success and deleted on failure.

    Args:
        path: Final path of the folder.
        replaces: Name of a file that marks an existing folder at `path` as an earlier version to replace.

    Raises:
        FileExistsError: see [`check_is_free`].
    """
    check_is_free(path, replaces)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name of the draft does not contain that of the folder, which may be as long as the file system allows.
    draft = path.parent / f".draft.{secrets.token_hex(8)}"
    draft.mkdir()
    try:
        yield draft
        publish_folder(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: call `write` with a hidden draft, flush the draft to the disk, and rename it."""
    name = os.fsencode(f".{path.name}")[: os.pathconf(path.parent, "PC_NAME_MAX")]
    draft = path.with_name(os.fsdecode(name))
    draft.unlink(missing_ok=True)
    mode = _mode_of_new(draft)
    write(draft)
    draft.chmod(mode)
    fsync(draft)
    os.replace(draft, path)
    fsync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def strict_json(value: object, **options) -> str:
    """
    Serialize a value as standard JSON, with null in place of NaN and infinity.

    Python writes NaN and Infinity by default, which strict parsers, such as the Hub's, reject.

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
    """Flush a finished draft folder to the disk and rename it to `path`, replacing an existing folder."""
    files = [*draft.rglob("*"), draft]
    mode = _default_mode(draft)
    for file in files:
        if file.is_file():
            file.chmod(mode)
        fsync(file)
    replace_folder(draft, path)
    fsync(path.parent)


def publish_files(draft: Path, folder: Path, last: str) -> None:
    """
    Move the files of a finished draft into an existing folder, replacing their earlier versions.

    Args:
        draft: Folder on the same file system; it is removed.
        folder: Destination, which may hold other files.
        last: Name of the file to move last, without which readers ignore the others.
    """
    files = sorted(draft.iterdir(), key=lambda file: file.name == last)
    mode = _default_mode(draft)
    for file in files:
        file.chmod(mode)
        fsync(file)
    for file in files:
        os.replace(file, folder / file.name)
    fsync(folder)
    draft.rmdir()


def replace_folder(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`; an existing folder is moved aside first and deleted last."""
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
    Check that nothing would be overwritten by a new folder at `path`.

    Args:
        path: Path that must not exist, or be an empty folder.
        replaces: Name of a file; a folder that contains it is accepted too.

    Raises:
        FileExistsError: if there is anything else at `path`.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if replaces is None or not (path / replaces).is_file():
        marked = "" if replaces is None else f" or a folder with a file {replaces}"
        raise FileExistsError(f"{path} already exists and is not an empty folder{marked}.")


def _default_mode(folder: Path) -> int:
    """Return the permissions of a new file in a folder, which safetensors does not give to the files of weights."""
    probe = folder / ".mode"
    mode = _mode_of_new(probe)
    probe.unlink()
    return mode


def _mode_of_new(file: Path) -> int:
    # The umask can only be read by changing it, which would affect the files that other threads create meanwhile.
    file.touch()
    return stat.S_IMODE(file.stat().st_mode)


def fsync(path: Path) -> None:
    """Flush the bytes of a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shared_command(argv: list[str]) -> str:
    """Return a command line that is safe to publish: absolute paths are reduced to their last part."""
    parts = []
    for part in argv:
        flag, equals, value = part.partition("=") if part.startswith("--") else ("", "", part)
        parts.append(flag + equals + (Path(value).name if os.path.isabs(value) else value))
    return shlex.join(parts)
