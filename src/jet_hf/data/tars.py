# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tar shards in the webdataset format: every picture in them is one image."""

import bz2
import gzip
import json
import logging
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from posixpath import dirname, join, normpath

import datasets
from datasets.fingerprint import Hasher

from ..utils.files import replace_text, strict_json
from .columns import is_picture
from .folders import Examples, Stamp, plural


logger = logging.getLogger(__name__)

CLASS_MEMBER = "cls"
# What webdatasets hold beside their pictures.
COMPANIONS = {"cls", "json", "txt"}
NUM_SAMPLES_LOOKED_AT = 5
END_OF_TAR = 1024
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def open_tars(
    paths: list[str], image_column: str | None, label_column: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Return the pictures of tar files in order, in one column, with their classes in another if they have any.

    A link counts as the file in the same tar that it points to. The members that are passed over are logged at each
    start, or, of a stream, at the end of each pass.

    Args:
        paths: Tar files, compressed or not.
        image_column: Ending of the members to read, such as `jpg`, where only these are meant; by default every member
            with the suffix of a picture, in any case, is one image.
        label_column: Ending of the members that hold the classes as text, or the key of the classes in members
            `.json`; by default `cls` where the first samples have such a member.
        streaming: Whether to read the files anew at each pass instead of copying them to the cache of `datasets`.

    Raises:
        ValueError: if a file is no tar file, or holds no picture among its first samples.
    """
    for path in paths:
        _check_end(path)
    if label_column is None and _has_classes(paths[0]):
        label_column = CLASS_MEMBER
    image_column = image_column and image_column.lower()
    features = datasets.Features({image_column or "image": datasets.Image(decode=False)})
    if label_column is not None:
        features[label_column] = datasets.Value("int64")
    stamps = [Stamp.of(os.stat(path)) for path in paths]  # `datasets` caches the result by them
    arguments = {"paths": paths, "stamps": stamps, "image_column": image_column, "label_column": label_column}
    if streaming:
        return datasets.IterableDataset.from_generator(
            _rows, features=features, gen_kwargs=arguments | {"notes": None}
        )
    # What is passed over is kept beside the cached rows, since those are read from the tars only once.
    notes = Path(datasets.config.HF_DATASETS_CACHE) / "jet_hf" / f"{Hasher.hash(arguments)}.json"
    notes.parent.mkdir(parents=True, exist_ok=True)
    arguments["notes"] = str(notes)
    dataset = datasets.Dataset.from_generator(_rows, features=features, gen_kwargs=arguments)
    if not notes.exists():
        deque(_rows(**arguments), maxlen=0)
    for note in json.loads(notes.read_text(encoding="utf-8")):
        logger.warning("%s", note)
    return dataset


def _rows(
    paths: list[str], stamps: list[Stamp], image_column: str | None, label_column: str | None, notes: str | None
) -> Iterator[dict]:
    """Yield the pictures; log the members that are passed over, or write the sentences on them to the file `notes`."""
    sentences = []
    for path in paths:
        passed_over, unreadable, count = Examples(), Examples(), 0
        for _, members in _samples(path):
            pictures, label = [], None
            for name, ending, data in members:
                if os.path.basename(name).startswith("."):  # macOS adds files such as ._photo.jpg
                    passed_over.add(name)
                elif data is None:
                    unreadable.add(name)
                elif ending == image_column or (image_column is None and is_picture(name)):
                    pictures.append((name, data))
                elif label_column is not None and ending == label_column:
                    label = _class_of(data, path, name)
                elif label_column is not None and ending == "json":
                    label = _class_in_json(data, label_column, path, name, label)
                elif ending not in COMPANIONS:
                    passed_over.add(name)
            for name, data in pictures:
                row = {image_column or "image": {"bytes": data, "path": name}}
                yield row if label_column is None else row | {label_column: label}
            count += len(pictures)
        if passed_over.count or unreadable.count or not count:
            sentence = (
                f"{path}: found {count} {plural('picture', count)}; passed over {passed_over.count} other "
                f"{plural('member', passed_over.count)}: {passed_over if passed_over.count else 'none'}"
            )
            if unreadable.count:
                sentence += (
                    f"; and {unreadable.count} {plural('member', unreadable.count)} without data (no file, "
                    f"or a link to no file in the tar): {unreadable}"
                )
            sentences.append(f"{sentence}.")
            if notes is None:
                logger.warning("%s", sentences[-1])
    if notes is not None:
        replace_text(Path(notes), strict_json(sentences))


def _samples(path: str) -> Iterator[tuple[str, Iterator[tuple[str, str, bytes | None]]]]:
    """Yield the members that follow each other with one name up to the first dot, each as name, ending and data."""
    return groupby(_members(path), key=lambda member: member[0][: len(member[0]) - len(member[1])])


def _members(path: str) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield name, ending and data of a tar's members other than folders; the data are `None` where there are none."""
    links = None
    try:
        with ExitStack() as opened:
            file = opened.enter_context(open(path, "rb"))
            tar = opened.enter_context(tarfile.open(fileobj=file, mode="r|*"))
            for member in tar:
                if member.isdir():
                    continue
                if member.isfile():
                    data = tar.extractfile(member).read()
                else:
                    links = links or _Links(opened.enter_context(_random_access(path)))
                    data = links.read(member)
                yield member.name, os.path.basename(member.name).partition(".")[2].lower(), data
            if path.lower().endswith(".tar") and any(map(any, iter(partial(file.read, 2**20), b""))):
                raise tarfile.ReadError("there are data behind its end, as in several tar files joined into one")
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"the tar file {path} cannot be read: {error}") from error


