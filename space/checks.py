# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks of single values. Each message names the field, the values that it takes, and the value that came."""

from collections.abc import Sequence


MAX_SHOWN = 60


def shown(value) -> str:
    """Return a value as a message shows it: a few words, whatever was sent."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "a list"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def check_number(name: str, value: float, low: float, high: float) -> float:
    """Return `value` as a float; raise ValueError unless it is a number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"`{name}` must be a number from {low:g} to {high:g}, got {shown(value)}.")
    return float(value)


def check_whole(name: str, value: int, low: int, high: int) -> int:
    """
    Return `value` as an int; raise ValueError unless it is a whole number from `low` to `high`. 4.0 counts as 4, since
    JSON does not distinguish them.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not low <= value <= high
        or value != int(value)
    ):
        raise ValueError(f"`{name}` must be a whole number from {low} to {high}, got {shown(value)}.")
    return int(value)


def check_choice(name: str, value, choices: Sequence[str | int]) -> str | int:
    """Return the element of `choices` that equals `value`; raise ValueError if there is none."""
    if isinstance(value, str | int | float) and not isinstance(value, bool) and value in choices:
        return choices[list(choices).index(value)]
    raise ValueError(f"`{name}` must be one of {', '.join(map(str, choices))}, got {shown(value)}.")
