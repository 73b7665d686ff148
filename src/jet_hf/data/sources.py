# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Where images come from: data sets of the Hub, folders and files."""

import glob
import json
import logging
import math
import os
import pickle
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher

from .releases import RELEASES


logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
PREPARATION_FILE = "preparation.json"
SPLIT_KEYWORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
CHRABASZCZ = "imagenet1k_chrabaszcz"
CHRABASZCZ_NAMES = {"train": [f"train_data_batch_{i}" for i in range(1, 11)], "validation": ["val_data"]}
# All that pickles of arrays, lists and numbers refer to, under NumPy's old and new name.
PICKLED_GLOBALS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class UnknownSplitError(ValueError):
    """A data set has no split of that name."""


@dataclass(frozen=True)
class DataSource:
    """
    A data set, by name or by path.

    Args:
        name, config: Name on the Hub, and configuration.
        path: What lies on the disk: a folder of images, parquet shards or webdataset tars, whose splits are told by
            names of subfolders or files; a folder that `save_to_disk` wrote; npz or pickle batches as Chrabaszcz et
            al. publish them; a single parquet, tar or npz file.
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
        """The data set at a path, where there is something, or else of that name on the Hub."""
        return cls(**{"path" if Path(place).expanduser().exists() else "name": place}, config=config, **fields)

    @classmethod
    def from_arguments(cls, arguments) -> "DataSource":
        """The data set that the fields `dataset_name`, `dataset_path` and so on of a script's arguments name."""
        return cls(
            name=arguments.dataset_name,
            config=arguments.dataset_config,
            path=arguments.dataset_path,
            image_column=arguments.image_column,
            label_column=arguments.label_column,
            streaming=arguments.streaming,
            release=arguments.dataset_release,
        )


def open_split(source: DataSource, split: str) -> datasets.Dataset | datasets.IterableDataset:
    """
    A split with its images as they are stored: encoded, or as arrays.

    Args:
        source: Where it comes from. Batches of Chrabaszcz et al. and folders that `save_to_disk` wrote are map-style
            also when streaming.
        split: Its name; of a map-style data set also a slice of it, such as `train[:98%]`.

    Raises:
        UnknownSplitError: if there is no such split; the message names those that there are.
        ValueError: if there is nothing to read at the source's path, nothing that holds images, or another release.
    """
    known_release(source)
    if source.path is None:
        dataset = _load(source.name, source, split)
    else:
        dataset = _open_path(Path(source.path).expanduser(), source, split)
    column = find_image_column(dataset.features or datasets.Features(), source.image_column)
    if isinstance(dataset.features[column], datasets.Array3D):
        return dataset
    return dataset.cast_column(column, datasets.Image(decode=False))


def known_release(source: DataSource) -> str | None:
    """
    The release that a source is, as stated or as its format tells.

    Raises:
        ValueError: if the two differ.
    """
    told = None
    if source.path is not None:
        path = Path(source.path).expanduser()
        told = CHRABASZCZ if _chrabaszcz_files(path) else preparation_record(path).get("release")
    if None not in (told, source.release) and told != source.release:
        raise ValueError(
            f"`dataset_release` is {source.release}, but {source.path} holds {told} ({RELEASES[told].title}). Figures "
            "of two releases are not comparable."
        )
    return told or source.release


def preparation_record(path: str | os.PathLike) -> dict:
    """What `scripts/prepare_imagenet.py` recorded of a folder that it wrote; empty for other folders."""
    file = Path(path).expanduser() / PREPARATION_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def find_label_column(features: datasets.Features, label_column: str | None = None) -> str:
    """
    The column that holds the classes, as whole numbers: the only one of type ClassLabel.

    Args:
        features: Those of the data set.
        label_column: The column, where it is known; of type ClassLabel or a whole number.

    Raises:
        ValueError: if there is none, or several, or `label_column` is not one.
    """
    if label_column is None:
        typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        if len(typed) != 1:
            found = ", ".join(typed) or "none"
            raise ValueError(
                f"expected one column of classes, got {found} among {list(features)}: give `label_column`."
            )
        return typed[0]
    feature = features.get(label_column)
    if not isinstance(feature, datasets.Value | datasets.ClassLabel) or "int" not in feature.dtype:
        raise ValueError(f"`label_column` {label_column!r} must be one of classes, the columns are {dict(features)}.")
    return label_column


