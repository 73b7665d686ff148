# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Log lines, error messages, signals and exit codes of the commands."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


Handler = Callable[[int, FrameType | None], Any] | int


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
    return int(os.environ.get("RANK", "0"))


def end_at_once_on_signals() -> None:
    """Let SIGINT and SIGTERM end a process that has nothing to clean up with one line, even while it imports."""

    def end(number: int) -> None:
        if not rank():
            os.write(2, f"stopped by {signal.Signals(number).name}.\n".encode())
        os._exit(128 + number)

    _handle_signals(end)


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

    def interrupt(number: int) -> None:
        raise Interrupted(signal.Signals(number))

    expected: tuple[type[Exception], ...] = (ValueError, OSError, *errors)
    previous = _handle_signals(interrupt)
    try:
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    except expected as error:
        # On every process: a later one may be the only one with this error.
        raise SystemExit(f"{prefix}error: {' '.join(str(error).split())}") from error
    except KeyboardInterrupt as stop:
        if not rank():
            print(" ".join(str(stop).split()) or "stopped by SIGINT.", file=sys.stderr, flush=True)
        raise SystemExit(getattr(stop, "exit_code", 128 + signal.SIGINT)) from None


def _handle_signals(handle: Callable[[int], None]) -> dict[int, Handler]:
    """Install a handler of SIGINT and SIGTERM, except where they are ignored; return the previous handlers."""
    process = os.getpid()

    def receive(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a worker that was forked later
            os._exit(128 + number)
        handle(number)

    previous: dict[int, Handler] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        # None belongs to a handler that was not installed from Python and cannot be put back.
        if handler is not None and handler != signal.SIG_IGN:
            previous[number] = handler
            signal.signal(number, receive)
    return previous
