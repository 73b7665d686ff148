# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tar shards in the webdataset format. Every image file in them is one image."""

import json
import logging
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any, NamedTuple

import datasets
from datasets.fingerprint import Hasher

from ..utils.files import replace_text, strict_json
from .cache import Stamp, cache_file, stamp_of
from .columns import is_image_file
from .scan import Examples, counted


logger = logging.getLogger(__name__)

LABEL_MEMBER = "cls"
# Members that webdatasets hold beside their images.
COMPANIONS = {"cls", "json", "txt"}
NUM_SAMPLES_PROBED = 5
END_OF_TAR = 1024


class Member(NamedTuple):
    """A member of a tar other than a folder; `data` are `None` for a special file or a link out of the tar."""

    name: str
    extension: str  # from the first dot of the file name on, in lower case
    data: bytes | None


def open_tars(
    paths: list[str], image_column: str | None, label_column: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Return the images of tar files in order, with their labels if they have any.

    A link counts as the file in the same tar that it points to. The members that are skipped are logged whenever the
    files are opened or, for a stream, at the end of each pass.

    Args:
        paths: Tar files, compressed or not.
        image_column: Extension of the members to read, such as `jpg`; by default every image file, with a suffix in
            any case, is one image.
        label_column: Extension of the members that hold labels as text, or key of the labels in `.json` members; by
            default `cls` if one of the first samples has such a member.
        streaming: Whether to read the files again in each pass instead of copying them to the cache of `datasets`.

    Raises:
        ValueError: if a file is not a tar file, or a label is not an integer.
    """
    for path in paths:
        _warn_if_truncated(path)
    if label_column is None and _has_labels(paths[0]):
        label_column = LABEL_MEMBER
    image_column = image_column and image_column.lower()
    features = datasets.Features({image_column or "image": datasets.Image(decode=False)})
    if label_column is not None:
        features[label_column] = datasets.Value("int64")
    # `datasets` caches the result by the arguments, so the stamps are among them.
    stamps = [stamp_of(os.stat(path)) for path in paths]
    arguments = {"paths": paths, "stamps": stamps, "image_column": image_column, "label_column": label_column}
    if streaming:
        return datasets.IterableDataset.from_generator(_rows, features=features, gen_kwargs=arguments)
    # Cached rows are not read from the tars again, so the notes on skipped members are cached beside them.
    notes = cache_file(f"{Hasher.hash(arguments)}.json")
    rows = partial(_rows, notes=str(notes))
    dataset = datasets.Dataset.from_generator(rows, features=features, gen_kwargs=arguments)
    if not notes.exists():
        deque(rows(paths, stamps, image_column, label_column), maxlen=0)
    for note in json.loads(notes.read_text(encoding="utf-8")):
        logger.warning(note)
    return dataset


def _rows(
    paths: list[str], stamps: list[Stamp], image_column: str | None, label_column: str | None, notes: str | None = None
) -> Iterator[dict]:
    """Yield the images. Notes on skipped members are logged, or written to the file `notes` as a list."""
    sentences = []
    for path in paths:
        reader = _TarReader(path, image_column, label_column)
        yield from reader.rows()
        if sentence := reader.describe_skipped():
            sentences.append(sentence)
            if notes is None:
                logger.warning(sentence)
    if notes is not None:
        replace_text(Path(notes), strict_json(sentences))


@dataclass
class _TarReader:
    """Images and labels of one tar file, and a count of the members that are skipped."""

    path: str
    image_column: str | None
    label_column: str | None
    num_images: int = 0
    skipped: Examples = field(default_factory=Examples)
    unreadable: Examples = field(default_factory=Examples)

    def rows(self) -> Iterator[dict]:
        """Yield a row for each image."""
        for members in _samples(self.path):
            images, label = self._read_sample(members)
            for image in images:
                row = {self.image_column or "image": {"bytes": image.data, "path": image.name}}
                yield row if self.label_column is None else row | {self.label_column: label}
            self.num_images += len(images)

    def _read_sample(self, members: Iterable[Member]) -> tuple[list[Member], int | None]:
        images, label = [], None
        for member in members:
            if os.path.basename(member.name).startswith("."):  # macOS adds files such as ._photo.jpg
                self.skipped.add(member.name)
            elif member.data is None:
                self.unreadable.add(member.name)
            elif member.extension == self.image_column or (self.image_column is None and is_image_file(member.name)):
                images.append(member)
            elif self.label_column is not None and member.extension in (self.label_column, "json"):
                label = self._read_label(member, label)
            elif member.extension not in COMPANIONS:
                self.skipped.add(member.name)
        return images, label

    def _read_label(self, member: Member, known: int | None) -> int | None:
        """Return the label in a member, or the known one if it is JSON without a label."""
        data = member.data or b""
        if member.extension == self.label_column:
            try:
                return int(data)
            except ValueError:
                message = f"{member.name} in {self.path} must hold an integer label, got {data[:20]!r}."
                raise ValueError(message) from None
        try:
            content = json.loads(data)
        except ValueError as error:
            raise ValueError(f"{member.name} in {self.path} is not JSON: {error}") from None
        label = content.get(self.label_column, known) if isinstance(content, dict) else known
        if label is not None and type(label) is not int:
            raise ValueError(
                f"{self.label_column!r} of {member.name} in {self.path} must be an integer label, got {label!r}."
            )
        return label

    def describe_skipped(self) -> str | None:
        """Return a sentence on the skipped members, or `None` if all members were used."""
        if self.num_images and not self.skipped.count and not self.unreadable.count:
            return None
        sentence = (
            f"{self.path}: found {counted(self.num_images, 'image')}; skipped "
            f"{counted(self.skipped.count, 'other member')}: {self.skipped if self.skipped.count else 'none'}"
        )
        if self.unreadable.count:
            count = counted(self.unreadable.count, "member")
            sentence += f"; and {count} without data (special files, or links out of the tar): {self.unreadable}"
        return f"{sentence}."


def _samples(path: str) -> Iterator[Iterator[Member]]:
    """Yield consecutive members with the same name up to the first dot."""
    stems = groupby(_members(path), key=lambda member: member.name[: len(member.name) - len(member.extension)])
    return (members for _, members in stems)


def _members(path: str) -> Iterator[Member]:
    """Yield the members of a tar other than folders."""
    links = None
    try:
        with ExitStack() as opened:
            file = opened.enter_context(open(path, "rb"))
            tar = opened.enter_context(tarfile.open(fileobj=file, mode="r|*"))
            for member in tar:
                if member.isdir():
                    continue
                if member.isfile():
                    data = _content(tar, member)
                else:
                    links = links or _Links(opened.enter_context(_random_access(path)))
                    data = links.read(member)
                yield Member(member.name, os.path.basename(member.name).partition(".")[2].lower(), data)
            if path.lower().endswith(".tar") and any(map(any, iter(partial(file.read, 2**20), b""))):
                raise tarfile.ReadError("there are data after its end, as in concatenated tar files")
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"the tar file {path} cannot be read: {error}") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    file = tar.extractfile(member)
    return None if file is None else file.read()


@contextmanager
def _random_access(path: str) -> Iterator[tarfile.TarFile]:
    """Open a tar for random access; a compressed one is unpacked into a temporary file first."""
    with tarfile.open(path) as tar, tempfile.TemporaryFile() as unpacked:
        file: Any = tar.fileobj  # which decompresses
        if path.lower().endswith(".tar"):
            yield tar
            return
        file.seek(0)
        shutil.copyfileobj(file, unpacked, 2**20)
        unpacked.seek(0)
        with tarfile.open(fileobj=unpacked) as unpacked_tar:
            yield unpacked_tar


class _Links:
    """Targets of the links in a tar. The members are listed once, where `tarfile` lists them for each link."""

    def __init__(self, tar: tarfile.TarFile):
        self.tar = tar
        self.named: dict[str, tarfile.TarInfo] = {}
        self.hard: dict[int, tarfile.TarInfo | None] = {}
        for member in tar:
            if member.islnk():  # a hard link points to an earlier member
                self.hard[member.offset] = self.named.get(normpath(member.linkname))
            self.named[normpath(member.name)] = member

    def read(self, link: tarfile.TarInfo) -> bytes | None:
        """Return the content of the file that a chain of links ends at, or `None` if it leaves the tar."""
        seen: set[int] = set()
        member: tarfile.TarInfo | None = link
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
        return None if member is None else _content(self.tar, member)


def _has_labels(path: str) -> bool:
    samples = islice(_samples(path), NUM_SAMPLES_PROBED)
    return any(member.extension == LABEL_MEMBER for members in samples for member in members)


def _warn_if_truncated(path: str) -> None:
    """Warn if a tar file does not end in two empty blocks: a truncated file otherwise reads like a smaller one."""
    if path.lower().endswith(".tar"):
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - END_OF_TAR))
            if file.read().strip(b"\0"):
                logger.warning(f"{path} lacks the end of a tar file, so it may be truncated and images be missing.")
