# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Columns of images and of classes, and files that hold pictures, told by their types and names."""

import os
from functools import cache

import datasets
from PIL import Image


IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
# Pillow recognizes files of these formats but has no decoder for them.
FORMATS_WITHOUT_DECODER = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


@cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the files that Pillow decodes."""
    readable = set(Image.registered_extensions().items())
    return frozenset(suffix for suffix, kind in readable if kind in Image.OPEN and kind not in FORMATS_WITHOUT_DECODER)


def is_picture(name: str) -> bool:
    """Return whether a file is a picture by its suffix, in any case."""
    return os.path.splitext(name)[1].lower() in picture_suffixes()


def find_label_column(features: datasets.Features, label_column: str | None = None) -> str:
    """
    Return the column that holds the classes, as whole numbers: the only one of type ClassLabel.

    Args:
        features: Features of the data set.
        label_column: Column, where it is known; of type ClassLabel or a whole number.

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
    Return the column that holds the images.

    It is the only one of type Image or a three-dimensional array of bytes, or the one of them with a usual name.
    Encoded files in a column of bytes are images if the column has a usual name.

    Args:
        features: Features of the data set.
        image_column: Column, where it is known.

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
    candidates = typed or _columns_of_files(features)
    named = [name for name in IMAGE_COLUMNS if name in candidates]
    if not named:
        raise ValueError(
            f"expected one column of images, got {candidates or 'none'} among {list(features)}: give `image_column`."
        )
    return named[0]


def merge_image_columns(dataset: datasets.Dataset | datasets.IterableDataset):
    """
    Return the data set with one column `image` in place of several that are named after kinds of files.

    A webdataset whose pictures are partly JPEG and partly PNG comes as two columns, `jpg` and `png`, each of them
    empty where the other holds the picture. Other data sets are returned as they are.
    """
    features = dataset.features or datasets.Features()
    typed = [name for name, feature in features.items() if _holds_images(feature)]
    columns = [name for name in typed or _columns_of_files(features) if is_picture(f"x.{name}")]
    if len(columns) < 2 or "image" in features or "img" in features:
        return dataset
    stored = datasets.Image(decode=False)
    for name in columns:
        dataset = dataset.cast_column(name, stored)
    merged = {name: feature for name, feature in features.items() if name not in columns}
    return dataset.map(
        _first_of_each_row,
        batched=True,
        input_columns=columns,
        remove_columns=columns,
        features=datasets.Features({"image": stored} | merged),
    )


def _first_of_each_row(*columns: list) -> dict[str, list]:
    return {"image": [next((file for file in row if file), None) for row in zip(*columns, strict=True)]}


def _columns_of_files(features: datasets.Features) -> list[str]:
    return [name for name, feature in features.items() if _holds_files(feature)]


def _holds_images(feature) -> bool:
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, datasets.Array3D) and feature.dtype == "uint8" and None not in feature.shape
    )


def _holds_files(feature) -> bool:
    binary = datasets.Value("binary"), datasets.Value("large_binary")
    return feature in binary or (isinstance(feature, dict) and feature.get("bytes") in binary)
