# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's tables as sweeps of training runs, and reports on them."""

from .sweep import SweepArguments, SweepError, run_sweep
from .tables import TABLES, Cell, Table


__all__ = ["TABLES", "Cell", "SweepArguments", "SweepError", "Table", "run_sweep"]
