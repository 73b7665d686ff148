# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Names of splits: their aliases, the names that files and folders tell, and slices such as `train[:98%]`."""

import re
from collections.abc import Collection, Mapping

import datasets


SPLIT_ALIASES = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})")
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}")
_PART = re.compile(r"\s*([^\[\]+]+?)\s*(\[[^\]]*\])?\s*")


class UnknownSplitError(ValueError):
    """The data set has no split of the given name."""


def canonical_split(name: str) -> str | None:
    """Return `train`, `validation` or `test` if the whole name, in any case, is one of its aliases, else `None`."""
    return next((split for split, aliases in SPLIT_ALIASES.items() if name.lower() in aliases), None)


def split_of_file(path: str) -> str:
    """
    Return the split that the path of a shard tells.

    It is the prefix of `data/SPLIT-00000-of-00064.parquet`, as the Hub names shards, or else the name of a folder on
    the way, or else a word of the file's name. A shard that tells none belongs to `train`.

    Raises:
        ValueError: if the file's name tells several splits.
    """
    *folders, name = path.split("/")
    if "data" in folders and (shard := _SHARD.match(name)):
        return shard[1]
    for folder in reversed(folders):
        if split := canonical_split(folder):
            return split
    told = {split for word in re.split(r"[-._ 0-9]+", name) if (split := canonical_split(word))}
    if len(told) > 1:
        raise ValueError(f"the name of the file {path} tells several splits, {' and '.join(sorted(told))}: rename it.")
    return told.pop() if told else "train"


def check_shards(paths: list[str]) -> None:
    """
    Check that shards which are numbered, such as `train-00003-of-00064.parquet`, are complete.

    Raises:
        ValueError: if one of them is missing, or there are those of several numberings.
    """
    numbers: dict[str, dict[int, set[int]]] = {}
    for path in paths:
        if match := _NUMBERED.search(path):
            name = f"{path[: match.start()]}-*-of-*{path[match.end() :]}"
            numbers.setdefault(name, {}).setdefault(int(match[2]), set()).add(int(match[1]))
    for name, totals in numbers.items():
        if len(totals) > 1:
            counts = " and of ".join(map(str, sorted(totals)))
            raise ValueError(f"the shards {name} are of {counts}: keep those of one preparation.")
        ((total, found),) = totals.items()
        if missing := sorted(set(range(total)) - found):
            raise ValueError(
                f"{len(missing)} of the {total} shards {name} are missing; the first one is {missing[0]}."
            )


def other_names(name: str, known: Collection[str]) -> list[str]:
    """Return the known splits that have another name of the same meaning, such as `dev` for `validation`."""
    meant = canonical_split(name)
    return [each for each in known if meant is not None and each != name and canonical_split(each) == meant]


def resolve_split(name: str, known: Collection[str], where: str, of_folders: bool = False) -> str:
    """
    Return the known split that a name means: the split of exactly this name, or else the only one that is its alias.

    Args:
        name: Name to look up.
        known: Names of the splits.
        where: Name of the data set in messages.
        of_folders: Whether the splits are named after folders. The names `train`, `validation` and `test`, which are
            looked up by default, must then have one folder only.

    Raises:
        UnknownSplitError: if there is none; the message lists the known splits.
        ValueError: if several known splits are aliases of the name.
    """
    aliases = other_names(name, known)
    if name in known:
        if of_folders and aliases and name == canonical_split(name):
            folders = " or ".join(each for each in known if each == name or each in aliases)
            raise ValueError(
                f"{where}: the split {name!r} may mean {folders}: rename the folders, or give one of them as the data "
                "set."
            )
        return name
    if len(aliases) > 1:
        raise ValueError(f"{where}: the split {name!r} may mean {' or '.join(aliases)}, name one of them.")
    if not aliases:
        raise UnknownSplitError(f"{where} has no split {name!r}, but {', '.join(known) or 'none'}.")
    return aliases[0]


def resolve_slices(spec: str, known: Collection[str], where: str, of_folders: bool = False) -> str:
    """
    Return `spec`, such as `val[:50%]+test`, with known splits in place of aliases.

    Raises:
        UnknownSplitError, ValueError: see [`resolve_split`]; also if `spec` is no sum of slices.
    """
    if spec in known:
        return resolve_split(spec, known, where, of_folders)
    parts = [_PART.fullmatch(part) for part in spec.split("+")]
    if None in parts:
        raise ValueError(f"{where}: {spec!r} is neither a split nor a sum of slices such as 'train[:98%]'.")
    return "+".join(resolve_split(part[1], known, where, of_folders) + (part[2] or "") for part in parts)


def take_slices(spec: str, splits: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    """Return the rows of map-style splits that a resolved `spec` names."""
    if spec in splits:
        return splits[spec]
    lengths = {name: len(split) for name, split in splits.items()}
    rows = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
    parts = [splits[part.splitname].select(range(part.from_, part.to)) for part in rows]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
