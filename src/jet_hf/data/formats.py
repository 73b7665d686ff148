# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Layouts of datasets other than folders of image files, and the choice of the layout of a data source."""

import glob
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import yaml
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher
from huggingface_hub import metadata_load

from .cache import Stamp, stamp_of
from .chrabaszcz import CHRABASZCZ, FIRST_LABEL, batches_of_splits, read_batches
from .fingerprints import StoredFile, stored_files
from .image_folder import ImageFolder
from .layout import Images, Layout
from .releases import RELEASES
from .scan import CHRABASZCZ_BATCH, TAR_SUFFIXES, Examples, FolderScan, counted, may_hold_images
from .splits import check_shards, split_of_file
from .tars import open_tars


if TYPE_CHECKING:
    from .sources import DataSource


logger = logging.getLogger(__name__)

PREPARATION_FILE = "preparation.json"
READ_ERRORS = (ValueError, FileNotFoundError, RuntimeError, DatasetsError, tarfile.TarError)


def find_layout(source: "DataSource") -> Layout:
    """
    Return the layout of a data source. A folder is scanned here, and nowhere else.

    Raises:
        ValueError: if there is nothing at the path of the source, no images, or several kinds of data.
    """
    if source.path is None:
        return HubDataset(source)
    path = Path(source.path).expanduser()
    if not path.exists():
        raise ValueError(f"the dataset {path} does not exist.")
    if path.is_file():
        return _layout_of_file(path, source)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return SavedDataset(path)
    if source.config is not None or _declares_files(path / "README.md"):
        return DeclaredFolder(path, source)
    return _layout_of_folder(path, source)


def _layout_of_file(path: Path, source: "DataSource") -> Layout:
    name = path.name
    if not (name.lower().endswith((".npz", ".parquet", *TAR_SUFFIXES)) or CHRABASZCZ_BATCH.fullmatch(name)):
        raise ValueError(f"the dataset {path} must be a folder or a parquet, tar or npz file.")
    return Shards(str(path), str(path.parent), {split_of_file(name): [name]}, source)


def _layout_of_folder(path: Path, source: "DataSource") -> Layout:
    where, scan, record = str(path), FolderScan.of(path), preparation_record(path)
    kinds = {"images": scan.images, "parquet files": scan.parquet, "tar files": scan.tars, "batches": scan.batches}
    found = {kind: names for kind, names in kinds.items() if names}
    if not found and not record:
        skipped = "; ".join(filter(None, [scan.describe_others(), scan.describe_unusable()])) or "it is empty"
        raise ValueError(f"{path} holds no readable images, parquet files or tar files: {skipped}.")
    if len(found) > 1:
        listed = ", ".join(f"{kind} ({len(names):,}, such as {names[0]})" for kind, names in found.items())
        raise ValueError(f"{path} holds several kinds of data: {listed}. Pass the folder or file of one kind.")
    if scan.images:
        return ImageFolder(scan, where)
    if scan.batches:
        return Shards(where, scan.root, batches_of_splits(scan.batches, where), source)
    return ShardFolder(scan, where, record, source)


def preparation_record(path: str | os.PathLike) -> dict:
    """Return the record that `scripts/prepare_imagenet.py` wrote into a folder; empty for other folders."""
    file = Path(path).expanduser() / PREPARATION_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


class Shards(Layout):
    """Parquet files, tar files, or batches of Chrabaszcz et al., by their names relative to `root` for each split."""

    def __init__(self, where: str, root: str, names: dict[str, list[str]], source: "DataSource"):
        super().__init__(where, names)
        self.root, self.names, self.source = root, names, source
        first = next(chain.from_iterable(names.values()), "").lower()
        self.is_parquet, self.is_tar = first.endswith(".parquet"), first.endswith(TAR_SUFFIXES)
        self.is_batches = bool(first) and not self.is_parquet and not self.is_tar
        if self.is_batches:
            self.release, self.first_label = CHRABASZCZ, FIRST_LABEL

    def open(self, split: str, streaming: bool) -> Images:
        paths = [os.path.join(self.root, name) for name in self.names[split]]
        if self.is_parquet:
            return _open_parquet(paths, streaming)
        if self.is_tar:
            return open_tars(paths, self.source.image_column, self.source.label_column, streaming)
        dataset, known = read_batches(paths), RELEASES[CHRABASZCZ]
        expected = known.num_train_images if split == "train" else known.num_validation_images
        if self.source.release is None and len(dataset) != expected:
            self.release = None  # a subset must not be reported under the name of the release
            logger.warning(
                f"{self.where}: the split {split!r} has {len(dataset):,} images in {', '.join(self.names[split])}, "
                f"but that of {known.title} has {expected:,}: results are not reported as results on this release."
            )
        return dataset

    def files(self, split: str) -> Iterator[StoredFile]:
        is_single = not self.is_batches and Path(self.where).is_file()
        for name, path, size in stored_files(self.root, self.names[split]):
            yield "" if is_single else name, path, size  # the name of a single file may change


