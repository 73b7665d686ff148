#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Makes a Gradio Space of this demo on the Hub, or brings it up to date; the Space needs no other copy of jet_hf.

    python space/deploy.py org/jet-demo                                # with the checkpoint of space/model
    python space/deploy.py org/jet-demo --model_id org/jet-imagenet-64 # with a model of the Hub
"""

import argparse
import shlex
import sys
from pathlib import Path

from jet_hf.deployment import deploy_space
from jet_hf.hub import PushError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo_id", help="Name of the Space.")
    parser.add_argument("--model_id", help="Name on the Hub of the model to load, instead of the checkpoint here.")
    parser.add_argument("--private", action="store_true", help="Make a Space that only you see.")
    parser.add_argument("--hardware", help="What it runs on, such as zero-a10g; without, as it is.")
    parser.add_argument("--commit_message", default="Deploy the demo of Jet", help="Of the one commit.")
    arguments = parser.parse_args()
    address = deploy_space(
        Path(__file__).resolve().parent,
        arguments.repo_id,
        model_id=arguments.model_id,
        private=arguments.private or None,
        hardware=arguments.hardware,
        commit_message=arguments.commit_message,
        again=shlex.join(["python", *sys.argv]),
    )
    print(address)


if __name__ == "__main__":
    try:
        main()
    except (PushError, ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