@contextmanager
def _random_access(path: str) -> Iterator[tarfile.TarFile]:
    """Open a tar for going back and forth; a compressed one is unpacked into a temporary file for that."""
    with ExitStack() as opened:
        file = opened.enter_context(open(path, "rb"))
        start = file.read(max(map(len, COMPRESSIONS)))
        file.seek(0)
        for magic, uncompress in COMPRESSIONS.items():
            if start.startswith(magic):
                content = opened.enter_context(uncompress(file))
                file = opened.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(content, file, 2**20)
                file.seek(0)
        yield opened.enter_context(tarfile.open(fileobj=file, mode="r:"))


class _Links:
    """The files that links in a tar point to. The members are listed once; `tarfile` lists them for each link."""

    def __init__(self, tar: tarfile.TarFile):
        self.tar = tar
        self.named: dict[str, tarfile.TarInfo] = {}
        self.hard: dict[int, tarfile.TarInfo | None] = {}
        for member in tar:
            if member.islnk():  # a hard link points to a member before it
                self.hard[member.offset] = self.named.get(normpath(member.linkname))
            self.named[normpath(member.name)] = member

    def read(self, member: tarfile.TarInfo) -> bytes | None:
        """Return the data of the file that a link points to in the end, or `None` if that is no file in the tar."""
        seen = set()
        while member is not None and not member.isfile():
            if member.offset in seen:
                return None
            seen.add(member.offset)
            if member.islnk():
                member = self.hard.get(member.offset)
            elif member.issym():
                member = self.named.get(normpath(join(dirname(member.name), member.linkname)))
            else:
                return None
        return None if member is None else self.tar.extractfile(member).read()


def _has_classes(path: str) -> bool:
    samples = islice(_samples(path), NUM_SAMPLES_LOOKED_AT)
    return any(ending == CLASS_MEMBER for _, members in samples for _, ending, _ in members)


def _class_of(data: bytes, path: str, name: str) -> int:
    try:
        return int(data)
    except ValueError:
        raise ValueError(f"{name} in {path} must hold a class as a whole number, got {data[:20]!r}.") from None


def _class_in_json(data: bytes, key: str, path: str, name: str, known: int | None) -> int | None:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{name} in {path} is not JSON: {error}") from None
    value = content.get(key, known) if isinstance(content, dict) else known
    if value is not None and type(value) is not int:
        raise ValueError(f"{key!r} of {name} in {path} must be a class as a whole number, got {value!r}.")
    return value


def _check_end(path: str) -> None:
    """Warn of a file that was cut short: a whole tar file ends in two empty blocks, a cut one reads like a smaller."""
    if path.lower().endswith(".tar"):
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - END_OF_TAR))
            if file.read().strip(b"\0"):
                logger.warning("%s does not end as a tar file does: images may be missing, was it cut short?", path)
