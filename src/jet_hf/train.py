# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The train command for launchers: `accelerate launch -m jet_hf.train --config recipes/cifar10.yaml`."""

import sys

from jet_hf_cli import main


if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
