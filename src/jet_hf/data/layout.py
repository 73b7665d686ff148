# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Base class of the layouts in which datasets are stored."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

import datasets

from .fingerprints import StoredFile
from .splits import UnknownSplitError, resolve_slices


Images: TypeAlias = datasets.Dataset | datasets.IterableDataset


class Layout:
    """
    Splits of a dataset, found but not opened. A subclass implements [`open`] and [`files`].

    Args:
        where: Name or path of the dataset, for messages.
        splits: Names of the splits.
    """

    release: str | None = None  # key of `RELEASES` that the format of the files implies
    records: Mapping[str, dict] = {}  # of the preparation of the splits, in folders of `scripts/prepare_imagenet.py`
    warnings: tuple[str, ...] = ()  # on files that are not used
    sorted_by_folder = False  # whether images of the same folder follow each other
    split_folders = False  # whether splits are named after folders, so that two aliases of a split are ambiguous
    unlabeled_reason = ""  # why folders are not classes
    problem: str | None = None  # why the splits cannot be determined
    first_label = 0  # smallest class as the files number it

    def __init__(self, where: str, splits: Collection[str]):
        self.where = where
        self.splits = splits

    def open(self, split: str, streaming: bool) -> Images:
        """Return the images of a split, as a stream or not."""
        raise NotImplementedError

    def num_images(self, split: str, streaming: bool) -> int | None:
        """Return the number of images of a split; `None` for a stream."""
        dataset = self.open(split, streaming)
        return len(dataset) if isinstance(dataset, datasets.Dataset) else None

    def files(self, split: str) -> Iterator[StoredFile]:
        """Yield the stored files of a split, for its fingerprint."""
        raise NotImplementedError

    def label_files(self) -> Iterator[StoredFile]:
        """Yield the stored files that hold labels but no images."""
        return iter(())

    def describe(self, split: str, dataset: Images) -> str | None:
        """Return a sentence on the files that were found, for the log. `dataset` holds the opened split."""
        return None

    def resolve(self, split: str) -> str:
        """
        Return the name, or sum of slices, with known splits in place of aliases.

        Raises:
            UnknownSplitError, ValueError: see [`resolve_slices`].
        """
        try:
            return resolve_slices(split, self.splits, self.where, self.split_folders)
        except UnknownSplitError as error:
            raise UnknownSplitError(self.problem or str(error)) from None

    def splits_in(self, spec: str) -> list[str]:
        """Return the splits that a resolved name or sum of slices refers to."""
        return [name for name in self.splits if re.search(rf"(^|\+){re.escape(name)}(\[|\+|$)", spec)]
