#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Run a grid of trainings, or a table of the paper: see `python scripts/sweep.py --help`."""

import logging
import sys
from pathlib import Path

from jet_hf_cli import end_at_once_on_signals


def main() -> int:
    """Parse the command line and run the sweep."""
    end_at_once_on_signals()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from jet_hf.utils.arguments import parse
    from jet_hf.utils.console import console
    from reproduction.arguments import SweepArguments

    with console():
        logging.getLogger("reproduction").setLevel(logging.INFO)
        arguments = parse(SweepArguments, sys.argv[1:], "python scripts/sweep.py")

        from jet_hf.utils.files import shared_command  # --help answers without torch
        from reproduction.sweep import run_sweep

        return run_sweep(arguments, shared_command(["python", "scripts/sweep.py", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
