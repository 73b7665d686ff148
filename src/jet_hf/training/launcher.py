# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""accelerate's and torch's launchers: the one that started this process, and one that survives signals."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from .signals import STOP_SIGNALS


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


def launch(arguments: list[str]) -> int:
    """
    Run `accelerate launch` and hand SIGINT and SIGTERM on to the training processes alone.

    accelerate's own launcher ends with a traceback when it receives one, and torch's kills the training processes 30
    seconds later, whether or not they have saved. Here it receives none, and ends when they have ended.

    Args:
        arguments: Command line of `accelerate launch`.

    Returns:
        The launcher's exit code, or that of a signal before it has started the training processes.
    """
    ended_by: list[int] = []
    process: subprocess.Popen | None = None

    def forward(number: int, frame) -> None:
        workers = []
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                workers = psutil.Process(process.pid).children()
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(number)
        if not workers and not ended_by:
            ended_by.append(number)
            if process is not None:
                process.terminate()  # it has no handler yet, and ends silently

    previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        # In a session of its own, it does not receive the terminal's Ctrl-C.
        command = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
        process = subprocess.Popen(command, start_new_session=True)
        if ended_by:
            process.terminate()
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if ended_by:
        name = signal.Signals(ended_by[0]).name
        print(f"stopped by {name} before the training processes started.", file=sys.stderr)
        return 128 + ended_by[0]
    return code if code >= 0 else 128 - code
