#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Converts a checkpoint of big_vision's Jet (.npz) or of jet-pytorch (.safetensors) to a folder for from_pretrained.

    python scripts/convert_checkpoint.py big_vision jet.npz jet-i21k-64
    python scripts/convert_checkpoint.py jet_pytorch model.safetensors jet-64 --num-attention-heads 8
"""

import argparse
import sys

from huggingface_hub.errors import StrictDataclassError

from jet_hf.importers import convert_checkpoint
from jet_hf.model.configuration_jet import COUPLING_KINDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=["big_vision", "jet_pytorch"], help="implementation the checkpoint is from")
    parser.add_argument("checkpoint", help="the file")
    parser.add_argument("output_dir", help="folder to make; must not exist or be empty")
    parser.add_argument("--num-channels", type=int, help="channels of an image (3 unless given)")
    parser.add_argument("--scale-factor", type=float, help="upper bound of the scales (2.0 unless given)")
    parser.add_argument("--image-size", type=int, help="height and width of an image; checked against the file")
    parser.add_argument("--num-attention-heads", type=int, help="attention heads; jet-pytorch files do not show them")
    parser.add_argument(
        "--coupling-kinds", nargs="+", choices=COUPLING_KINDS, help="cycle of splits; jet-pytorch files do not show it"
    )
    known = vars(parser.parse_args())
    source, checkpoint, output_dir = (known.pop(name) for name in ("source", "checkpoint", "output_dir"))
    try:
        folder = convert_checkpoint(source, checkpoint, output_dir, **known)
    except (ValueError, OSError, StrictDataclassError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    print(f"wrote {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
