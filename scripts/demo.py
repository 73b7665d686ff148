#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Train a small Jet on crops of photographs within five minutes and score photographs that it never saw.

    python scripts/demo.py [--output_dir demo] [--max_minutes 5]
"""

import sys
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.demo import DemoArguments, run_demo


if __name__ == "__main__":
    try:
        (arguments,) = HfArgumentParser(DemoArguments, description=__doc__).parse_args_into_dataclasses()
        run_demo(arguments)
    except (FileExistsError, ValueError, StrictDataclassError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
