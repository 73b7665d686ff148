# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Downsampled ImageNet in the batches, npz or pickle, that Chrabaszcz et al. publish."""

import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import datasets
import numpy as np

from .cache import Stamp, stamp_of


CHRABASZCZ = "imagenet1k_chrabaszcz"
FIRST_LABEL, NUM_CLASSES = 1, 1000
BATCH_NAMES = {"train": [f"train_data_batch_{i}" for i in range(1, 11)], "validation": ["val_data"]}
# Everything that pickles of arrays, lists and numbers refer to, under the old and the new name of NumPy's core.
PICKLED_GLOBALS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def batches_of_splits(names: list[str], where: str) -> dict[str, list[str]]:
    """
    Return the batches of each split in order. Some of the ten training batches may be missing.

    Args:
        names: Names of the batches in a folder and its subfolders.
        where: Name of the folder, for messages.

    Raises:
        ValueError: if a split is spread over two folders.
    """
    splits = {}
    for split, known in BATCH_NAMES.items():
        folders: dict[str, dict[str, str]] = {}
        for name in names:
            path = PurePosixPath(name)
            stem = path.name.removesuffix(".npz")
            if stem in known:
                batches = folders.setdefault(str(path.parent), {})
                batches[stem] = name if name.endswith(".npz") else batches.get(stem, name)
        if len(folders) > 1:
            raise ValueError(
                f"{where} holds {split} batches in the folders {' and '.join(folders)}: pass one of them."
            )
        for batches in folders.values():
            splits[split] = [batches[name] for name in known if name in batches]
    return splits


def read_batches(paths: list[str]) -> datasets.Dataset:
    """Return the images of batches, and their labels if there are any."""
    images, labels = read_batch(paths[0])
    features = {"image": datasets.Array3D(images.shape[1:], "uint8")}
    if labels is not None:
        features["label"] = datasets.Value("int64")
    # `datasets` caches the result by the arguments, so the stamps are among them.
    return datasets.Dataset.from_generator(
        _rows,
        features=datasets.Features(features),
        gen_kwargs={"paths": paths, "stamps": [stamp_of(os.stat(path)) for path in paths]},
    )


def _rows(paths: list[str], stamps: list[Stamp]) -> Iterator[dict]:
    for path in paths:
        images, labels = read_batch(path)
        for i, image in enumerate(images):
            yield {"image": image} if labels is None else {"image": image, "label": labels[i]}


def read_batch(file: str | os.PathLike) -> tuple[np.ndarray, list[int] | None]:
    """
    Read a batch from an npz file or a pickle of arrays, without executing any code in the file.

    Returns:
        Images, uint8 (n, 3, S, S), and their labels if there are any.

    Raises:
        ValueError: if the file is not such a batch.
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
    except Exception as error:  # broken or hostile files cause all kinds of errors
        raise ValueError(f"{file} is not a batch of images: {type(error).__name__}: {error}") from error
    side = math.isqrt(data.shape[1] // 3) if getattr(data, "ndim", 0) == 2 else 0
    if not side or data.dtype != np.uint8 or data.shape[1] != 3 * side * side:
        found = f"{getattr(data, 'dtype', type(data).__name__)} of shape {getattr(data, 'shape', ())}"
        raise ValueError(f"{file}: `data` must be uint8 of shape (n, 3 * S * S), got {found}.")
    if labels is not None and len(labels) != len(data):
        raise ValueError(f"{file} has {len(data)} images but {len(labels)} labels.")
    return data.reshape(-1, 3, side, side), None if labels is None else [int(label) for label in labels]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of arrays, lists, dictionaries, numbers and text; anything else could run code and is refused."""

    def find_class(self, module: str, name: str):
        if (module, name) not in PICKLED_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} is refused, only arrays are read")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)
