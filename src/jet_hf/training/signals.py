# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""SIGINT and SIGTERM: end at once where nothing can be lost, and after a checkpoint where something can."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher forwards a signal that the terminal or the scheduler has sent to its workers already.
SECONDS_OF_REPEATS = 2.0


class RunInterrupted(KeyboardInterrupt):
    """
    A signal ended a run before its schedule, without a new checkpoint.

    It derives from KeyboardInterrupt so that libraries clean up as they do after Ctrl-C.

    Args:
        signal: Signal that ended the run.
        message: Full sentence for the user.
    """

    def __init__(self, signal: signal.Signals, message: str = ""):
        super().__init__(message or f"stopped by {signal.name}.")
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """The exit code that shells expect of a process that a signal has ended."""
        return 128 + self.signal


class StopSignals:
    """
    Context manager that handles SIGINT and SIGTERM for as long as it is entered.

    A signal raises [`RunInterrupted`] in the main thread. Within [`deferred`], the first one is only noted in
    `requested`, and a SIGINT after that, as of an impatient user, raises. A signal that the process was started to
    ignore stays ignored, and threads other than the main one, which cannot handle signals, leave all as it is.
    """

    def __init__(self):
        self.requested: signal.Signals | None = None
        self._requested_at = 0.0
        self._deferring = False
        self._previous = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                # None belongs to a handler that was not installed from Python and cannot be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block choose the moment at which to stop."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _receive(self, number: int, frame) -> None:
        received = signal.Signals(number)
        if os.getpid() != self._process:
            # A forked worker has inherited this handler. Its parent decides, and may need it until it has saved.
            if not self._deferring:
                os._exit(128 + number)
            return
        first, now = self.requested is None, time.monotonic()
        if first:
            self.requested, self._requested_at = received, now
        elif now - self._requested_at < SECONDS_OF_REPEATS:
            return
        if not self._deferring or (received is signal.SIGINT and not first):
            raise RunInterrupted(received)
