# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Cells of a table."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """
    One configuration of a table.

    Args:
        name: Name of the cell and of its folder.
        labels: Coordinates on the axes of the table.
        fields: Fields of JetConfig that the cell sets.
        paper: The paper's bits per dimension, if known.
        note: Remark on the paper's result.
    """

    name: str
    labels: Mapping[str, str | int]
    fields: dict
    paper: float | None = None
    note: str = ""
