# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Splits, classes and metadata of a folder of pictures, and the data set of their paths."""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from ..utils.files import fsync
from .fingerprints import StoredFile
from .folders import FolderScan, name_some, plural
from .splits import canonical_split


ALL = "all"
IMAGE, LABEL = "image", "label"
FILE_NAME = "file_name"


class PictureFolder:
    """
    The pictures of a folder by split.

    Sub-folders of the top level whose whole name is that of a split (`train`, `Val`, `test`, ...) are the splits; a
    single one must hold all pictures, beside several ones others are not used. Without such sub-folders all pictures
    are the split `train`. The split `all` has every picture. The top level is the first one that holds a picture or
    more than one folder.

    Args:
        scan: Listing of the folder.
        where: Name of the folder in messages.
    """

    def __init__(self, scan: FolderScan, where: str):
        self.scan, self.where = scan, where
        self.problem: str | None = None
        everything = range(len(scan.pictures))
        top = self._find_top()
        folders, loose = scan.subfolders(top)
        named = {name: rows for name, rows in folders.items() if canonical_split(name)}
        others = [rows for name, rows in folders.items() if name not in named]
        self.beside = sorted(chain(loose, *others)) if named else []
        self.splits = {**(named or {"train": everything}), ALL: everything}
        if self.beside and len({canonical_split(name) for name in named}) == 1:
            (name, *_) = named
            self._refuse(
                f"the folder {top}{name}/ may be a split, or hold pictures like the {len(self.beside):,} beside it "
                f"({self._examples(self.beside)}); give {os.path.join(where, top, name)} as the data set for the "
                "former"
            )
        elif not named and (nested := self._nested_splits()):
            self._refuse(
                f"the folders {' and '.join(nested)} have the names of splits but do not lie at the top level; give "
                "the folder above them as the data set if they are splits"
            )
        self.by_folder = bool(named) and self.problem is None
        self._find_classes(depth=top.count("/") + self.by_folder)
        self.metadata = _read_metadata(scan)

    def _find_top(self) -> str:
        top = ""
        while True:
            folders, loose = self.scan.subfolders(top)
            (name, *more) = folders or [None]
            if name is None or loose or more or canonical_split(name):
                return top
            top += f"{name}/"

    def _nested_splits(self) -> list[str]:
        """Return one folder for each split that folders below the top level are named after, if these are several."""
        found = {}
        for folder in {os.path.dirname(name) for name in self.scan.pictures}:
            for path in [PurePosixPath(folder), *PurePosixPath(folder).parents]:
                if split := canonical_split(path.name):
                    found[split] = min(found.get(split, str(path)), str(path))
        return sorted(found.values()) if len(found) > 1 else []

    def _refuse(self, problem: str) -> None:
        self.problem = f"{self.where}: {problem}, or name the split `{ALL}` to use every picture."
        self.splits, self.beside = {ALL: range(len(self.scan.pictures))}, []

    def _find_classes(self, depth: int) -> None:
        """Take the folders that pictures lie in for classes, if all lie equally deep, below the folder of a split."""
        pictures = self.scan.pictures
        parts = [rows for name, rows in self.splits.items() if name != ALL] or [self.splits[ALL]]
        names = [pictures[row] for rows in parts for row in rows]
        depths = {name.count("/"): name for name in names}
        self.class_names, self.no_classes = [], ""
        if len(depths) > 1:
            shallow, deep = depths[min(depths)], depths[max(depths)]
            self.no_classes = f"Folders are no classes here, since pictures lie at several depths: {shallow}, {deep}."
        elif depths and min(depths) > depth:
            classes = {os.path.basename(os.path.dirname(name)) for name in names}
            self.class_names = sorted(classes) if len(classes) > 1 else []

    def files(self, split: str) -> Iterator[StoredFile]:
        """Return the relative name, the path and the size of each picture of a split."""
        for row in self.splits[split]:
            name = self.scan.pictures[row]
            yield name, self.scan.path(name), self.scan.picture_bytes(row)

    def metadata_files(self) -> Iterator[StoredFile]:
        """Return the relative name, the path and the size of each file of metadata."""
        for name, stamp in zip(self.scan.metadata, self.scan.stamps(self.scan.metadata), strict=True):
            yield name, self.scan.path(name), stamp.size

    def open(self, split: str) -> datasets.Dataset:
        """
        Return the pictures of a split, sorted by path, in a column of paths, with the columns of their metadata.

        The table lies in a file in the cache of `datasets`, named after the stamps of the pictures: what is cached of
        it is not used for pictures that changed.
        """
        file = Path(datasets.config.HF_DATASETS_CACHE) / "jet_hf" / f"{self._key(split)}.arrow"
        if not file.exists():
            _write_table(file, self._table(self.splits[split]))
        return datasets.Dataset.from_file(str(file))

    def _table(self, rows: range) -> pa.Table:
        names = self.scan.pictures[rows.start : rows.stop]
        paths = pa.array([self.scan.path(name) for name in names], pa.string())
        features = datasets.Features({IMAGE: datasets.Image(decode=False)})
        columns = [pa.StructArray.from_arrays([pa.nulls(len(rows), pa.binary()), paths], ["bytes", "path"])]
        extra = {}
        if self.metadata is not None:
            place = {name: i for i, name in enumerate(self.metadata[FILE_NAME].to_pylist())}
            found = self.metadata.take(pa.array([place.get(name) for name in names], pa.int64()))
            extra = {
                name: found[name].combine_chunks() for name in found.column_names if name not in (FILE_NAME, IMAGE)
            }
        if self.class_names and LABEL not in extra:
            number = {name: i for i, name in enumerate(self.class_names)}
            labels = [number.get(os.path.basename(os.path.dirname(name))) for name in names]
            columns.append(pa.array(labels, pa.int64()))
            features[LABEL] = datasets.ClassLabel(names=self.class_names)
        features.update(datasets.Features.from_arrow_schema(pa.schema([(n, c.type) for n, c in extra.items()])))
        return pa.table([*columns, *extra.values()], schema=features.arrow_schema)

    def _key(self, split: str) -> str:
        rows = self.splits[split]
        key = hashlib.blake2b(digest_size=16)
        for text in (self.scan.root, *self.class_names, "/", *map(repr, self.scan.stamps(self.scan.metadata)), "/"):
            key.update(f"{text}\0".encode())
        key.update("\0".join(self.scan.pictures[rows.start : rows.stop]).encode())
        key.update(self.scan.picture_stamps(rows))
        return key.hexdigest()

    def describe(self, split: str, count: int) -> str:
        """Return a sentence on the pictures that were found and the number that is used of them."""
        total = len(self.scan.pictures)
        parts = ""
        if self.by_folder:
            listed = ", ".join(f"{len(rows):,} in {name}/" for name, rows in self.splits.items() if name != ALL)
            parts = f" ({listed})"
        sentence = f"found {total:,} {plural('picture', total)} in {self.where}{parts}, using {count:,} as {split}"
        return "; passed over ".join(filter(None, [sentence, self.scan.describe_others()])) + "."

    def warnings(self) -> Iterator[str]:
        """Return sentences on what may be missing."""
        if self.beside:
            count = len(self.beside)
            yield (
                f"{self.where}: not using {count:,} {plural('picture', count)} beside the folders of splits: "
                f"{self._examples(self.beside)}. The split `{ALL}` has every picture."
            )
        if lost := self.scan.describe_lost():
            yield f"{self.where}: passed over {lost}."
        if self.metadata is not None:
            known = set(self.scan.pictures)
            names = self.metadata[FILE_NAME].to_pylist()
            if missing := [name for name in names if name not in known]:
                count = len(missing)
                yield (
                    f"{self.where}: the metadata name {count:,} missing {plural('file', count)}: "
                    f"{name_some(missing, count)}."
                )

    def _examples(self, rows: list[int]) -> str:
        return name_some((self.scan.pictures[row] for row in rows), len(rows))


