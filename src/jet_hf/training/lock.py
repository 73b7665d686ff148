# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""One run at a time in a folder, on one machine or on several that share a file system."""

import logging
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import psutil
from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from .processes import on_main_process


logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
HEARTBEAT_SECONDS = 2.0
# A file system of a cluster may show a heartbeat late.
TAKEOVER_SECONDS = 120.0


class RunLockedError(RuntimeError):
    """Another run works in the folder; the message names its host and process."""


class RunLock:
    """
    The exclusive use of a run's folder, for all processes of one launch together.

    The main process holds a file with its host and process id and refreshes it every `HEARTBEAT_SECONDS`. A second
    run is refused as soon as it sees a refresh, whatever the clocks of the machines say. The lock of a process that
    died on this machine is taken over at once, any other one when it has not been refreshed for `takeover_seconds`.

    Args:
        folder: Folder of the run; made if need be.
        takeover_seconds: Must be the same for all runs.
    """

    def __init__(self, folder: Path, takeover_seconds: float = TAKEOVER_SECONDS):
        self.folder = folder
        self._lease = SoftFileLease(
            folder / LOCK_FILE,
            lease_duration=takeover_seconds,
            heartbeat_interval=min(HEARTBEAT_SECONDS, takeover_seconds / 4),
            thread_local=False,
        )
        self._made: list[Path] = []
        self._begun = False

    def acquire(self) -> None:
        """
        Take the folder for this launch; all processes call it.

        Raises:
            RunLockedError: if another run works there.
            OSError: if the folder cannot be written to.
        """
        on_main_process(self._acquire)

    def _acquire(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self._made = missing
        self.folder.mkdir(parents=True, exist_ok=True)
        before, refreshed, start = self._describe_holder(), self._refresh_time(), time.monotonic()
        told = False

        def holder_is_alive() -> bool:
            nonlocal told
            if not told and time.monotonic() - start > 3 * HEARTBEAT_SECONDS:
                told = True
                logger.info(
                    f"{self.folder} is locked by {before}, which may have died: waiting at most "
                    f"{self._lease.lease_duration:g} seconds for a sign of life."
                )
            now = self._refresh_time()
            return None not in (now, refreshed) and now != refreshed

        self._begun = True
        try:
            self._lease.acquire(
                timeout=self._lease.lease_duration + 10, poll_interval=0.1, cancel_check=holder_is_alive
            )
        except (Timeout, LeaseSettingsMismatch) as error:
            self._begun = False
            raise RunLockedError(
                f"`output_dir` {self.folder} is in use by {self._describe_holder() or before}: wait until it has "
                "ended, or give another folder."
            ) from error
        if before:
            logger.warning(
                f"{self.folder} was locked by {before}, which has ended or has shown no sign of life for "
                f"{self._lease.lease_duration:g} seconds: this run takes over."
            )

    def check(self) -> None:
        """
        Make sure that the folder is still this run's.

        Raises:
            RunLockedError: if another run has taken over, or the lock was deleted.
        """
        if self._lease.compromise is not None:
            raise RunLockedError(
                f"`output_dir` {self.folder} is no longer this run's, which was suspended or lost its file system: "
                f"{self._describe_holder() or 'its lock is gone'}. Nothing more was written."
            )

    def release(self) -> None:
        """Give the folder back, and delete it if nothing was written to it; also after an interrupted [`acquire`]."""
        self._lease.release()
        # A signal may have come after the file was written and before the lease knew that it holds it.
        if self._begun and self._lease.is_lock_held_by_us:
            (self.folder / LOCK_FILE).unlink(missing_ok=True)
        self._begun = False
        for path in self._made:
            with suppress(OSError):
                path.rmdir()
        self._made = []

    def _refresh_time(self) -> int | None:
        with suppress(OSError):
            return (self.folder / LOCK_FILE).stat().st_mtime_ns
        return None

    def _describe_holder(self) -> str | None:
        owner = self._lease.owner
        if owner is None:
            return None
        # filelock appends the namespace of processes to the name of a container.
        host, start = owner.hostname.partition("?")[0], ""
        if host == socket.gethostname():
            with suppress(psutil.Error):
                started = datetime.fromtimestamp(psutil.Process(owner.pid).create_time())
                start = f", started {started:%Y-%m-%d %H:%M:%S}"
        return f"process {owner.pid} on {host}{start}"
