# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Names of splits: aliases, names derived from files and folders, and slices such as `train[:98%]`."""

import re
from collections.abc import Collection, Mapping

import datasets
import numpy as np


SPLIT_ALIASES = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
# Slices that divide a split without held-out images into a small part to evaluate on and the rest.
HELD_OUT, KEPT = "[held_out]", "[kept]"
LEAST_DIVIDED = 16  # images of a split that is divided
LEAST_HELD_OUT, MOST_HELD_OUT = 4, 5000
_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})")
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}")
_PART = re.compile(r"\s*([^\[\]+]+?)\s*(\[[^\]]*\])?\s*")


class UnknownSplitError(ValueError):
    """The dataset has no split of the given name."""


def canonical_split(name: str) -> str | None:
    """Return `train`, `validation` or `test` if the whole name, in any case, is one of its aliases, else `None`."""
    return next((split for split, aliases in SPLIT_ALIASES.items() if name.lower() in aliases), None)


def split_of_file(path: str) -> str:
    """
    Return the split of a shard, derived from its path.

    The split is the prefix of `data/SPLIT-00000-of-00064.parquet`, the Hub's naming scheme; or else the name of a
    parent folder; or else a word of the file name; or else `train`.

    Raises:
        ValueError: if the file name contains the names of several splits.
    """
    *folders, name = path.split("/")
    if "data" in folders and (shard := _SHARD.match(name)):
        return shard[1]
    for folder in reversed(folders):
        if split := canonical_split(folder):
            return split
    found = {split for word in re.split(r"[-._ 0-9]+", name) if (split := canonical_split(word))}
    if len(found) > 1:
        raise ValueError(
            f"the name of the file {path} names several splits, {' and '.join(sorted(found))}: rename it."
        )
    return found.pop() if found else "train"


def check_shards(paths: list[str]) -> None:
    """
    Check that sets of numbered shards, such as `train-00003-of-00064.parquet`, are complete.

    Raises:
        ValueError: if a shard is missing, or shards of different totals are mixed.
    """
    numbers: dict[str, dict[int, set[int]]] = {}
    for path in paths:
        if match := _NUMBERED.search(path):
            name = f"{path[: match.start()]}-*-of-*{path[match.end() :]}"
            numbers.setdefault(name, {}).setdefault(int(match[2]), set()).add(int(match[1]))
    for name, totals in numbers.items():
        if len(totals) > 1:
            counts = " and ".join(map(str, sorted(totals)))
            raise ValueError(f"the shards {name} belong to sets of {counts}: keep only one set.")
        ((total, found),) = totals.items()
        if missing := sorted(set(range(total)) - found):
            raise ValueError(
                f"{len(missing)} of the {total} shards {name} are missing; the first missing one is {missing[0]}."
            )


def other_names(name: str, known: Collection[str]) -> list[str]:
    """Return the known splits that are other aliases of the same split, such as `dev` for `validation`."""
    canonical = canonical_split(name)
    return [
        other for other in known if canonical is not None and other != name and canonical_split(other) == canonical
    ]


def resolve_split(name: str, known: Collection[str], where: str, of_folders: bool = False) -> str:
    """
    Return the known split of exactly this name, or else the only known alias of it.

    Args:
        name: Name to resolve.
        known: Names of the splits.
        where: Name of the dataset, for messages.
        of_folders: Whether the splits are named after folders. If so, `train`, `validation` and `test`, which are
            also looked up by default, must not have a second folder that is an alias.

    Raises:
        UnknownSplitError: if there is no such split; the message lists the known ones.
        ValueError: if several known splits are aliases of the name.
    """
    aliases = other_names(name, known)
    if name in known:
        if of_folders and aliases and name == canonical_split(name):
            folders = " or ".join(other for other in known if other == name or other in aliases)
            raise ValueError(
                f"{where}: the split {name!r} may mean {folders}: rename the folders, or pass one of them as the "
                "dataset."
            )
        return name
    if len(aliases) > 1:
        raise ValueError(f"{where}: the split {name!r} may mean {' or '.join(aliases)}: pass one of these names.")
    if not aliases:
        raise UnknownSplitError(f"{where} has no split {name!r}; it has {', '.join(known) or 'none'}.")
    return aliases[0]


def resolve_slices(spec: str, known: Collection[str], where: str, of_folders: bool = False) -> str:
    """
    Return `spec`, such as `val[:50%]+test`, with known splits in place of aliases.

    Raises:
        UnknownSplitError, ValueError: see [`resolve_split`]; also if `spec` is not a sum of slices.
    """
    if spec in known:
        return resolve_split(spec, known, where, of_folders)
    resolved = []
    for part in spec.split("+"):
        if not (match := _PART.fullmatch(part)):
            raise ValueError(f"{where}: {spec!r} is neither a split nor a sum of slices such as 'train[:98%]'.")
        resolved.append(resolve_split(match[1], known, where, of_folders) + (match[2] or ""))
    return "+".join(resolved)


def take_slices(spec: str, splits: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    """Return the rows of map-style splits that a resolved `spec` selects."""
    if spec in splits:
        return splits[spec]
    parts = [_take_slice(part, splits) for part in spec.split("+")]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _take_slice(part: str, splits: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    name = next((name for name in splits if part in (name + HELD_OUT, name + KEPT)), None)
    if name is not None:
        rows = held_out_rows(len(splits[name]))
        return splits[name].select(np.delete(np.arange(len(splits[name])), rows) if part.endswith(KEPT) else rows)
    lengths = {name: len(split) for name, split in splits.items()}
    (rows,) = datasets.ReadInstruction.from_spec(part).to_absolute(lengths)
    return splits[rows.splitname].select(range(rows.from_, rows.to))


def held_out_rows(num_images: int) -> np.ndarray:
    """
    Return the rows of a split that `[held_out]` selects: 5 % of the images, at least 4 and at most 5,000.

    They are evenly spaced, so that they come from all folders of a sorted split. The number of images alone determines
    them. A split of fewer than 16 images has none.
    """
    if num_images < LEAST_DIVIDED:
        return np.arange(0)
    count = min(max(LEAST_HELD_OUT, num_images // 20), MOST_HELD_OUT)
    return (np.arange(count) * num_images + num_images // 2) // count  # the middle of each of `count` equal parts
