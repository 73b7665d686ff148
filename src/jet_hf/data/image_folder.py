# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of image files: their splits, classes and metadata."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets.fingerprint import Hasher

from ..utils.files import fsync
from .cache import cache_file, stamp_of
from .fingerprints import StoredFile, stored_files
from .layout import Images, Layout
from .scan import FolderScan, counted, name_some
from .splits import canonical_split


ALL = "all"
IMAGE, LABEL = "image", "label"
FILE_NAME = "file_name"


class ImageFolder(Layout):
    """
    A folder of image files.

    Subfolders at the top level whose whole name is that of a split (`train`, `Val`, `test`, ...) are the splits. A
    single such subfolder must hold all images; files beside several of them are not used. Without such subfolders all
    images form the split `train`. The split `all` holds every image. The top level is the first one that holds an
    image or several folders.

    Args:
        scan: Scan of the folder.
        where: Name of the folder, for messages.
    """

    sorted_by_folder = True
    split_folders = True

    def __init__(self, scan: FolderScan, where: str):
        self.scan = scan
        everything = range(len(scan.images))
        top = self._find_top()
        folders, loose = scan.subfolders(top)
        named = {name: rows for name, rows in folders.items() if canonical_split(name)}
        others = [rows for name, rows in folders.items() if name not in named]
        self.beside = sorted(chain(loose, *others)) if named else []
        self.rows = {**(named or {"train": everything}), ALL: everything}
        if problem := self._find_ambiguity(where, top, named):
            self.problem = f"{where}: {problem}, or pass the split `{ALL}` to use every image."
            self.rows, self.beside = {ALL: everything}, []
        super().__init__(where, self.rows)
        self.by_folder = bool(named) and not self.problem
        self.class_names = self._find_classes(depth=top.count("/") + self.by_folder)
        self.metadata = _read_metadata(scan)
        self.warnings = tuple(self._find_warnings())

    def _find_top(self) -> str:
        top = ""
        while True:
            folders, loose = self.scan.subfolders(top)
            if loose or len(folders) != 1:
                return top
            (name,) = folders
            if canonical_split(name):
                return top
            top += f"{name}/"

    def _find_ambiguity(self, where: str, top: str, named: dict[str, range]) -> str | None:
        """Return why the splits cannot be determined, or `None` if they can."""
        if self.beside and len({canonical_split(name) for name in named}) == 1:
            name = next(iter(named))
            return (
                f"the folder {top}{name}/ may be a split, or hold images like the {len(self.beside):,} beside it "
                f"({self._examples(self.beside)}); pass {os.path.join(where, top, name)} as the dataset if it is a "
                "split"
            )
        if not named and (nested := self._nested_splits()):
            return (
                f"the folders {' and '.join(nested)} have the names of splits but do not lie at the top level; pass "
                "the folder above them as the dataset if they are splits"
            )
        return None

    def _nested_splits(self) -> list[str]:
        """Return one folder below the top level for each split, if there are folders of several splits."""
        found: dict[str, str] = {}
        for folder in {os.path.dirname(name) for name in self.scan.images}:
            for path in [PurePosixPath(folder), *PurePosixPath(folder).parents]:
                if split := canonical_split(path.name):
                    found[split] = min(found.get(split, str(path)), str(path))
        return sorted(found.values()) if len(found) > 1 else []

    def _find_classes(self, depth: int) -> list[str]:
        """Return the folders of the images as classes, if all are equally deep and lie below those of the splits."""
        parts = [rows for name, rows in self.rows.items() if name != ALL] or [self.rows[ALL]]
        names = [self.scan.images[row] for rows in parts for row in rows]
        depths = {name.count("/"): name for name in names}
        if len(depths) > 1:
            shallow, deep = depths[min(depths)], depths[max(depths)]
            self.unlabeled_reason = f"Folders are not classes here: images lie at several depths ({shallow}, {deep})."
            return []
        classes = {os.path.basename(os.path.dirname(name)) for name in names}
        return sorted(classes) if depths and min(depths) > depth and len(classes) > 1 else []

    def num_images(self, split: str, streaming: bool) -> int:
        return len(self.rows[split])

    def files(self, split: str) -> Iterator[StoredFile]:
        for row in self.rows[split]:
            name = self.scan.images[row]
            yield name, self.scan.path(name), self.scan.image_size(row)

    def label_files(self) -> Iterator[StoredFile]:
        return stored_files(self.scan.root, self.scan.metadata)

    def open(self, split: str, streaming: bool) -> datasets.Dataset:
        """
        Return the paths of the images of a split, sorted, with labels and the columns of their metadata.

        The table is cached under the stamps of the images, so that results derived from it are not reused after an
        image changes.
        """
        file = cache_file(f"{self._key(split)}.arrow")
        if not file.exists():
            _write_table(file, self._table(self.rows[split]))
        return datasets.Dataset.from_file(str(file))

    def _table(self, rows: range) -> pa.Table:
        names = self.scan.images[rows.start : rows.stop]
        paths = pa.array([self.scan.path(name) for name in names], pa.string())
        features = datasets.Features({IMAGE: datasets.Image(decode=False)})
        columns = [pa.StructArray.from_arrays([pa.nulls(len(rows), pa.binary()), paths], ["bytes", "path"])]
        extra = self._metadata_of(names)
        if self.class_names and LABEL not in extra:
            number = {name: i for i, name in enumerate(self.class_names)}
            labels = [number.get(os.path.basename(os.path.dirname(name))) for name in names]
            columns.append(pa.array(labels, pa.int64()))
            features[LABEL] = datasets.ClassLabel(names=self.class_names)
        features.update(datasets.Features.from_arrow_schema(pa.schema([(n, c.type) for n, c in extra.items()])))
        return pa.table([*columns, *extra.values()], schema=features.arrow_schema)

    def _metadata_of(self, names: list[str]) -> dict[str, pa.Array]:
        """Return the columns of the metadata of some images, with null where an image has none."""
        if self.metadata is None:
            return {}
        row = {name: i for i, name in enumerate(self.metadata[FILE_NAME].to_pylist())}
        found = self.metadata.drop_columns([name for name in (FILE_NAME, IMAGE) if name in self.metadata.column_names])
        found = found.take(pa.array([row.get(name) for name in names], pa.int64()))
        return {name: found[name].combine_chunks() for name in found.column_names}

    def _key(self, split: str) -> str:
        rows = self.rows[split]
        metadata = [stamp_of(os.stat(self.scan.path(name))) for name in self.scan.metadata]
        names = "\0".join(self.scan.images[rows.start : rows.stop])
        return Hasher.hash((self.scan.root, self.class_names, metadata, names, self.scan.image_stamps(rows)))

    def describe(self, split: str, dataset: Images) -> str:
        parts = [f"{len(rows):,} in {name}/" for name, rows in self.rows.items() if self.by_folder and name != ALL]
        listed = f" ({', '.join(parts)})" if parts else ""
        total = counted(len(self.scan.images), "image")
        found = f"found {total} in {self.where}{listed}, using {len(dataset):,} as {split}"
        return "; skipped ".join(filter(None, [found, self.scan.describe_others()])) + "."

    def _find_warnings(self) -> Iterator[str]:
        if self.beside:
            yield (
                f"{self.where}: not using {counted(len(self.beside), 'image')} beside the folders "
                f"of splits: {self._examples(self.beside)}. The split `{ALL}` holds every image."
            )
        if unusable := self.scan.describe_unusable():
            yield f"{self.where}: skipped {unusable}."
        if self.metadata is not None:
            known = set(self.scan.images)
            if missing := [name for name in self.metadata[FILE_NAME].to_pylist() if name not in known]:
                yield (
                    f"{self.where}: the metadata name {counted(len(missing), 'missing file')}: "
                    f"{name_some(missing, len(missing))}."
                )

    def _examples(self, rows: Iterable[int]) -> str:
        rows = list(rows)
        return name_some((self.scan.images[row] for row in rows), len(rows))


