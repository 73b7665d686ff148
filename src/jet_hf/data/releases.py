# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Releases of the paper's datasets, which are distinguished by their image counts."""

import logging
from dataclasses import dataclass

from .splits import canonical_split


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """
    A release of a dataset. Scores on different releases are not comparable, even if their names are similar.

    Args:
        title: Name in tables and model cards.
        num_train_images, num_validation_images: Image counts of the splits; `None` for an unpublished split.
        note: Which published scores are comparable with those on this release.
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
        "Scores on its 10,000 test images are comparable with all published ones on CIFAR-10.",
    ),
    "imagenet1k_vandenoord": Release(
        "downsampled ImageNet-1k of van den Oord et al.",
        1_281_149,
        49_999,
        "The older release, as PNG files. Scores are comparable with those of the paper and of most other flows, but "
        "not with those on the release of Chrabaszcz et al.",
    ),
    "imagenet1k_chrabaszcz": Release(
        "downsampled ImageNet-1k of Chrabaszcz et al.",
        1_281_167,
        50_000,
        "Downsampled with a box filter. Bits per dimension are lower than on the release of van den Oord et al., by "
        "about 0.25 at 32 x 32 for the same model, so scores on the two releases are not comparable.",
    ),
    "imagenet1k_area": Release(
        "ImageNet-1k downsampled by jet_hf",
        1_281_167,
        50_000,
        "Full-size images averaged over areas, as TensorFlow's AREA resize does. Scores are not comparable with those "
        "on either published release of downsampled ImageNet-1k.",
    ),
    "imagenet21k_area": Release(
        "ImageNet-21k (Fall 2011) downsampled by jet_hf",
        14_197_122,
        None,
        "Full-size images averaged over areas, as TensorFlow's AREA resize does. The paper's validation split is not "
        "published, so scores on another one are not comparable with the paper's.",
    ),
}


def check_release(release: str | None, split: str, num_images: int) -> None:
    """
    Check the image count of a whole split against its release; a deviating training split only causes a warning.

    Args:
        release: Key of [`RELEASES`]; `None` skips the check.
        split: Name of the split; slices are not checked.
        num_images: Number of its images, including undecodable ones.

    Raises:
        ValueError: if the count of a validation or test split is not that of the release.
    """
    if release is None:
        return
    known = RELEASES[release]
    kind = canonical_split(split)
    if kind == "train" and known.num_train_images not in (None, num_images):
        logger.warning(
            f"the training split has {num_images:,} images, but {release} ({known.title}) has "
            f"{known.num_train_images:,}."
        )
    if kind in (None, "train") or known.num_validation_images in (None, num_images):
        return
    owners = [
        f"{name} ({other.title})" for name, other in RELEASES.items() if other.num_validation_images == num_images
    ]
    belongs = f", the number of {' and of '.join(owners)}" if owners else ", the number of no known release"
    raise ValueError(
        f"`dataset_release` is {release} ({known.title}), whose validation split has {known.num_validation_images:,} "
        f"images, but the split {split!r} has {num_images:,}{belongs}. Scores on two releases are not comparable."
    )