def find_image_column(features: datasets.Features, image_column: str | None = None) -> str:
    """
    The column that holds the images: the only one of type Image or a three-dimensional array of bytes, or the one of
    them with a usual name. Encoded files in a column of bytes are images if the column has a usual name.

    Args:
        features: Those of the data set.
        image_column: The column, where it is known.

    Raises:
        ValueError: if there is none, or several and none of them has a usual name, or `image_column` is not one.
    """
    typed = [name for name, feature in features.items() if _holds_images(feature)]
    if image_column is not None:
        if image_column not in features:
            raise ValueError(f"`image_column` is {image_column!r}, the columns are {', '.join(features)}.")
        if image_column not in typed and not _holds_files(features[image_column]):
            raise ValueError(f"`image_column` {image_column!r} holds no images but {features[image_column]}.")
        return image_column
    if len(typed) == 1:
        return typed[0]
    candidates = typed or [name for name, feature in features.items() if _holds_files(feature)]
    named = [name for name in IMAGE_COLUMNS if name in candidates]
    if not named:
        raise ValueError(
            f"expected one column of images, got {candidates or 'none'} among {list(features)}: give `image_column`."
        )
    return named[0]


def _holds_images(feature) -> bool:
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, datasets.Array3D) and feature.dtype == "uint8" and None not in feature.shape
    )


def _holds_files(feature) -> bool:
    binary = datasets.Value("binary"), datasets.Value("large_binary")
    return feature in binary or (isinstance(feature, dict) and feature.get("bytes") in binary)


def _open_path(path: Path, source: DataSource, split: str):
    if not path.exists():
        raise ValueError(f"`dataset_path` {path} does not exist.")
    if batches := _chrabaszcz_files(path):
        _check_split(split, batches, path)
        return _read_chrabaszcz(batches[split])
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
        splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        _check_split(split, splits, path)
        return splits[split]
    unfinished = [
        name for name, entry in preparation_record(path).get("splits", {}).items() if "num_images" not in entry
    ]
    if split in unfinished:
        raise ValueError(f"{path}: the split {split!r} is not finished, run scripts/prepare_imagenet.py again.")
    if path.is_dir():
        for tar in path.glob("*.tar"):
            _check_end(tar)
        return _load(str(path), source, split, cache_dir=_own_cache(path))
    for suffixes, builder in (((".parquet",), "parquet"), ((".tar", ".tar.gz", ".tgz"), "webdataset")):
        if path.name.lower().endswith(suffixes):
            _check_end(path)
            return _load(builder, source, split, data_files={split_of_name(path.name): glob.escape(str(path))})
    raise ValueError(f"`dataset_path` {path} is no folder and no parquet, tar or npz file.")


def _own_cache(path: Path) -> str | None:
    """
    Where `datasets` keeps what it reads of a folder with a dataset card. By itself it tells such folders apart by
    their last name and card, not by their files, and gives those of another one or of an earlier time.
    """
    if not (path / "README.md").is_file():
        return None
    files = sorted((str(file.resolve()), file.stat()) for file in path.rglob("*") if file.is_file())
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "folders" / Hasher.hash(stamps))


def _check_end(path: Path) -> None:
    """A tar file that was cut short reads like a smaller one: what is missing at its end are two empty blocks."""
    if path.suffix == ".tar":
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 1024))
            if file.read().strip(b"\0"):
                logger.warning("%s does not end as a tar file does: images may be missing, was it cut short?", path)


def _check_split(split: str, known, where) -> None:
    if split not in known:
        raise UnknownSplitError(f"{where} has no split {split!r}, but {', '.join(known) or 'none'}.")


def split_of_name(name: str) -> str:
    """The split that a file's name tells, as `datasets` understands it: `valid_64x64.tar` is of validation."""
    words = set(re.split(r"[-._ 0-9]+", name.lower()))
    return next((split for split, keywords in SPLIT_KEYWORDS.items() if words & keywords), "train")


def _load(name: str, source: DataSource, split: str, **options):
    """`datasets.load_dataset`, with errors that name the source."""
    where = source.name or source.path
    if source.config is not None:
        options["name"] = source.config
    try:
        splits = datasets.load_dataset(name, streaming=source.streaming, **options)
        if split in splits:
            return splits[split]
        for part in split.split("+"):
            _check_split(part.split("[")[0].strip(), splits, where)
        return datasets.load_dataset(name, streaming=source.streaming, split=split, **options)
    except UnknownSplitError:
        raise
    except (ValueError, FileNotFoundError, RuntimeError, DatasetsError, tarfile.TarError) as error:
        raise ValueError(f"{where} cannot be read: {error.__cause__ or error}{_advice(where, error)}") from error


