# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Versions, commit and devices of a training run."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

from .. import __version__
from ..utils.xla import device_kind, is_xla


def describe_environment(accelerator: Accelerator) -> dict:
    """Return the versions of the software, the commit of jet_hf, and the devices, ready for JSON."""
    libraries = ["torch", "transformers", "accelerate", *(["torch_xla"] if is_xla(accelerator.device) else [])]
    return {
        "jet_hf": __version__,
        "commit": checkout_commit(Path(__file__).parents[3]),
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
        "device": device_name(accelerator.device),
        "num_processes": accelerator.num_processes,
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, the kind of a TPU, or the type of another device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return device_kind(device) if is_xla(device) else device.type


def checkout_commit(folder: Path) -> str | None:
    """Return the commit of a git checkout, with `-dirty` after uncommitted changes; `None` for any other folder."""
    if not (folder / ".git").exists():  # an installed package may lie below somebody else's checkout
        return None
    git = ["git", "--no-optional-locks", "-C", str(folder)]
    command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
