#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
r"""
Run a table of the paper as a grid of training runs, and compare the results with the paper's claims.

    python scripts/sweep.py --table glow_parts --config recipes/sweeps/photographs.yaml --seeds 0 1 2 --dry_run
    python scripts/sweep.py --table glow_parts --config recipes/sweeps/photographs.yaml --seeds 0 1 2 \
        --accelerate_config recipes/accelerate/cpu.yaml --report docs/sweeps/glow_parts.md
    python scripts/sweep.py --table coupling_layouts --config recipes/sweeps/imagenet1k_64.yaml \
        --accelerate_config recipes/accelerate/ddp.yaml --print_commands > commands.txt

The same command resumes a sweep that was stopped or killed: finished runs are kept, and the others continue from their
last checkpoint. On a cluster, work off the printed commands, one per job; see docs/sweeps/README.md.
"""

import argparse
import logging
import sys
from pathlib import Path

from jet_hf_cli import end_at_once_on_signals


def main() -> int:
    """Parse the command line and run the sweep."""
    end_at_once_on_signals()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from transformers import HfArgumentParser

    from jet_hf.utils.console import console
    from reproduction.arguments import SweepArguments

    parser = HfArgumentParser(
        SweepArguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    with console():
        logging.getLogger("reproduction").setLevel(logging.INFO)
        (arguments,) = parser.parse_args_into_dataclasses()

        from jet_hf.utils.files import shared_command  # --help answers without torch
        from reproduction.sweep import run_sweep

        return run_sweep(arguments, shared_command(["python", "scripts/sweep.py", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