def _read_metadata(scan: FolderScan) -> pa.Table | None:
    """
    Return the rows of all metadata files, with `file_name` relative to the root of the scan.

    Files without a column `file_name` are not metadata of images and are counted among the other files.
    """
    tables = []
    for name in scan.metadata:
        table = _read_rows(scan.path(name))
        if FILE_NAME not in table.column_names:
            scan.add_other(name)
            continue
        folder = PurePosixPath(name).parent
        names = [str(folder / str(row)) for row in table[FILE_NAME].to_pylist()]
        tables.append(table.set_column(table.column_names.index(FILE_NAME), FILE_NAME, pa.array(names, pa.string())))
    if not tables:
        return None
    try:
        metadata = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{scan.root}: the types of the metadata files do not match: {error}") from error
    (name, count), *_ = Counter(metadata[FILE_NAME].to_pylist()).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"{scan.root}: the metadata have {count} rows for {name}, expected at most one per image.")
    return metadata


def _read_rows(path: str) -> pa.Table:
    """
    Return the rows of a metadata file, which may be empty.

    Raises:
        ValueError: if the file cannot be read, or several of its columns have the same name.
    """
    if os.path.getsize(path) == 0:
        return pa.table({})
    try:
        if path.lower().endswith(".parquet"):
            table = pa.parquet.read_table(path)
        elif path.lower().endswith(".csv"):
            table = pa.csv.read_csv(path)
        else:
            block = pa.json.ReadOptions(block_size=os.path.getsize(path))  # rows may be longer than the default
            table = pa.json.read_json(path, read_options=block)
    except pa.ArrowException as error:
        raise ValueError(f"the metadata file {path} cannot be read: {error}") from error
    if repeated := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise ValueError(
            f"the metadata file {path} has several columns named {', '.join(map(repr, repeated))}, expected one."
        )
    return table


def _write_table(file: Path, table: pa.Table) -> None:
    # Several processes may write the same table, so each has its own draft.
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as folder:
        draft = Path(folder) / file.name
        with pa.ipc.new_stream(draft, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        fsync(draft)
        os.replace(draft, file)
