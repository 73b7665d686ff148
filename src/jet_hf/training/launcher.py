# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The launcher that started this process."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..utils.console import handle_signals


@dataclass(frozen=True)
class Launcher:
    """
    The launcher of this process.

    Args:
        pid: Process id of the launcher.
        grace_seconds: Seconds between the signal that it forwards to its workers and the SIGKILL that follows. `None`
            if it forwards no signal.
    """

    pid: int
    grace_seconds: float | None

    @property
    def has_ended(self) -> bool:
        """Whether this process has outlived its launcher, which a signal may have ended alone."""
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


@contextmanager
def killable_join(launcher: Launcher | None) -> Iterator[None]:
    """
    Let SIGINT, SIGTERM and the end of the launcher kill this process while it waits for the others to join.

    It waits in native code for as long as half an hour, during which Python runs no signal handler, and it has nothing
    to lose yet.

    Raises:
        ConnectionError: if the launcher has ended already.
    """
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if launcher is None or is_alone or threading.current_thread() is not threading.main_thread():
        yield
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=60).close()
        except OSError as error:
            raise ConnectionError(f"the launcher of this process has ended: {error}.") from error
    joined = threading.Event()

    def watch() -> None:
        while not joined.wait(1.0):
            if launcher.has_ended:
                os.kill(os.getpid(), signal.SIGTERM)

    with handle_signals(signal.SIG_DFL):
        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            joined.set()
