# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Data sources: datasets of the Hub, folders and files."""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import datasets
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .chrabaszcz import NUM_CLASSES
from .columns import find_image_column, find_label_column, merge_image_columns
from .fingerprints import fingerprint_of_files
from .formats import READ_ERRORS, find_layout, read_error
from .layout import Images, Layout
from .releases import RELEASES
from .splits import HELD_OUT, UnknownSplitError, held_out_rows, other_names, take_slices


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSource:
    """
    A dataset, by name or by path. A folder is scanned once, when the source is first used.

    Args:
        name: Name on the Hub.
        config: Configuration of the dataset.
        path: Path of a folder of images, of parquet shards or of webdataset tars; of a folder that `save_to_disk`
            wrote; of npz or pickle batches as Chrabaszcz et al. publish them; or of a parquet, tar or npz file.
        image_column: Column of the images; detected by default.
        label_column: Column of the labels; detected by default, where labels are read.
        first_label: Smallest class in the data, see [`first_label_of`].
        streaming: Whether to read the dataset sequentially instead of copying it to the disk first.
        release: Key of [`RELEASES`], if the dataset is one of them.

    Raises:
        ValueError: if neither or both of `name` and `path` are given, or `release` is unknown.
    """

    name: str | None = None
    config: str | None = None
    path: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    first_label: int | None = None
    streaming: bool = False
    release: str | None = None

    def __post_init__(self):
        if (self.name is None) == (self.path is None):
            given = "neither" if self.name is None else f"{self.name!r} and {self.path!r}"
            raise ValueError(f"expected one of `dataset_name` and `dataset_path`, got {given}.")
        if self.release is not None and self.release not in RELEASES:
            raise ValueError(f"`dataset_release` must be one of {', '.join(RELEASES)}, got {self.release!r}.")

    @classmethod
    def at(cls, path_or_name: str, config: str | None = None, **fields) -> "DataSource":
        """Return the dataset at a path, unless there is none and it may be the name of a dataset on the Hub."""
        if not Path(path_or_name).expanduser().exists():
            with suppress(HFValidationError):
                validate_repo_id(path_or_name)
                logger.info(f"there is no path {path_or_name}: looking for a dataset of this name on the Hub.")
                return cls(name=path_or_name, config=config, **fields)
        return cls(path=path_or_name, config=config, **fields)

    @classmethod
    def from_arguments(cls, arguments) -> "DataSource":
        """Return the dataset that the fields `dataset_name`, `dataset_path`, ... of a script's arguments describe."""
        return cls(
            name=arguments.dataset_name,
            config=arguments.dataset_config,
            path=arguments.dataset_path,
            image_column=arguments.image_column,
            label_column=arguments.label_column,
            first_label=arguments.first_label,
            streaming=arguments.streaming,
            release=arguments.dataset_release,
        )

    def check_output(
        self, output: str | os.PathLike, argument: str = "output_dir", dataset: str = "dataset_path"
    ) -> None:
        """
        Check that an output is not part of the dataset, where files written to it would become data.

        Args:
            output: Folder or file to write.
            argument, dataset: Names of the arguments of the output and of the dataset, for messages.

        Raises:
            ValueError: if `output` lies inside the source's path.
        """
        if self.path is not None:
            inside, outside = (Path(path).expanduser().resolve() for path in (output, self.path))
            if inside.is_relative_to(outside):
                raise ValueError(f"`{argument}` {output} must not lie inside `{dataset}` {self.path}.")

    @property
    def where(self) -> str:
        """Name on the Hub or whole path, for messages."""
        return str(self.name or self.path)

    @property
    def title(self) -> str:
        """Name on the Hub, or last part of the path, for publication: the rest of a path is private."""
        return self.name or Path(self.where).expanduser().resolve().name

    @cached_property
    def layout(self) -> Layout:
        """Layout of the dataset; finding it scans a folder or asks the Hub, and logs warnings on unused files."""
        layout = find_layout(self)
        for warning in layout.warnings:
            logger.warning(warning)
        return layout


