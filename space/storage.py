# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The server's files: the register of uploads, the quotas, and the deletion of old files."""

import contextlib
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path


try:
    import fcntl
except ImportError:  # on Windows, the folder of a killed server stays
    fcntl = None

PREFIX = "jet-demo-"


class QuotaError(ValueError):
    """Upload that exceeds a quota. The message is meant for its sender."""


@dataclass(frozen=True)
class Quota:
    """
    Limits of the stored files.

    Args:
        client_bytes, client_files: Uploads of one client.
        upload_bytes, upload_files: Uploads of all clients.
        result_bytes, result_files: All other files, of which the oldest are deleted first.
    """

    client_bytes: int = 200 * 2**20
    client_files: int = 200
    upload_bytes: int = 2 * 2**30
    upload_files: int = 4_000
    result_bytes: int = 512 * 2**20
    result_files: int = 20_000


@dataclass(frozen=True)
class StoredUpload:
    """Entry of the register of uploads. `received` is in seconds since the epoch."""

    client: str
    size: int
    received: float
    real_path: str


def lock_folder(folder: Path) -> int:
    """Lock a folder until this process ends, and return its descriptor. Raise OSError if another one has the lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def delete_abandoned(parent: Path) -> None:
    """Delete the folders of servers that were killed: nobody holds their locks."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = lock_folder(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def delete_files(paths: Iterable[str], folder: Path) -> None:
    """Delete files below a folder, and the folders between that are empty then."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        if (parent := Path(path).parent) != folder:
            with contextlib.suppress(OSError):  # the folder contains other files
                parent.rmdir()


class Storage:
    """
    Private folder of the server, and the register of its uploads.

    The folder is deleted when the server ends, or, if it is killed, when the next one starts.

    Args:
        seconds: Age at which files are deleted.
        quota: Limits of the stored files.
    """

    def __init__(self, seconds: float, quota: Quota):
        self.seconds, self.quota = seconds, quota
        parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        while not self._create_folder(parent):
            pass
        if fcntl is not None:
            delete_abandoned(parent)
        self.uploads: dict[str, StoredUpload] = {}
        self.permanent: dict[str, str] = {}

    def _create_folder(self, parent: Path) -> bool:
        """Create and lock a folder. Return False if another server has taken it for abandoned before it was locked."""
        self._directory = tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True)
        self.folder = Path(self._directory.name).resolve()
        if fcntl is None:
            return True
        try:
            weakref.finalize(self, os.close, lock_folder(self.folder))
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError:  # a file system without locks, on which no folder is abandoned
            return True
        return self.folder.is_dir()

    def add_permanent(self, sources: Iterable[Path], folder: str) -> list[str]:
        """Copy files that visitors may use as inputs until the server ends, and return their paths."""
        (self.folder / folder).mkdir()
        paths = []
        for source in sources:
            target = self.folder / folder / source.name
            target.write_bytes(source.read_bytes())
            self.permanent[str(target)] = os.path.realpath(target)
            paths.append(str(target))
        return paths

    def keep_present_files(self) -> None:
        """Make all files of the folder permanent."""
        for path in filter(Path.is_file, self.folder.rglob("*")):
            self.permanent[str(path)] = os.path.realpath(path)

    def add_result(self, data: bytes, name: str) -> str:
        """Write a file that a visitor downloads by its name, and return its path."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / name
        path.write_bytes(data)
        return str(path)

    def holds(self, path: str) -> bool:
        """Return whether `path` is an upload or a permanent file, and still is the file that was stored there."""
        upload = self.uploads.get(path)
        real_path = self.permanent.get(path) if upload is None else upload.real_path
        return real_path is not None and os.path.realpath(path) == real_path

    def add_uploads(self, paths: Collection[str], client: str) -> None:
        """Register files that the server has received in one request. Raise QuotaError and delete them if too many."""
        try:
            self.check_room(client, 0, len(paths))
        except QuotaError:
            delete_files(set(paths) - self.uploads.keys(), self.folder)
            raise
        for path in paths:
            real_path = os.path.realpath(path)
            if Path(real_path).is_relative_to(self.folder):
                self.uploads[path] = StoredUpload(client, os.path.getsize(path), time.time(), real_path)

    def check_room(self, client: str, num_bytes: int, num_files: int = 1) -> None:
        """Raise QuotaError if further files of a client exceed a quota."""
        own = [upload for upload in self.uploads.values() if upload.client == client]
        for uploads, max_bytes, max_files, reason in (
            (own, self.quota.client_bytes, self.quota.client_files, "You have uploaded"),
            (self.uploads.values(), self.quota.upload_bytes, self.quota.upload_files, "Visitors have uploaded"),
        ):
            used = sum(upload.size for upload in uploads)
            if used + num_bytes > max_bytes or len(uploads) + num_files > max_files:
                raise QuotaError(
                    f"{reason} {len(uploads)} files of {used / 2**20:.0f} MB, and at most {max_files} files of "
                    f"{max_bytes / 2**20:.0f} MB are kept: try again later."
                )

    def sweep(self, forget: Callable[[Collection[str]], None] = lambda paths: None) -> None:
        """
        Delete files that are too old, including half-received ones, and the oldest results that exceed the quota.

        Args:
            forget: Function that is called with the paths of the deleted files.
        """
        oldest = time.time() - self.seconds
        deleted = [path for path, upload in list(self.uploads.items()) if upload.received < oldest]
        for path in deleted:
            del self.uploads[path]
        results = []
        for parent, _, names in os.walk(self.folder):
            for path in (os.path.join(parent, name) for name in names):
                if path in self.uploads or path in self.permanent:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(path)
                    results.append((status.st_ctime, status.st_size, path))
        results.sort()
        num_bytes, num_files = sum(size for _, size, _ in results), len(results)
        for changed, size, path in results:
            if changed >= oldest and num_bytes <= self.quota.result_bytes and num_files <= self.quota.result_files:
                break
            num_bytes, num_files = num_bytes - size, num_files - 1
            deleted.append(path)
        delete_files(deleted, self.folder)
        forget(deleted)
