# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Log lines, error messages, signals and exit codes of the commands."""

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The words that huggingface_hub's strict dataclasses put before the messages of their validators.
OF_VALIDATOR = re.compile(r"Class validation error for validator '\w+':\s+\w+: ")


class Interrupted(KeyboardInterrupt):
    """
    SIGINT or SIGTERM ended a command.

    It derives from KeyboardInterrupt so that libraries clean up as they do after Ctrl-C.

    Args:
        signal: Signal that arrived.
        outcome: State in which the command leaves its work, as a clause for the message.
    """

    def __init__(self, signal: signal.Signals, outcome: str = ""):
        super().__init__(f"stopped by {signal.name}{': ' if outcome else ''}{outcome}.")
        self.signal = signal
        self.outcome = outcome
        self.exit_code = 128 + signal  # which shells expect of a process that a signal has ended


def rank() -> int:
    """Return the rank of this process among those of its launcher; 0 without a launcher."""
    # torch_xla numbers the processes of a machine, and sets no RANK.
    return int(os.environ.get("RANK") or os.environ.get("PJRT_LOCAL_PROCESS_RANK") or "0")


def end_at_once_on_signals() -> None:
    """Let SIGINT and SIGTERM end a process that has nothing to clean up with one line, even while it imports."""
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if not rank() and os.getpid() == process:  # a worker that was forked later ends silently
            os.write(2, f"stopped by {signal.Signals(number).name}.\n".encode())
        os._exit(128 + number)

    handle_signals(end)


@contextmanager
def console(*errors: type[Exception]) -> Iterator[None]:
    """
    Log to stderr, and turn the expected exceptions of a command into one line and an exit code.

    SIGINT and SIGTERM raise [`Interrupted`] within the block, so that it can remove unfinished files. Under a launcher
    only the first process logs information, and the lines of the others start with their rank.

    Args:
        errors: Exceptions with a message for the user, besides ValueError and OSError.

    Raises:
        SystemExit: with the line and code 1 for an expected exception, 130 for SIGINT and 143 for SIGTERM.
    """
    prefix = f"[{rank()}] " if rank() else ""
    logging.basicConfig(format=f"%(asctime)s {prefix}%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("jet_hf").setLevel(logging.WARNING if rank() else logging.INFO)

    process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a worker that was forked later
            os._exit(128 + number)
        raise Interrupted(signal.Signals(number))

    expected: tuple[type[Exception], ...] = (ValueError, OSError, *errors)
    try:
        with handle_signals(interrupt):
            yield
    except expected as error:
        # On every process: a later one may be the only one with this error.
        message = OF_VALIDATOR.sub("", str(error))
        raise SystemExit(f"{prefix}error: {' '.join(message.split())}") from error
    except KeyboardInterrupt as stop:
        if not rank():
            print(" ".join(str(stop).split()) or "stopped by SIGINT.", file=sys.stderr, flush=True)
        raise SystemExit(getattr(stop, "exit_code", 128 + signal.SIGINT)) from None


def handle_signals(handler: Callable[[int, FrameType | None], Any] | int) -> ExitStack:
    """
    Install a handler of SIGINT and SIGTERM; closing the result restores the previous handlers.

    A signal that the process was started to ignore stays ignored. Outside the main thread, which alone can handle
    signals, nothing is installed.
    """
    previous = ExitStack()
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            # None stands for a handler that was not installed from Python and cannot be restored.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous.callback(signal.signal, number, signal.signal(number, handler))
    return previous
