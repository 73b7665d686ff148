# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""List a folder once: its pictures, shards and metadata, and every file that is passed over, with the reason."""

import os
import re
import stat
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from .columns import is_picture


NUM_EXAMPLES = 3
METADATA_FILES = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
CHRABASZCZ_BATCH = re.compile(r"(train_data_batch_([1-9]|10)|val_data)(\.npz)?")


@dataclass(frozen=True)
class Stamp:
    """Size, time of change and inode of a file: while they stay, what was read of it stays valid."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class Examples:
    """Names of a kind of files: how many there are, and the first few."""

    def __init__(self):
        self.count, self.first = 0, []

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= NUM_EXAMPLES:
            self.first.append(name)

    def __str__(self) -> str:
        return name_some(self.first, self.count)


def name_some(names: Iterable[str], count: int) -> str:
    """Return the first few of `count` names, as part of a sentence."""
    return ", ".join(islice(names, NUM_EXAMPLES)) + (" and so on" if count > NUM_EXAMPLES else "")


@dataclass
class FolderScan:
    """
    Every file of a folder and its subfolders, listed once.

    Names are relative to `root`, with `/` between folders, and sorted.

    Args:
        root: Absolute path of the folder.
        pictures: Files with the suffix of a format that Pillow decodes.
        parquet, tars, batches: Shards, and batches in the format of Chrabaszcz et al.
        metadata: Files `metadata.csv`, `.jsonl` or `.parquet`.
        others: Files of no use, counted by suffix.
        lost: Entries that may have been meant as pictures and cannot be used, by reason.
    """

    root: str
    pictures: list[str] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)
    other_names: Examples = field(default_factory=Examples)
    lost: dict[str, Examples] = field(default_factory=dict)

    def __post_init__(self):
        # Three numbers a picture, side by side: Python objects would take ten times the memory.
        self._numbers = array("Q")
        self._stamps: dict[str, Stamp] = {}

    @classmethod
    def of(cls, path: str | os.PathLike) -> "FolderScan":
        """
        List a folder. Links are followed; hidden pictures, shards and folders are passed over.

        Raises:
            ValueError: if the folder, or one inside of it, cannot be listed.
        """
        scan = cls(os.path.abspath(path))
        status = os.stat(scan.root)
        scan._list("", {(status.st_dev, status.st_ino)})
        return scan

    def path(self, name: str) -> str:
        """Return the absolute path of a file."""
        return os.path.join(self.root, name)

    def picture_bytes(self, i: int) -> int:
        """Return the size of the picture with index `i`."""
        return self._numbers[3 * i]

    def picture_stamps(self, rows: range) -> memoryview:
        """Return sizes, times and inodes of some pictures, three numbers each."""
        return memoryview(self._numbers)[3 * rows.start : 3 * rows.stop]

    def stamps(self, names: Iterable[str]) -> list[Stamp]:
        """Return the stamps of shards or metadata files."""
        return [self._stamps[name] for name in names]

    def subfolders(self, prefix: str = "") -> tuple[dict[str, range], list[int]]:
        """Return the rows of pictures below each subfolder of `prefix`, and of those that lie in it directly."""
        below, loose = {}, []
        i, end = bisect_left(self.pictures, prefix), len(self.pictures)
        while i < end and self.pictures[i].startswith(prefix):
            name, slash, _ = self.pictures[i][len(prefix) :].partition("/")
            if slash:
                after = bisect_left(self.pictures, f"{prefix}{name}0", i)  # "0" comes right after "/"
                below[name] = range(i, after)
                i = after
            else:
                loose.append(i)
                i += 1
        return below, loose

    def _list(self, prefix: str, above: set[tuple[int, int]]) -> None:
        try:
            with os.scandir(self.path(prefix)) as entries:
                listed = [self._look_at(entry) for entry in entries]
        except OSError as error:
            raise ValueError(f"the folder {self.path(prefix)} cannot be listed: {error.strerror}.") from error
        # With a slash after folders the order is that of whole paths, which older versions read pictures in.
        for key, name, status in sorted(listed, key=lambda entry: entry[0]):
            path = prefix + name
            if name.startswith(".") and (key.endswith("/") or may_hold_pictures(name)):
                self._lose("hidden by a dot before the name", path)
            elif not _is_utf8(name):
                self._lose("the name is not UTF-8", ascii(path))
            elif status is None:
                self._lose("broken link", path)
            elif key.endswith("/"):
                identity = (status.st_dev, status.st_ino)
                if identity in above:
                    self._lose("link to a folder around it", path)
                else:
                    self._list(f"{path}/", above | {identity})
            elif not stat.S_ISREG(status.st_mode):
                self._lose("not a regular file", path)
            else:
                self._add_file(path, name, Stamp.of(status))

    @staticmethod
    def _look_at(entry: os.DirEntry) -> tuple[str, str, os.stat_result | None]:
        try:
            status = entry.stat()
        except OSError:
            if not entry.is_symlink():
                raise
            return entry.name, entry.name, None
        return entry.name + "/" * stat.S_ISDIR(status.st_mode), entry.name, status

    def _add_file(self, path: str, name: str, stamp: Stamp) -> None:
        lower = name.lower()
        if is_picture(lower):
            self.pictures.append(path)
            self._numbers.extend((stamp.size, stamp.mtime_ns, stamp.inode))
            return
        if lower in METADATA_FILES:
            kind = self.metadata
        elif lower.endswith(".parquet"):
            kind = self.parquet
        elif lower.endswith(TAR_SUFFIXES):
            kind = self.tars
        elif CHRABASZCZ_BATCH.fullmatch(name) and path.count("/") < 2:
            kind = self.batches
        else:
            self.others[os.path.splitext(lower)[1] or "no suffix"] += 1
            self.other_names.add(path)
            return
        kind.append(path)
        self._stamps[path] = stamp

    def _lose(self, reason: str, path: str) -> None:
        self.lost.setdefault(reason, Examples()).add(path)

    def describe_others(self) -> str:
        """Return what is passed over as no picture, as part of a sentence; empty if nothing is."""
        count = self.others.total()
        if not count:
            return ""
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in self.others.most_common(5))
        return f"{count:,} {plural('file', count)} without the suffix of a picture ({kinds}): {self.other_names}"

    def describe_lost(self) -> str:
        """Return the entries that might be pictures and cannot be used, as part of a sentence; empty if none are."""
        return "; ".join(
            f"{found.count:,} {plural('entry', found.count)} ({reason}): {found}"
            for reason, found in self.lost.items()
        )


def may_hold_pictures(name: str) -> bool:
    """Return whether a file is a picture or a shard by its suffix, in any case."""
    return is_picture(name) or name.lower().endswith((".parquet", *TAR_SUFFIXES))


def plural(noun: str, count: int) -> str:
    """Return the noun, in the plural unless there is one."""
    if count == 1:
        return noun
    return noun[:-1] + "ies" if noun.endswith("y") else noun + "s"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
