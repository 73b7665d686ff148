# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Where images come from: data sets of the Hub, folders and files."""

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import datasets

from .columns import find_image_column, find_label_column, merge_image_columns
from .contents import READ_ERRORS, Contents, Images, contents_of_hub, contents_of_path, read_error
from .fingerprints import fingerprint_of_files
from .releases import RELEASES
from .splits import UnknownSplitError, other_names, take_slices


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSource:
    """
    A data set, by name or by path. A folder is listed once, when the source is first used.

    Args:
        name, config: Name on the Hub, and configuration.
        path: Place on the disk: a folder of pictures, of parquet shards or of webdataset tars; a folder that
            `save_to_disk` wrote; npz or pickle batches as Chrabaszcz et al. publish them; a single parquet, tar or npz
            file.
        image_column: Column of the images; found by itself by default.
        label_column: Column of the classes, where they are asked for; found by itself by default.
        streaming: Whether to read from one end to the other instead of laying everything out on the disk first.
        release: Key of [`RELEASES`], if it is one of them.

    Raises:
        ValueError: if neither or both of `name` and `path` are given, or `release` is unknown.
    """

    name: str | None = None
    config: str | None = None
    path: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    release: str | None = None

    def __post_init__(self):
        if (self.name is None) == (self.path is None):
            given = "neither" if self.name is None else f"{self.name!r} and {self.path!r}"
            raise ValueError(f"expected one of `dataset_name` and `dataset_path`, got {given}.")
        if self.release is not None and self.release not in RELEASES:
            raise ValueError(f"`dataset_release` must be one of {', '.join(RELEASES)}, got {self.release!r}.")

    @classmethod
    def at(cls, place: str, config: str | None = None, **fields) -> "DataSource":
        """Return the data set at a path, where there is something, or else of that name on the Hub."""
        return cls(**{"path" if Path(place).expanduser().exists() else "name": place}, config=config, **fields)

    @classmethod
    def from_arguments(cls, arguments) -> "DataSource":
        """Return the data set that the fields `dataset_name`, `dataset_path`, ... of a script's arguments name."""
        return cls(
            name=arguments.dataset_name,
            config=arguments.dataset_config,
            path=arguments.dataset_path,
            image_column=arguments.image_column,
            label_column=arguments.label_column,
            streaming=arguments.streaming,
            release=arguments.dataset_release,
        )

    def check_output(self, output_dir: str | os.PathLike) -> None:
        """
        Check that a folder to write to is no part of the data set: the pictures in it would become data.

        Raises:
            ValueError: if `output_dir` lies inside the source's path.
        """
        if self.path is not None:
            folder, output = (Path(os.path.expanduser(each)).resolve() for each in (self.path, output_dir))
            if output.is_relative_to(folder):
                raise ValueError(f"`output_dir` {output_dir} must not lie inside `dataset_path` {self.path}.")

    @property
    def title(self) -> str:
        """Name on the Hub, or last part of the path: the rest of it is private."""
        return self.name or Path(self.path).expanduser().resolve().name

    @cached_property
    def contents(self) -> Contents:
        """The splits of the data set."""
        contents = contents_of_hub(self) if self.path is None else contents_of_path(self)
        for warning in contents.warnings:
            logger.warning(warning)
        return contents


def open_split(source: DataSource, split: str, streaming: bool | None = None) -> Images:
    """
    Return a split with its images as they are stored: encoded, or as arrays.

    The number of images that are found and used, and of files that are passed over, is logged.

    Args:
        source: Where it comes from. Folders of pictures, batches of Chrabaszcz et al. and folders that `save_to_disk`
            wrote are map-style also when streaming.
        split: Its name or another alias of it, such as `val` for `validation`; of a map-style data set also a sum of
            slices, such as `train[:98%]`; of a folder of pictures also `all`.
        streaming: Overrides that of the source.

    Raises:
        UnknownSplitError: if there is no such split; the message names those that there are.
        ValueError: if there is nothing to read at the source's path, nothing that holds images, or another release.
    """
    known_release(source)
    contents = source.contents
    spec = contents.resolve(split)
    streaming = source.streaming if streaming is None else streaming
    try:
        opened = {name: contents.open(name, streaming) for name in contents.named(spec)}
        if any(isinstance(each, datasets.IterableDataset) for each in opened.values()) and spec not in opened:
            raise ValueError(f"a stream is read whole, slices such as {split!r} are not: give the name of a split.")
        dataset = take_slices(spec, opened)
    except READ_ERRORS as error:
        raise read_error(contents.where, error) from error
    if source.image_column is None:
        dataset = merge_image_columns(dataset)
    column = find_image_column(dataset.features or datasets.Features(), source.image_column)
    for name in contents.named(spec):
        if others := [each for each in other_names(name, contents.splits) if each not in contents.named(spec)]:
            logger.warning("%s: using the split %s, and not %s beside it.", contents.where, name, " and ".join(others))
    if contents.describe:
        logger.info(contents.describe(split, len(dataset)))
    if isinstance(dataset.features[column], datasets.Array3D):
        return dataset
    return dataset.cast_column(column, datasets.Image(decode=False))


def held_out_split(source: DataSource) -> str:
    """
    Return the split to score where none is asked for: validation, or else test. Their aliases count.

    Raises:
        UnknownSplitError: if there is neither.
        ValueError: if several splits may be meant.
    """
    for split in ("validation", "test"):
        try:
            source.contents.resolve(split)
        except UnknownSplitError as error:
            reason = error
            continue
        return split
    raise UnknownSplitError(f"there is neither a validation nor a test split, name the one to score: {reason}")


def stream_fingerprint(source: DataSource, split: str, classes: bool | None = None) -> str:
    """
    Return a short text that differs for other data: of the names, sizes and a sample of the bytes of a split's files.

    The place of the files does not matter. For a data set of the Hub it stands for the files' revision.

    Args:
        source, split: What is read.
        classes: Whether files that hold nothing but classes count; by default where the source names their column.
    """
    contents = source.contents
    classes = source.label_column is not None if classes is None else classes
    names = contents.named(contents.resolve(split))
    files = (chain(contents.files(name), contents.class_files() if classes else ()) for name in names)
    return fingerprint_of_files(chain.from_iterable(files))


def label_column_of(source: DataSource, features: datasets.Features) -> str:
    """
    Return the column of the classes of an opened split.

    Raises:
        ValueError: see [`find_label_column`].
    """
    try:
        return find_label_column(features, source.label_column)
    except ValueError as error:
        raise ValueError(f"{error} {source.contents.no_classes}".strip()) from None


def known_release(source: DataSource) -> str | None:
    """
    Return the release that a source is, as stated or as its format tells.

    Raises:
        ValueError: if the two differ.
    """
    exists = source.path is not None and Path(source.path).expanduser().exists()
    told = source.contents.release if exists else None
    if None not in (told, source.release) and told != source.release:
        raise ValueError(
            f"`dataset_release` is {source.release}, but {source.path} holds {told} ({RELEASES[told].title}). Figures "
            "of two releases are not comparable."
        )
    return told or source.release
