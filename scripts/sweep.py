#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
r"""
Runs a table of the paper as a grid of training runs, and reports it beside the paper's figures.

    python scripts/sweep.py --table glow_parts --config recipes/sweeps/photographs.yaml --seeds 0 1 2 --dry_run
    python scripts/sweep.py --table glow_parts --config recipes/sweeps/photographs.yaml --seeds 0 1 2 \
        --accelerate_config recipes/accelerate/cpu.yaml --report docs/sweeps/glow_parts.md
    python scripts/sweep.py --table coupling_layouts --config recipes/sweeps/imagenet1k_64.yaml --launcher slurm \
        --accelerate_config recipes/accelerate/ddp.yaml --job_options="--gpus-per-node=8 --time=24:00:00" | sbatch

Started again, it goes on where it was killed: finished runs stay, failed ones are passed over unless --retry_failed is
given, and runs of other settings are refused. SIGTERM and Ctrl-C let the runs at work save a checkpoint first. The
results, one row a run, are in OUTPUT_DIR/TABLE/results.jsonl, for datasets.load_dataset("json", data_files=...).
"""

import argparse
import logging
import sys
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduction import SweepArguments, SweepError, run_sweep


def main() -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    for name in ("jet_hf", "reproduction"):
        logging.getLogger(name).setLevel(logging.INFO)
    parser = HfArgumentParser(
        SweepArguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    try:
        (arguments,) = parser.parse_args_into_dataclasses()
        return run_sweep(arguments, Path(__file__).with_name("train.py"))
    except (ValueError, OSError, StrictDataclassError, SweepError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    sys.exit(main())
