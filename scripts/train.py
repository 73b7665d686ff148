#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `jet-hf train`, for a checkout: see `python scripts/train.py --help`."""

import sys

from jet_hf_cli import main


if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
