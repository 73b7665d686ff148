# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A single scan of a folder, which accounts for every file in it."""

import os
import re
import stat
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from .cache import Stamp, stamp_of
from .columns import is_image_file


NUM_EXAMPLES = 3
METADATA_FILES = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
CHRABASZCZ_BATCH = re.compile(r"(train_data_batch_([1-9]|10)|val_data)(\.npz)?")


class Examples:
    """A count of file names, with the first few of them for messages."""

    def __init__(self):
        self.count = 0
        self.first: list[str] = []

    def add(self, name: str) -> None:
        """Count a name."""
        self.count += 1
        if self.count <= NUM_EXAMPLES:
            self.first.append(name)

    def __str__(self) -> str:
        return name_some(self.first, self.count)


def name_some(names: Iterable[str], count: int) -> str:
    """Return the first few of `count` names as part of a sentence."""
    return ", ".join(islice(names, NUM_EXAMPLES)) + (" and so on" if count > NUM_EXAMPLES else "")


@dataclass
class FolderScan:
    """
    Every file of a folder and its subfolders.

    Names are sorted, relative to `root`, and separated by `/`.

    Args:
        root: Absolute path of the folder.
        images: Files with the suffix of a format that Pillow decodes.
        parquet, tars, batches: Shards, and batches in the format of Chrabaszcz et al.
        metadata: Files called `metadata.csv`, `metadata.jsonl` or `metadata.parquet`.
        others: Number of the remaining files by suffix.
        unusable: Entries that may have been meant as images but cannot be read, by reason.
    """

    root: str
    images: list[str] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)
    other_names: Examples = field(default_factory=Examples)
    unusable: dict[str, Examples] = field(default_factory=dict)

    def __post_init__(self):
        # A flat array of the stamps of the images: Python objects would take ten times the memory.
        self._image_stamps = array("Q")

    @classmethod
    def of(cls, path: str | os.PathLike) -> "FolderScan":
        """
        Scan a folder. Links are followed; hidden images, shards and folders are skipped.

        Raises:
            ValueError: if the folder or one of its subfolders cannot be listed.
        """
        scan = cls(os.path.abspath(path))
        status = os.stat(scan.root)
        scan._list("", {(status.st_dev, status.st_ino)})
        return scan

    def path(self, name: str) -> str:
        """Return the absolute path of a file."""
        return os.path.join(self.root, name)

    def image_size(self, row: int) -> int:
        """Return the size in bytes of the image file at index `row`."""
        return self._image_stamps[3 * row]

    def image_stamps(self, rows: range) -> array:
        """Return the sizes, times and inodes of a range of image files, three integers per file."""
        return self._image_stamps[3 * rows.start : 3 * rows.stop]

    def subfolders(self, prefix: str = "") -> tuple[dict[str, range], list[int]]:
        """Return the rows of the images below each subfolder of `prefix`, and the rows of those directly in it."""
        below, loose = {}, []
        i, end = bisect_left(self.images, prefix), len(self.images)
        while i < end and self.images[i].startswith(prefix):
            name, slash, _ = self.images[i][len(prefix) :].partition("/")
            if slash:
                after = bisect_left(self.images, f"{prefix}{name}0", i)  # "0" follows "/" in ASCII
                below[name] = range(i, after)
                i = after
            else:
                loose.append(i)
                i += 1
        return below, loose

    def describe_others(self) -> str:
        """Return the skipped files without the suffix of an image as part of a sentence; empty if there are none."""
        count = self.others.total()
        if not count:
            return ""
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in self.others.most_common(5))
        return f"{counted(count, 'file')} without an image suffix ({kinds}): {self.other_names}"

    def describe_unusable(self) -> str:
        """Return the unusable entries and the reasons as part of a sentence; empty if there are none."""
        return "; ".join(
            f"{counted(found.count, 'entry')} ({reason}): {found}" for reason, found in self.unusable.items()
        )

    def _list(self, prefix: str, ancestors: set[tuple[int, int]]) -> None:
        try:
            with os.scandir(self.path(prefix)) as entries:
                found = [(entry.name, _status(entry)) for entry in entries]
        except OSError as error:
            raise ValueError(f"the folder {self.path(prefix)} cannot be listed: {error.strerror}.") from error
        # A slash after the names of folders gives the order of whole paths, which resumed runs depend on.
        for name, status in sorted(found, key=lambda entry: entry[0] + "/" * _is_folder(entry[1])):
            path = prefix + name
            if name.startswith(".") and (_is_folder(status) or may_hold_images(name)):
                self._skip("hidden by a leading dot", path)
            elif name.encode(errors="ignore").decode() != name:
                self._skip("the name is not UTF-8", ascii(path))
            elif status is None:
                self._skip("broken link", path)
            elif _is_folder(status):
                identity = (status.st_dev, status.st_ino)
                if identity in ancestors:
                    self._skip("link to a parent folder", path)
                else:
                    self._list(f"{path}/", ancestors | {identity})
            elif not stat.S_ISREG(status.st_mode):
                self._skip("not a regular file", path)
            else:
                self._add_file(path, name, stamp_of(status))

    def _add_file(self, path: str, name: str, stamp: Stamp) -> None:
        lower = name.lower()
        if is_image_file(lower):
            self.images.append(path)
            self._image_stamps.extend(stamp)
        elif lower in METADATA_FILES:
            self.metadata.append(path)
        elif lower.endswith(".parquet"):
            self.parquet.append(path)
        elif lower.endswith(TAR_SUFFIXES):
            self.tars.append(path)
        elif CHRABASZCZ_BATCH.fullmatch(name) and path.count("/") < 2:
            self.batches.append(path)
        else:
            self.add_other(path)

    def add_other(self, path: str) -> None:
        """Count a file that holds no images."""
        self.others[os.path.splitext(path)[1].lower() or "no suffix"] += 1
        self.other_names.add(path)

    def _skip(self, reason: str, path: str) -> None:
        self.unusable.setdefault(reason, Examples()).add(path)


def may_hold_images(name: str) -> bool:
    """Return whether the suffix of a file, in any case, is that of an image or a shard."""
    return is_image_file(name) or name.lower().endswith((".parquet", *TAR_SUFFIXES))


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless the count is 1."""
    if count != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun}"


def _status(entry: os.DirEntry) -> os.stat_result | None:
    """Return the status of an entry, or `None` for a broken link."""
    try:
        return entry.stat()
    except OSError:
        if not entry.is_symlink():
            raise
        return None


def _is_folder(status: os.stat_result | None) -> bool:
    return status is not None and stat.S_ISDIR(status.st_mode)
