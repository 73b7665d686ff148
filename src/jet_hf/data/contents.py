# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Find the splits of a data set, for every layout of files that can be read."""

import glob
import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import yaml
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher
from huggingface_hub import metadata_load

from .chrabaszcz import CHRABASZCZ, batches_of_splits, read_batches
from .fingerprints import StoredFile
from .folders import CHRABASZCZ_BATCH, TAR_SUFFIXES, Examples, FolderScan, Stamp, may_hold_pictures, plural
from .pictures import PictureFolder
from .splits import UnknownSplitError, check_shards, resolve_slices, split_of_file
from .tars import open_tars


if TYPE_CHECKING:
    from .sources import DataSource


logger = logging.getLogger(__name__)

PREPARATION_FILE = "preparation.json"
Images = datasets.Dataset | datasets.IterableDataset
READ_ERRORS = (ValueError, FileNotFoundError, RuntimeError, DatasetsError, tarfile.TarError)


@dataclass(frozen=True)
class Contents:
    """
    Splits of a data set, not opened yet.

    Args:
        where: Name or path of the data set, for messages.
        splits: Names of the splits.
        open: Returns a split, as a stream or not.
        files: Returns the stored files of a split, for its fingerprint.
        class_files: Returns the stored files that hold classes and are not among those of the splits.
        release: Release that the format of the files tells.
        describe: Returns a sentence on a split of which so many images are used; by default there is none.
        warnings: Sentences on files that are not used.
        sorted_by_folder: Whether images that lie in one folder follow each other.
        no_classes: Reason why there are no classes, for messages.
        problem: Reason why the splits cannot be told, for messages.
        split_folders: Whether the splits are named after folders: two folders that may be meant are refused then.
    """

    where: str
    splits: Collection[str]
    open: Callable[[str, bool], Images]
    files: Callable[[str], Iterator[StoredFile]]
    class_files: Callable[[], Iterator[StoredFile]] = lambda: iter(())
    release: str | None = None
    describe: Callable[[str, int], str] | None = None
    warnings: tuple[str, ...] = ()
    sorted_by_folder: bool = False
    no_classes: str = ""
    problem: str | None = None
    split_folders: bool = False

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

    def named(self, spec: str) -> list[str]:
        """Return the splits that a resolved name or sum of slices is made of."""
        return [name for name in self.splits if re.search(rf"(^|\+){re.escape(name)}(\[|\+|$)", spec)]


def preparation_record(path: str | os.PathLike) -> dict:
    """Return the record that `scripts/prepare_imagenet.py` left in a folder; it is empty for other folders."""
    file = Path(path).expanduser() / PREPARATION_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def contents_of_path(source: "DataSource") -> Contents:
    path = Path(source.path).expanduser()
    if not path.exists():
        raise ValueError(f"`dataset_path` {path} does not exist.")
    if path.is_file():
        return _contents_of_file(path, source)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _contents_of_saved(path)
    if source.config is not None or _declares_files(path / "README.md"):
        return _contents_of_declared(path, source)
    record = preparation_record(path)
    scan = FolderScan.of(path)
    kinds = {kind: names for kind in ("pictures", "parquet", "tars", "batches") if (names := getattr(scan, kind))}
    if not kinds and not record:
        passed = "; ".join(filter(None, [scan.describe_others(), scan.describe_lost()])) or "it is empty"
        raise ValueError(f"{path} holds no pictures, parquet files or tar files that can be read: {passed}.")
    if len(kinds) > 1:
        found = ", ".join(f"{len(names):,} {kind} (such as {names[0]})" for kind, names in kinds.items())
        raise ValueError(
            f"{path} holds several kinds of data: {found}. Give the folder or file of one of them as the data set."
        )
    if scan.pictures:
        return _contents_of_pictures(path, scan)
    if scan.batches:
        return _contents_of_batches(str(path), scan.root, batches_of_splits(scan.batches, str(path)))
    return _contents_of_shards(source, scan, record)


def _contents_of_pictures(path: Path, scan: FolderScan) -> Contents:
    folder = PictureFolder(scan, str(path))
    return Contents(
        str(path),
        folder.splits,
        lambda split, streaming: folder.open(split),
        folder.files,
        folder.metadata_files,
        describe=folder.describe,
        warnings=tuple(folder.warnings()),
        sorted_by_folder=True,
        no_classes=folder.no_classes,
        problem=folder.problem,
        split_folders=True,
    )


def _contents_of_batches(where: str, root: str, splits: dict[str, list[str]]) -> Contents:
    def files(split: str) -> Iterator[StoredFile]:
        return _stored(root, splits[split])

    def open_batches(split: str, streaming: bool) -> datasets.Dataset:
        return read_batches([path for _, path, _ in files(split)])

    return Contents(where, splits, open_batches, files, release=CHRABASZCZ)


def _contents_of_shards(source: "DataSource", scan: FolderScan, record: dict) -> Contents:
    splits: dict[str, list[str]] = {}
    for name in scan.parquet or scan.tars:
        splits.setdefault(split_of_file(name), []).append(name)
    splits = {split: splits[split] for split in sorted(splits, key=["train", "validation", "test", *splits].index)}
    kind = "parquet file" if scan.parquet else "tar file"
    total = len(scan.parquet or scan.tars)
    listed = ", ".join(f"{len(names):,} of {split}" for split, names in splits.items())
    found = [f"found {total:,} {plural(kind, total)} ({listed})", *filter(None, [scan.describe_others()])]
    lost = scan.describe_lost()

    def open_shards(split: str, streaming: bool) -> Images:
        if "num_images" not in record.get("splits", {}).get(split, {"num_images": None}):
            raise ValueError(f"the split {split!r} is not finished, run scripts/prepare_imagenet.py again.")
        check_shards(splits[split])
        logger.info(f"{'; passed over '.join(found)}.")
        paths = [scan.path(name) for name in splits[split]]
        if scan.tars:
            return open_tars(paths, source.image_column, source.label_column, streaming)
        return _open_parquet(paths, streaming)

    def files(split: str) -> Iterator[StoredFile]:
        return _stored(scan.root, splits[split])

    unfinished = [name for name in record.get("splits", {}) if name not in splits]
    warnings = (f"{source.path}: passed over {lost}.",) if lost else ()
    release = record.get("release")
    return Contents(source.path, [*splits, *unfinished], open_shards, files, release=release, warnings=warnings)


