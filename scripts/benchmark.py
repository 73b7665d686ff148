#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Measure speed and memory against other implementations: see `python scripts/benchmark.py --help`."""

import logging
import sys
from pathlib import Path

from jet_hf_cli import end_at_once_on_signals


def main() -> None:
    """Parse the command line and run the benchmark."""
    end_at_once_on_signals()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from huggingface_hub.errors import StrictDataclassError

    from benchmarks.arguments import BenchmarkArguments
    from benchmarks.run import run_benchmark
    from jet_hf.utils.arguments import parse
    from jet_hf.utils.console import console
    from jet_hf.utils.files import shared_command

    with console(StrictDataclassError):
        logging.getLogger("benchmarks").setLevel(logging.INFO)
        arguments = parse(BenchmarkArguments, sys.argv[1:], "python scripts/benchmark.py")
        run_benchmark(arguments, shared_command(["python", "scripts/benchmark.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