class ShardFolder(Shards):
    """A scanned folder of parquet or tar shards, and the record of `scripts/prepare_imagenet.py` if it wrote them."""

    def __init__(self, scan: FolderScan, where: str, record: dict, source: "DataSource"):
        names: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for name in scan.parquet or scan.tars:
            names.setdefault(split_of_file(name), []).append(name)
        super().__init__(where, scan.root, {split: found for split, found in names.items() if found}, source)
        self.scan, self.records, self.release = scan, record.get("splits", {}), record.get("release")
        self.splits = list(dict.fromkeys([*self.names, *self.records]))
        if unusable := scan.describe_unusable():
            self.warnings = (f"{where}: skipped {unusable}.",)

    def open(self, split: str, streaming: bool) -> Images:
        if split not in self.names or "num_images" not in self.records.get(split, {"num_images": None}):
            raise ValueError(f"the split {split!r} is not finished: run scripts/prepare_imagenet.py again.")
        check_shards(self.names[split])
        return super().open(split, streaming)

    def describe(self, split: str, dataset: Images) -> str:
        total = counted(len(self.scan.parquet or self.scan.tars), "parquet file" if self.is_parquet else "tar file")
        listed = ", ".join(f"{len(names):,} of {name}" for name, names in self.names.items())
        found = f"found {total} ({listed}) in {self.where}"
        return "; skipped ".join(filter(None, [found, self.scan.describe_others()])) + "."


class SavedDataset(Layout):
    """A folder that `save_to_disk` wrote."""

    def __init__(self, path: Path):
        saved = datasets.load_from_disk(str(path))
        self.loaded = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        super().__init__(str(path), self.loaded)

    def open(self, split: str, streaming: bool) -> datasets.Dataset:
        return self.loaded[split]

    def files(self, split: str) -> Iterator[StoredFile]:
        files = self.loaded[split].cache_files
        return stored_files(self.where, [os.path.relpath(file["filename"], self.where) for file in files])


class LoadedDataset(Layout):
    """A dataset that `datasets.load_dataset` reads; `options` are further arguments of this function."""

    def __init__(self, where: str, source: "DataSource", **options):
        self.load = partial(datasets.load_dataset, where, name=source.config, **options)
        self.streaming = source.streaming
        try:
            self.loaded = self.load(streaming=self.streaming)
        except READ_ERRORS as error:
            raise read_error(where, error) from error
        super().__init__(where, self.loaded)
        self.builder = partial(datasets.load_dataset_builder, where, name=source.config)

    def open(self, split: str, streaming: bool) -> Images:
        return self.loaded[split] if streaming == self.streaming else self.load(streaming=streaming, split=split)


class HubDataset(LoadedDataset):
    """A dataset on the Hub."""

    def __init__(self, source: "DataSource"):
        name = str(source.name)
        try:
            super().__init__(name, source)
        except (ValueError, OSError) as error:
            if Path(name).exists():
                raise
            raise ValueError(
                f"there is no path {name}, and no dataset of this name can be opened on the Hub: {error}"
            ) from error

    def files(self, split: str) -> Iterator[StoredFile]:
        builder = self.builder()
        for file in (builder.config.data_files or {}).get(split, [builder.hash]):
            yield str(file), None, 0  # the address of a file on the Hub contains its revision


class DeclaredFolder(LoadedDataset):
    """A folder whose dataset card names the files of each split, as on the Hub."""

    def __init__(self, path: Path, source: "DataSource"):
        files = sorted(file for file in path.rglob("*") if file.is_file())
        # `datasets` caches such folders by their last name and their card, not by their files.
        stamps = [(str(file.resolve()), stamp_of(file.stat())) for file in files]
        logger.info(f"found {len(files):,} files in {path}, using the ones that its card names.")
        super().__init__(str(path), source, cache_dir=_cache_dir(stamps))
        self.names = [str(file.relative_to(path)) for file in files]
        declared = self.builder().config.data_files or {}
        used = {os.path.realpath(file) for of_split in declared.values() for file in of_split}
        unused = Examples()
        for file, name in zip(files, self.names, strict=True):
            if may_hold_images(name) and os.path.realpath(file) not in used:
                unused.add(name)
        if unused.count:
            count = counted(unused.count, "file")
            self.warnings = (f"{path}: not using {count} that its card does not name: {unused}.",)

    def files(self, split: str) -> Iterator[StoredFile]:
        return stored_files(self.where, self.names)


def _open_parquet(paths: list[str], streaming: bool) -> Images:
    return datasets.load_dataset(
        "parquet",
        data_files={"train": [glob.escape(path) for path in paths]},
        split="train",
        streaming=streaming,
        cache_dir=_cache_dir([(path, stamp_of(os.stat(path))) for path in paths]),
    )


def _cache_dir(stamps: list[tuple[str, Stamp]]) -> str:
    """Return a cache folder of `datasets` for files with these stamps only."""
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "folders" / Hasher.hash(stamps))


def _declares_files(card: Path) -> bool:
    """Return whether a dataset card names the files of its configurations."""
    try:
        return card.is_file() and "configs" in (metadata_load(card) or {})
    except (ValueError, yaml.YAMLError) as error:
        logger.warning(f"the header of {card} cannot be read, so it is ignored: {error}")
        return False


def read_error(where: str, error: BaseException) -> ValueError:
    """Return an error that names the dataset, for one of `READ_ERRORS`."""
    advice = ""
    if "scripts are no longer supported" in str(error):
        advice = ". Pass a version of it in parquet or webdataset format, or a folder of its images."
    if isinstance(error, DatasetsError) and error.__cause__ is not None:
        error = error.__cause__  # the error of a generator of rows says more
    return ValueError(f"{where} cannot be read: {error}{advice}")
