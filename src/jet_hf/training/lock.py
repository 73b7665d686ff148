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
# The file system of a cluster may show a heartbeat late.
TAKEOVER_SECONDS = 120.0


class RunLockedError(RuntimeError):
    """Another run is using the folder; the message names its host and process."""


class RunLock:
    """
    Context manager for the exclusive use of a run's folder by all processes of one launch together.

    The main process holds a file with its host and process id and refreshes it every `HEARTBEAT_SECONDS`. A second
    run is refused as soon as it sees a refresh, whatever the clocks of the machines say. It takes over the lock of a
    process that died on this machine at once, and any other lock that has not been refreshed for `takeover_seconds`.
    At the end the folder is deleted if the run created it and wrote nothing.

    Args:
        folder: Folder of the run, created if it does not exist.
        takeover_seconds: Seconds without a refresh after which a lock is taken over; the same for all runs.

    Raises:
        RunLockedError: on entering, if another run is using the folder.
        OSError: on entering, if the folder cannot be written to.
    """

    def __init__(self, folder: Path, takeover_seconds: float = TAKEOVER_SECONDS):
        self.folder = folder
        self._lease = SoftFileLease(
            folder / LOCK_FILE,
            lease_duration=takeover_seconds,
            heartbeat_interval=min(HEARTBEAT_SECONDS, takeover_seconds / 4),
            thread_local=False,
        )
        self._created: list[Path] = []
        self._was_free = self._is_acquiring = False

    def __enter__(self) -> "RunLock":
        try:
            on_main_process(self._acquire)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._release()

    def check(self) -> None:
        """
        Make sure that the folder is still locked by this run.

        Raises:
            RunLockedError: if another run has taken over, or the lock was deleted.
        """
        if self._lease.compromise is not None:
            holder = self._describe_holder()
            raise RunLockedError(
                f"this run was suspended, or lost its file system, and no longer holds `output_dir` {self.folder}: "
                f"{f'it is in use by {holder}' if holder else 'the lock was deleted'}. Nothing more was written."
            )

    def _acquire(self) -> None:
        self._created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        before, refreshed, start = self._describe_holder(), self._refresh_time(), time.monotonic()
        announced = False

        def holder_is_alive() -> bool:
            nonlocal announced
            if not announced and time.monotonic() - start > 3 * HEARTBEAT_SECONDS:
                announced = True
                logger.info(
                    f"{self.folder} is locked by {before}, which may have died: waiting up to "
                    f"{self._lease.lease_duration:g} seconds for it to refresh its lock."
                )
            now = self._refresh_time()
            return None not in (now, refreshed) and now != refreshed

        self._was_free, self._is_acquiring = refreshed is None, True
        try:
            self._lease.acquire(
                timeout=self._lease.lease_duration + 10, poll_interval=0.1, cancel_check=holder_is_alive
            )
        except (Timeout, LeaseSettingsMismatch) as error:
            self._is_acquiring = False
            raise RunLockedError(
                f"`output_dir` {self.folder} is in use by {self._describe_holder() or before}: wait until that run "
                "has ended, or choose another folder."
            ) from error
        self._is_acquiring = False
        if before:
            logger.warning(
                f"took over the lock of {self.folder} from {before}, which has ended or has not refreshed it for "
                f"{self._lease.lease_duration:g} seconds."
            )

    def _release(self) -> None:
        if self._lease.is_lock_held_by_us:
            # A process that is killed while it takes over a lock leaves a file named after it.
            for left in self.folder.glob(f"{LOCK_FILE}.break.*.*"):
                process = left.name.split(".")[3]
                if process.isdecimal() and not psutil.pid_exists(int(process)):
                    left.unlink(missing_ok=True)
        self._lease.release()
        # A signal may have come after the file was created and before the lease recorded that it holds it.
        marker = self.folder / LOCK_FILE
        if self._is_acquiring and (self._lease.is_lock_held_by_us or (self._was_free and _is_empty(marker))):
            marker.unlink(missing_ok=True)
        for path in self._created:
            with suppress(OSError):
                path.rmdir()

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


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False
