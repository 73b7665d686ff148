# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Releases of the data sets of the paper, and the counts by which they are told apart."""

import logging
from dataclasses import dataclass

from .splits import canonical_split


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """
    A release of a data set. Two of them are different data, whatever their names have in common.

    Args:
        title: Its name in tables and model cards.
        num_train_images, num_validation_images: Images of its splits; `None` where the split is not published.
        note: What figures of it may be compared with.
    """

    title: str
    num_train_images: int | None
    num_validation_images: int | None
    note: str


RELEASES = {
    "cifar10": Release(
        "CIFAR-10",
        50_000,
        10_000,
        "Figures of its 10,000 test images are comparable with all published ones of CIFAR-10.",
    ),
    "imagenet1k_vandenoord": Release(
        "downsampled ImageNet-1k of van den Oord et al.",
        1_281_149,
        49_999,
        "The older release, as PNG files. Its figures are comparable with those of the paper and of most other flows, "
        "not with those of the release of Chrabaszcz et al.",
    ),
    "imagenet1k_chrabaszcz": Release(
        "downsampled ImageNet-1k of Chrabaszcz et al.",
        1_281_167,
        50_000,
        "Downsampled with a box filter. Bits per dimension come out lower than on the release of van den Oord et al., "
        "by about 0.25 at 32 x 32 for one and the same model: figures of the two are not comparable.",
    ),
    "imagenet1k_area": Release(
        "ImageNet-1k downsampled by jet_hf",
        1_281_167,
        50_000,
        "Full-size images averaged over areas, as TensorFlow's AREA resize does. Its figures are comparable with "
        "those of neither published release of downsampled ImageNet-1k.",
    ),
    "imagenet21k_area": Release(
        "ImageNet-21k (Fall 2011) downsampled by jet_hf",
        14_197_122,
        None,
        "Full-size images averaged over areas, as TensorFlow's AREA resize does. The paper's validation split is not "
        "published: figures of another one are not comparable with the paper's.",
    ),
}


def check_release(release: str | None, split: str, num_images: int) -> None:
    """
    Checks the number of images of a whole split against its release; one of training images that differs is logged.

    Args:
        release: Key of [`RELEASES`]; `None` checks nothing.
        split: Name of the split; slices of one are not checked.
        num_images: Images of it, undecodable ones among them.

    Raises:
        ValueError: if a validation or test split has another number of images than the release.
    """
    if release is None:
        return
    known = RELEASES[release]
    kind = canonical_split(split)
    if kind == "train" and known.num_train_images not in (None, num_images):
        logger.warning(
            "the training split has %s images, %s (%s) has %s.",
            f"{num_images:,}",
            release,
            known.title,
            f"{known.num_train_images:,}",
        )
    if kind in (None, "train") or known.num_validation_images in (None, num_images):
        return
    owners = [
        f"{name} ({other.title})" for name, other in RELEASES.items() if other.num_validation_images == num_images
    ]
    belongs = f", the number of {' and of '.join(owners)}" if owners else ", the number of no known release"
    raise ValueError(
        f"`dataset_release` is {release} ({known.title}), whose validation split has {known.num_validation_images:,} "
        f"images, but the split {split!r} has {num_images:,}{belongs}. Figures of two releases are not comparable."
    )
