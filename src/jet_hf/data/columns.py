# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Columns of images and of labels, and image files, recognized by their types and names."""

import os
from functools import cache

import datasets
from PIL import Image


IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls")
LEVEL_DTYPES = ("uint8", "uint16")  # of columns of arrays
# Pillow recognizes files of these formats but has no decoder for them.
FORMATS_WITHOUT_DECODER = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the files that Pillow decodes."""
    known = set(Image.registered_extensions().items())
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in FORMATS_WITHOUT_DECODER)


def is_image_file(name: str) -> bool:
    """Return whether the suffix of a file, in any case, is that of an image."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def find_label_column(features: datasets.Features, label_column: str | None = None) -> str:
    """
    Return the column of integer labels: the given one, or the only one of type ClassLabel.

    Without columns of this type, it is the one with a usual name, such as `cls` in webdatasets.

    Args:
        features: Features of the dataset.
        label_column: Name of the column, of type ClassLabel or an integer.

    Raises:
        ValueError: if there is no such column or several, or `label_column` does not hold labels.
    """
    if label_column is None:
        typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        if not typed:
            typed = [name for name in LABEL_COLUMNS if holds_labels(features.get(name))][:1]
        if len(typed) != 1:
            found = ", ".join(typed) or "none"
            raise ValueError(
                f"expected one column of classes, got {found} among {list(features)}: pass `label_column`."
            )
        return typed[0]
    if not holds_labels(features.get(label_column)):
        raise ValueError(
            f"`label_column` {label_column!r} must hold integer labels, got the columns {dict(features)}."
        )
    return label_column


def holds_labels(feature) -> bool:
    """Return whether the feature of a column is ClassLabel or an integer."""
    return isinstance(feature, datasets.Value | datasets.ClassLabel) and "int" in feature.dtype


def find_image_column(features: datasets.Features, image_column: str | None = None) -> str:
    """
    Return the column of images.

    By default it is the only column of type Image or of three-dimensional arrays of uint8 or uint16, or the one of
    these with a usual name. A column of bytes holds encoded image files if it has a usual name.

    Args:
        features: Features of the dataset.
        image_column: Name of the column.

    Raises:
        ValueError: if there is no such column, or several without a usual name, or `image_column` holds no images.
    """
    typed = _image_columns(features)
    if image_column is not None:
        if image_column not in features:
            raise ValueError(f"`image_column` is {image_column!r}, but the columns are {', '.join(features)}.")
        if image_column not in typed and not _holds_files(features[image_column]):
            raise ValueError(f"`image_column` {image_column!r} holds no images but {features[image_column]}.")
        return image_column
    if len(typed) == 1:
        return typed[0]
    candidates = typed or _file_columns(features)
    named = [name for name in IMAGE_COLUMNS if name in candidates]
    if not named:
        raise ValueError(
            f"expected one column of images, got {candidates or 'none'} among {list(features)}: pass `image_column`."
        )
    return named[0]


def merge_image_columns(dataset: datasets.Dataset | datasets.IterableDataset):
    """
    Merge columns that are named after image formats into one column `image`.

    A webdataset with JPEG and PNG files is read as two columns, `jpg` and `png`, of which one is null in each row.
    Other datasets are returned unchanged.
    """
    features = dataset.features or datasets.Features()
    columns = [name for name in _image_columns(features) or _file_columns(features) if is_image_file(f"x.{name}")]
    if len(columns) < 2 or "image" in features or "img" in features:
        return dataset
    stored = datasets.Image(decode=False)
    for name in columns:
        dataset = dataset.cast_column(name, stored)
    others = {name: feature for name, feature in features.items() if name not in columns}
    return dataset.map(
        _first_of_each_row,
        batched=True,
        input_columns=columns,
        remove_columns=columns,
        features=datasets.Features({"image": stored} | others),
    )


def _first_of_each_row(*columns: list) -> dict[str, list]:
    return {"image": [next((file for file in row if file), None) for row in zip(*columns, strict=True)]}


def _image_columns(features: datasets.Features) -> list[str]:
    return [name for name, feature in features.items() if _holds_images(feature)]


def _file_columns(features: datasets.Features) -> list[str]:
    return [name for name, feature in features.items() if _holds_files(feature)]


def _holds_images(feature) -> bool:
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, datasets.Array3D) and feature.dtype in LEVEL_DTYPES and None not in feature.shape
    )


def _holds_files(feature) -> bool:
    binary = datasets.Value("binary"), datasets.Value("large_binary")
    return feature in binary or (isinstance(feature, dict) and feature.get("bytes") in binary)
