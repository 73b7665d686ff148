# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A launcher that leaves signals to the training processes. This module imports no torch."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

import psutil

from .console import handle_signals


# The launcher of torch waits this long for its training processes to save a checkpoint, unless the user sets another
# time.
PATIENCE_SECONDS = 3600


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
