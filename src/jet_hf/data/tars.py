# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tar shards in the webdataset format: every picture in them is one image."""

import json
import logging
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice

import datasets

from .columns import is_picture
from .folders import Examples, Stamp, plural


logger = logging.getLogger(__name__)

CLASS_MEMBER = "cls"
# What webdatasets hold beside their pictures.
COMPANIONS = {"cls", "json", "txt"}
NUM_SAMPLES_LOOKED_AT = 5
END_OF_TAR = 1024


def open_tars(
    paths: list[str], image_column: str | None, label_column: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Return the pictures of tar files in order, in one column, with their classes in another if they have any.

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
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return kind.from_generator(_rows, features=features, gen_kwargs=arguments)


def _rows(paths: list[str], stamps: list[Stamp], image_column: str | None, label_column: str | None) -> Iterator[dict]:
    for path in paths:
        passed_over, count = Examples(), 0
        for _, members in _samples(path):
            pictures, label = [], None
            for name, ending, data in members:
                if os.path.basename(name).startswith("."):  # macOS adds files such as ._photo.jpg
                    passed_over.add(name)
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
        if passed_over.count or not count:
            logger.warning(
                "%s: found %d %s; passed over %d other %s: %s.",
                *(path, count, plural("picture", count), passed_over.count, plural("member", passed_over.count)),
                passed_over if passed_over.count else "none",
            )


def _samples(path: str) -> Iterator[tuple[str, Iterator[tuple[str, str, bytes]]]]:
    """Yield the members that follow each other with one name up to the first dot, each as name, ending and data."""
    return groupby(_members(path), key=lambda member: member[0][: len(member[0]) - len(member[1])])


def _members(path: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, ending and data of the files in a tar."""
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                base = os.path.basename(member.name)
                if member.isfile():
                    yield member.name, base.partition(".")[2].lower(), tar.extractfile(member).read()
            if path.lower().endswith(".tar") and any(map(any, iter(partial(file.read, 2**20), b""))):
                raise tarfile.ReadError("there are data behind its end, as in several tar files joined into one")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"the tar file {path} cannot be read: {error}") from error


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