def _contents_of_file(path: Path, source: "DataSource") -> Contents:
    name = path.name
    if name.endswith(".npz") or CHRABASZCZ_BATCH.fullmatch(name):
        return _contents_of_batches(str(path), str(path.parent), {split_of_file(name): [name]})

    def open_file(split: str, streaming: bool) -> Images:
        if name.lower().endswith(".parquet"):
            return _open_parquet([str(path)], streaming)
        return open_tars([str(path)], source.image_column, source.label_column, streaming)

    if not name.lower().endswith((".parquet", *TAR_SUFFIXES)):
        raise ValueError(f"`dataset_path` {path} is no folder and no parquet, tar or npz file.")
    # Without the name, which may change.
    files = [("", str(path), path.stat().st_size)]
    return Contents(str(path), [split_of_file(name)], open_file, lambda split: iter(files))


def _contents_of_saved(path: Path) -> Contents:
    saved = datasets.load_from_disk(str(path))
    splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}

    def files(split: str) -> Iterator[StoredFile]:
        return _stored(str(path), [os.path.relpath(file["filename"], path) for file in splits[split].cache_files])

    return Contents(str(path), splits, lambda split, streaming: splits[split], files)


def _contents_of_declared(path: Path, source: "DataSource") -> Contents:
    """Return the contents of a folder whose dataset card names the files of each split, as on the Hub."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    # By itself `datasets` tells such folders apart by their last name and card, not by their files.
    stamps = [(str(file.resolve()), Stamp.of(file.stat())) for file in files]
    cache_dir = Path(datasets.config.HF_DATASETS_CACHE) / "folders" / Hasher.hash(stamps)
    names = [str(file.relative_to(path)) for file in files]
    load = partial(datasets.load_dataset, str(path), name=source.config, cache_dir=str(cache_dir))
    logger.info("found %d files in %s, using those that its card names.", len(files), path)
    contents = _loaded(str(path), load, source.streaming, lambda split: _stored(str(path), names))
    declared = datasets.load_dataset_builder(str(path), name=source.config).config.data_files or {}
    used = {os.path.realpath(file) for of_split in declared.values() for file in of_split}
    unused = Examples()
    for file, name in zip(files, names, strict=True):
        if may_hold_pictures(name) and os.path.realpath(file) not in used:
            unused.add(name)
    if not unused.count:
        return contents
    warning = (
        f"{path}: not using {unused.count:,} {plural('file', unused.count)} that its card does not name: {unused}."
    )
    return replace(contents, warnings=(warning,))


def contents_of_hub(source: "DataSource") -> Contents:
    def files(split: str) -> Iterator[StoredFile]:
        builder = datasets.load_dataset_builder(source.name, name=source.config)
        for file in (builder.config.data_files or {}).get(split, [builder.hash]):
            yield str(file), None, 0  # the address of a file on the Hub has its revision in it

    load = partial(datasets.load_dataset, source.name, name=source.config)
    return _loaded(source.name, load, source.streaming, files)


def _loaded(where: str, load: Callable, streaming: bool, files: Callable) -> Contents:
    try:
        splits = load(streaming=streaming)
    except READ_ERRORS as error:
        raise read_error(where, error) from error

    def open_loaded(split: str, as_stream: bool) -> Images:
        return splits[split] if as_stream == streaming else load(streaming=as_stream, split=split)

    return Contents(where, splits, open_loaded, files)


def _open_parquet(paths: list[str], streaming: bool) -> Images:
    stamps = [(path, Stamp.of(os.stat(path))) for path in paths]
    cache_dir = Path(datasets.config.HF_DATASETS_CACHE) / "folders" / Hasher.hash(stamps)
    return datasets.load_dataset(
        "parquet",
        data_files={"train": [glob.escape(path) for path in paths]},
        split="train",
        streaming=streaming,
        cache_dir=str(cache_dir),
    )


def _stored(root: str, names: list[str]) -> Iterator[StoredFile]:
    for name in names:
        path = os.path.join(root, name)
        yield name, path, os.path.getsize(path)


def _declares_files(card: Path) -> bool:
    """Return whether a dataset card names the files of its configurations."""
    try:
        return card.is_file() and "configs" in (metadata_load(card) or {})
    except (ValueError, yaml.YAMLError) as error:
        logger.warning("the header of %s cannot be read, the folder is listed without it: %s", card, error)
        return False


def read_error(where: str, error: Exception) -> ValueError:
    """Return an error that names the data set, for one of `READ_ERRORS`."""
    advice = ""
    if "scripts are no longer supported" in str(error):
        advice = ". Name a version of it in parquet or webdataset format, or a folder of its images."
    if isinstance(error, DatasetsError) and error.__cause__:  # the error of a generator of rows says more
        error = error.__cause__
    return ValueError(f"{where} cannot be read: {error}{advice}")
