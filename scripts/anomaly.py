#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `jet-hf anomaly`, for a checkout: see `python scripts/anomaly.py --help`."""

import sys

import jet_hf_cli


def main() -> None:
    """Run the command."""
    jet_hf_cli.main(["anomaly", *sys.argv[1:]])


if __name__ == "__main__":
    main()
