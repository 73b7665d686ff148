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

from transformers import HfArgumentParser


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduction.arguments import SweepArguments


def main() -> int:
    """Parse the command line and run the sweep."""
    parser = HfArgumentParser(
        SweepArguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    try:
        (arguments,) = parser.parse_args_into_dataclasses()

        from jet_hf.utils.files import shared_command  # --help answers without torch
        from reproduction.sweep import run_sweep

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        for name in ("jet_hf", "reproduction"):
            logging.getLogger(name).setLevel(logging.INFO)
        return run_sweep(arguments, shared_command(["python", "scripts/sweep.py", *sys.argv[1:]]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    sys.exit(main())
