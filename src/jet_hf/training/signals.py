# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""SIGINT and SIGTERM end a run at once while there is nothing to lose, and otherwise after a checkpoint."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from ..utils.console import Interrupted, handle_signals


# A launcher forwards a signal that the terminal or the scheduler has sent to its workers already.
SECONDS_OF_REPEATS = 2.0


class RunInterrupted(Interrupted):
    """A signal ended a run before its schedule was completed, without a new checkpoint."""


class StopSignals:
    """
    Context manager that handles SIGINT and SIGTERM while it is entered.

    A signal raises [`RunInterrupted`] in the main thread. Within [`deferred`], the first signal is only recorded in
    `requested`, and a later SIGINT, as from an impatient user, raises. See [`handle_signals`] for signals and threads
    that stay as they are.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._requested_at = 0.0
        self._deferring = False
        self._previous = ExitStack()
        self._process = os.getpid()

    def __enter__(self) -> "StopSignals":
        self._previous = handle_signals(self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        self._previous.close()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block choose the moment at which to stop."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if os.getpid() != self._process:
            # This is a forked data worker, which its parent may need until the checkpoint is saved.
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