def open_split(source: DataSource, split: str, streaming: bool | None = None) -> Images:
    """
    Return a split with its images as they are stored, encoded or as arrays.

    The number of images that are found and used, and of files that are skipped, is logged.

    Args:
        source: Data source. Folders of images, batches of Chrabaszcz et al. and folders that `save_to_disk` wrote are
            opened as map-style datasets even when streaming.
        split: Name of the split or an alias, such as `val` for `validation`. Map-style datasets also accept sums of
            slices, such as `train[:98%]`, and folders of images the name `all`.
        streaming: Overrides `source.streaming`.

    Raises:
        UnknownSplitError: if there is no such split; the message lists the known ones.
        ValueError: if the data cannot be read, contain no images, or belong to another release than stated.
    """
    known_release(source)
    layout = source.layout
    spec = layout.resolve(split)
    names = layout.splits_in(spec)
    streaming = source.streaming if streaming is None else streaming
    try:
        opened = {name: layout.open(name, streaming) for name in names}
        if any(isinstance(part, datasets.IterableDataset) for part in opened.values()) and spec not in opened:
            raise ValueError(f"slices of a stream, such as {split!r}, are not supported: pass the name of a split.")
        dataset = take_slices(spec, opened)
    except READ_ERRORS as error:
        raise read_error(layout.where, error) from error
    if source.image_column is None:
        dataset = merge_image_columns(dataset)
    column = find_image_column(dataset.features or datasets.Features(), source.image_column)
    for name in names:
        if others := [other for other in other_names(name, layout.splits) if other not in names]:
            logger.warning(f"{layout.where}: using the split {name}, but not its aliases {' and '.join(others)}.")
    if description := layout.describe(split, dataset):
        logger.info(description)
    if isinstance(dataset.features[column], datasets.Array3D):
        return dataset
    return dataset.cast_column(column, datasets.Image(decode=False))


def held_out_split(source: DataSource) -> str:
    """
    Return the default split for evaluation: `validation`, or else `test`, of which aliases may exist.

    Raises:
        UnknownSplitError: if there is neither.
        ValueError: if several splits are aliases of it.
    """
    for split in ("validation", "test"):
        try:
            source.layout.resolve(split)
        except UnknownSplitError as error:
            reason = error
            continue
        return split
    raise UnknownSplitError(f"there is neither a validation nor a test split, pass the one to score: {reason}")


def split_to_score(source: DataSource) -> str:
    """
    Return the default split for scoring a model: the held-out one, or else the images that training holds out.

    Raises:
        UnknownSplitError, ValueError: see [`held_out_split`].
    """
    try:
        return held_out_split(source)
    except UnknownSplitError:
        if not can_hold_out(source):
            raise
    split = f"train{HELD_OUT}"
    logger.warning(
        f"{source.where} has no validation or test split: scoring {split}, the images that training holds out by "
        "default, and no other ones. A model that was trained with other splits, by an earlier version, or before "
        "images were added or removed, has seen some of them."
    )
    return split


def can_hold_out(source: DataSource) -> bool:
    """Return whether the split `train` is known to have enough images to hold some out."""
    try:
        (train,) = source.layout.splits_in(source.layout.resolve("train"))
    except UnknownSplitError:
        return False
    return len(held_out_rows(source.layout.num_images(train, source.streaming) or 0)) > 0


def stream_fingerprint(source: DataSource, split: str, labels: bool | None = None) -> str:
    """
    Return a fingerprint of the names, the sizes and a sample of the bytes of a split's files.

    It does not depend on the location of the files. For a dataset of the Hub it stands for their revision.

    Args:
        source, split: Data to read.
        labels: Whether to include files that only hold labels; by default if the source names a label column.
    """
    layout = source.layout
    labels = source.label_column is not None if labels is None else labels
    names = layout.splits_in(layout.resolve(split))
    files = (chain(layout.files(name), layout.label_files() if labels else ()) for name in names)
    return fingerprint_of_files(chain.from_iterable(files))


def label_column_of(source: DataSource, features: datasets.Features) -> str:
    """
    Return the column of the labels of an opened split.

    Raises:
        ValueError: see [`find_label_column`].
    """
    try:
        return find_label_column(features, source.label_column)
    except ValueError as error:
        raise ValueError(f"{error} {source.layout.unlabeled_reason}".strip()) from None


def first_label_of(source: DataSource, num_classes: int = NUM_CLASSES) -> int:
    """
    Return the smallest class in the data, as given or as implied by their format.

    It is subtracted from the labels. A model with more classes than Chrabaszcz's batches was trained by an earlier
    version, which did not subtract it.
    """
    if source.first_label is not None:
        return source.first_label
    return source.layout.first_label if num_classes <= NUM_CLASSES else 0


def known_release(source: DataSource) -> str | None:
    """
    Return the release of a source, as stated or as implied by its format.

    Raises:
        ValueError: if the two differ.
    """
    # The data of a finished run may have been moved.
    exists = source.path is not None and Path(source.path).expanduser().exists()
    implied = source.layout.release if exists else None
    if None not in (implied, source.release) and implied != source.release:
        raise ValueError(
            f"`dataset_release` is {source.release}, but {source.path} holds {implied} "
            f"({RELEASES[str(implied)].title}). Scores on two releases are not comparable."
        )
    return implied or source.release
