#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Train three small Jets within six minutes, on digits and on crops of photographs, then sample and score.

    python scripts/demo.py [--output_dir demo] [--max_minutes 6]
"""

import sys
from pathlib import Path

from jet_hf_cli import end_at_once_on_signals


def main() -> None:
    """Parse the command line and run the demo."""
    end_at_once_on_signals()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from huggingface_hub.errors import StrictDataclassError
    from transformers import HfArgumentParser

    from examples.demo import DemoArguments, run_demo
    from jet_hf.utils.console import console

    with console(StrictDataclassError):
        (arguments,) = HfArgumentParser(DemoArguments, description=__doc__).parse_args_into_dataclasses()
        run_demo(arguments)


if __name__ == "__main__":
    main()