def _advice(where: str, error: Exception) -> str:
    if "scripts are no longer supported" in str(error):
        return ". Name a version of it in parquet or webdataset format, or a folder of its images."
    if isinstance(error, FileNotFoundError) and Path(where).is_dir():
        found = sorted(entry.name for entry in Path(where).iterdir())[:5]
        pattern = " `datasets` reads * ? [ ] in a path as a pattern." if re.search(r"[*?[\]]", where) else ""
        return f"; it holds {', '.join(found) or 'nothing'}.{pattern}"
    return ""


def _chrabaszcz_files(path: Path) -> dict[str, list[Path]]:
    """The batches of Chrabaszcz et al. at a path, split by split, in order; empty if there are none."""
    if path.is_file():
        if path.suffix == ".npz" or any(path.name in names for names in CHRABASZCZ_NAMES.values()):
            return {split_of_name(path.name): [path]}
        return {}
    if not path.is_dir():
        return {}
    found = {}
    folders = [path, *sorted(Path(entry.path) for entry in os.scandir(path) if entry.is_dir())]
    for split, names in CHRABASZCZ_NAMES.items():
        for folder in folders:
            files = [file for name in names for file in (folder / f"{name}.npz", folder / name) if file.is_file()]
            if not files:
                continue
            if split in found:
                raise ValueError(f"{found[split][0].parent} and {folder} both hold {split} batches: give one of them.")
            wanted = [file.stem for file in files]
            if wanted != names[: len(files)]:
                raise ValueError(f"{folder} holds the batches {', '.join(wanted)}, not one each without a gap.")
            found[split] = files
    return found


def _read_chrabaszcz(files: list[Path]) -> datasets.Dataset:
    images, labels = read_chrabaszcz_batch(files[0])
    features = {"image": datasets.Array3D(images.shape[1:], "uint8")}
    if labels is not None:
        features["label"] = datasets.Value("int64")
    # Sizes and times are part of the arguments, by which the result is cached.
    stamps = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return datasets.Dataset.from_generator(
        _chrabaszcz_rows,
        features=datasets.Features(features),
        gen_kwargs={"files": [str(file) for file in files], "stamps": stamps},
    )


def _chrabaszcz_rows(files: list[str], stamps: list[tuple[int, int]]) -> Iterator[dict]:
    for file in files:
        images, labels = read_chrabaszcz_batch(file)
        for i, image in enumerate(images):
            yield {"image": image} if labels is None else {"image": image, "label": labels[i]}


def read_chrabaszcz_batch(file: str | os.PathLike) -> tuple[np.ndarray, list[int] | None]:
    """
    A batch of Chrabaszcz et al., from npz or from a pickle of arrays. Nothing in the file is executed.

    Returns:
        Images, uint8 (n, 3, S, S), and their labels, if there are any.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        if Path(file).suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                batch = {name: arrays[name] for name in ("data", "labels") if name in arrays}
        else:
            with open(file, "rb") as stream:
                batch = _ArrayUnpickler(stream, encoding="latin1").load()
        data, labels = batch["data"], batch.get("labels")
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a broken or hostile file leads to
        raise ValueError(f"{file} is not a batch of images: {type(error).__name__}: {error}") from error
    side = math.isqrt(data.shape[1] // 3) if getattr(data, "ndim", 0) == 2 else 0
    if not side or data.dtype != np.uint8 or data.shape[1] != 3 * side * side:
        found = f"{getattr(data, 'dtype', type(data).__name__)} of shape {getattr(data, 'shape', ())}"
        raise ValueError(f"{file}: `data` must be uint8 of shape (n, 3 * S * S), got {found}.")
    if labels is not None and len(labels) != len(data):
        raise ValueError(f"{file} has {len(data)} images but {len(labels)} labels.")
    return data.reshape(-1, 3, side, side), None if labels is None else [int(label) for label in labels]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays, lists, dictionaries, numbers and text, and nothing that could run code."""

    def find_class(self, module: str, name: str):
        if (module, name) not in PICKLED_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} is refused, only arrays are read")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)
