#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Run `accelerate launch`, but forward Ctrl-C and SIGTERM to the training processes alone.

    python scripts/launch.py --config_file recipes/accelerate/ddp.yaml scripts/train.py --config recipes/cifar10.yaml

The run saves a checkpoint, however long that takes, and ends without a traceback of the launcher.
"""

import signal
import sys


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends without a traceback

    import jet_hf_cli  # noqa: F401 (before jet_hf, which then imports no torch)
    from jet_hf.utils.launch import launch

    sys.exit(launch(sys.argv[1:]))


if __name__ == "__main__":
    main()
