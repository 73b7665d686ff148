# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The launcher that started this process, and a launcher that leaves signals to the training processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from ..utils.console import handle_signals


# The launcher of torch waits this long for its training processes to save a checkpoint, unless the user sets another
# time.
PATIENCE_SECONDS = 3600


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


def launch(arguments: list[str]) -> int:
    """
    Run `accelerate launch` and forward SIGINT and SIGTERM to the training processes alone.

    accelerate's own launcher ends with a traceback when it receives one of these signals, and torch's kills the
    training processes 30 seconds later, whether or not they have saved. Here the launcher receives neither signal and
    ends when the training processes have ended. A scheduler that sends the signal to every process of a job reaches
    it all the same, so its patience is extended to `PATIENCE_SECONDS`.

    Args:
        arguments: Command line of `accelerate launch`.

    Returns:
        The exit code of the launcher, or of a signal that came before the training processes were started.
    """
    ended_by: list[int] = []
    process: subprocess.Popen | None = None

    def forward(number: int, frame: FrameType | None) -> None:
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

    with handle_signals(forward):
        # In a session of its own, it does not receive the terminal's Ctrl-C.
        command = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
        variables = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(PATIENCE_SECONDS), **os.environ}
        process = subprocess.Popen(command, start_new_session=True, env=variables)
        if ended_by:
            process.terminate()
        code = process.wait()
    if ended_by:
        name = signal.Signals(ended_by[0]).name
        print(f"stopped by {name} before the training processes started.", file=sys.stderr)
        return 128 + ended_by[0]
    return code if code >= 0 else 128 - code
