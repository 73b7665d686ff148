#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
r"""
Time encoding, decoding and training against jet-pytorch and against the matrix products and attention alone.

    pip install --no-deps jet-pytorch==0.0.2 einops
    python scripts/benchmark.py --report docs/performance.md
    python scripts/benchmark.py --parts speed --operations train --patch_sizes 4 --rounds 5

`--report` replaces the tables of the document and keeps its text. Contenders take turns within one process; compile
time and the first image are measured in new processes.
"""

import argparse
import logging
import sys
from pathlib import Path

from jet_hf_cli import end_at_once_on_signals


def main() -> None:
    """Parse the command line and run the benchmark."""
    end_at_once_on_signals()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from huggingface_hub.errors import StrictDataclassError
    from transformers import HfArgumentParser

    from benchmarks.arguments import BenchmarkArguments
    from benchmarks.run import run_benchmark
    from jet_hf.utils.console import console

    formatter = argparse.RawDescriptionHelpFormatter
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__, formatter_class=formatter, allow_abbrev=False)
    with console(StrictDataclassError):
        logging.getLogger("benchmarks").setLevel(logging.INFO)
        (arguments,) = parser.parse_args_into_dataclasses()
        run_benchmark(arguments)


if __name__ == "__main__":
    main()
