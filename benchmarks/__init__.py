# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Speed and memory against peers and against the machine's limit."""

from .run import BenchmarkArguments, run_benchmark


__all__ = ["BenchmarkArguments", "run_benchmark"]