def _read_metadata(scan: FolderScan) -> pa.Table | None:
    """
    Return the rows of all metadata files, with `file_name` relative to the folder of the scan.

    Files without a column `file_name` are not metadata of pictures and are counted with the other files.
    """
    tables = []
    for name in scan.metadata:
        table = _read_rows(scan.path(name))
        if FILE_NAME not in table.column_names:
            scan.others[os.path.splitext(name)[1].lower()] += 1
            scan.other_names.add(name)
            continue
        folder = PurePosixPath(name).parent
        names = [str(folder / str(row)) for row in table[FILE_NAME].to_pylist()]
        tables.append(table.set_column(table.column_names.index(FILE_NAME), FILE_NAME, pa.array(names, pa.string())))
    if not tables:
        return None
    try:
        metadata = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{scan.root}: the metadata files do not fit together: {error}") from error
    (name, count), *_ = Counter(metadata[FILE_NAME].to_pylist()).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"{scan.root}: the metadata have {count} rows for {name}, expected one row a picture.")
    return metadata


def _read_rows(path: str) -> pa.Table:
    """
    Return the rows of a metadata file; of an empty one there are none.

    Raises:
        ValueError: if it cannot be read, or several of its columns have one name.
    """
    if os.path.getsize(path) == 0:
        return pa.table({})
    table = _parse_rows(path)
    if repeated := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise ValueError(
            f"the metadata file {path} has several columns {', '.join(map(repr, repeated))}, expected one a name."
        )
    return table


def _parse_rows(path: str) -> pa.Table:
    try:
        if path.lower().endswith(".parquet"):
            return pa.parquet.read_table(path)
        if path.lower().endswith(".csv"):
            return pa.csv.read_csv(path)
        block = pa.json.ReadOptions(block_size=max(1, os.path.getsize(path)))  # rows may be longer than the default
        return pa.json.read_json(path, read_options=block)
    except pa.ArrowException as error:
        raise ValueError(f"the metadata file {path} cannot be read: {error}") from error


def _write_table(file: Path, table: pa.Table) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Each process has a draft of its own: several may write the same table.
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as folder:
        draft = Path(folder) / file.name
        with pa.ipc.new_stream(draft, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        fsync(draft)
        os.replace(draft, file)
