# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Devices of torch_xla, through which TPUs train. Without such a device, nothing imports torch_xla."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import psutil
import torch


def is_xla(device: torch.device) -> bool:
    """Return whether torch_xla records the operations of a device, and compiles and runs them later."""
    return device.type == "xla"


def run_recorded(device: torch.device) -> None:
    """Compile and run the operations that torch_xla has recorded; other devices have run theirs already."""
    if is_xla(device):
        import torch_xla

        torch_xla.sync()


def to_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors that safetensors can write: those of torch_xla, which have no storage, are copied to the CPU."""
    return {name: tensor.cpu() if is_xla(tensor.device) else tensor for name, tensor in tensors.items()}


def checkpoint_function() -> Callable:
    """Return torch_xla's gradient checkpointing, whose recomputation its compiler does not merge away."""
    from torch_xla.utils.checkpoint import checkpoint

    return checkpoint


def device_kind(device: torch.device) -> str:
    """Return the kind of hardware of a device, such as `TPU v4` or `cpu`."""
    import torch_xla.core.xla_model as xm

    return xm.xla_device_kind(str(device))


def memory_info(device: torch.device) -> dict[str, int]:
    """Return `bytes_limit` and `peak_bytes_used` of a device; an empty dictionary if its runtime does not tell."""
    import torch_xla.core.xla_model as xm

    try:
        return xm.get_memory_info(str(device))
    except RuntimeError:
        return {}


def check_device(device: torch.device, mixed_precision: str) -> None:
    """
    Refuse to compute on the CPU of a machine that has or should have another device, and in bfloat16 under torch_xla.

    Raises:
        ValueError: if PJRT_DEVICE, TPU_* or an installed package asks for an accelerator, but the device is a CPU that
            was not asked for; for a mixed precision under torch_xla.
    """
    missed = _missed_under_xla(device) if is_xla(device) else _missed_by_accelerate(device)
    if missed is not None:
        sign, wish = missed
        raise ValueError(
            f"{sign}, but the device is a CPU: mend the installation (constraints-tpu.txt has the versions for TPUs), "
            f"or start the run with {wish} to compute on the CPU."
        )
    narrowed = [name for name in ("XLA_USE_BF16", "XLA_DOWNCAST_BF16") if os.environ.get(name, "0") != "0"]
    if is_xla(device) and (mixed_precision != "no" or narrowed):
        raise ValueError(
            f"the mixed precision must be 'no' under torch_xla, got {' and '.join([mixed_precision, *narrowed])}: it "
            "would turn the flow's state into bfloat16. TPUs multiply float32 matrices in bfloat16 without it."
        )


def _missed_under_xla(device: torch.device) -> tuple[str, str] | None:
    """Return the sign of an accelerator that is not used, and how to do without it; `None` if there is none."""
    # torch_xla itself sets PJRT_DEVICE to CPU if it finds nothing else, and starts its processes with that.
    launcher = multiprocessing.parent_process()
    asked_for = psutil.Process(launcher.pid if launcher else None).environ().get("PJRT_DEVICE", "")
    if device_kind(device) != "cpu" or asked_for.upper() == "CPU":
        return None
    return "torch_xla is installed and has found no accelerator", "PJRT_DEVICE=CPU"


def _missed_by_accelerate(device: torch.device) -> tuple[str, str] | None:
    """Return the same as [`_missed_under_xla`] for a device that accelerate has chosen without torch_xla."""
    if device.type != "cpu" or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return None
    wish = "ACCELERATE_USE_CPU=true"
    if os.environ.get("PJRT_DEVICE", "CPU").upper() != "CPU":
        return f"PJRT_DEVICE is {os.environ['PJRT_DEVICE']}", wish
    if variables := sorted(name for name, value in os.environ.items() if name.startswith("TPU_") and value):
        return f"{variables[0]} is set", wish
    # This variable tells accelerate to leave torch_xla alone.
    ignored = {"torch_xla"} if os.environ.get("USE_TORCH_XLA", "1").lower() in ("0", "false", "no") else set()
    installed = [name for name in ("torch_xla", "torch_tpu") if name not in ignored and find_spec(name)]
    return (f"{installed[0]} is installed", wish) if installed else None
