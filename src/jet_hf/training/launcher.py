# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The process that started this one: accelerate's or torch's launcher."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Launcher:
    """
    The launcher of this process.

    Args:
        pid: Its process id.
        grace_seconds: Time between the signal that it forwards to its workers and the SIGKILL that follows. `None` if
            it forwards none.
    """

    pid: int
    grace_seconds: float | None

    @property
    def has_ended(self) -> bool:
        """Whether this process has outlived its launcher, which a signal may have ended without telling it."""
        return os.getppid() != self.pid


def find_launcher() -> Launcher | None:
    """Return the launcher of this process; `None` for a process that was started without one."""
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        grace = os.environ.get("PET_SHUTDOWN_TIMEOUT") or os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT") or "30"
        return Launcher(parent, float(grace))
    with suppress(psutil.Error):
        names = {Path(word).name for word in psutil.Process(parent).cmdline()[:4]}
        if names & {"accelerate", "accelerate-launch", "accelerate.commands.launch"}:
            return Launcher(parent, None)
    return None
