# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The server's files: which are uploads, how much each client may leave here, and when files are deleted."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path


class QuotaError(ValueError):
    """An upload for which there is no room; the message is a sentence for its sender."""


@dataclass(frozen=True)
class Quota:
    """
    Bounds of what lies on the disk.

    Args:
        client_bytes, client_files: Uploads of one client.
        upload_bytes, upload_files: Uploads of all clients.
        result_bytes, result_files: All other files; the oldest go first.
    """

    client_bytes: int = 200 * 2**20
    client_files: int = 200
    upload_bytes: int = 2 * 2**30
    upload_files: int = 4_000
    result_bytes: int = 512 * 2**20
    result_files: int = 20_000


@dataclass(frozen=True)
class StoredUpload:
    client: str
    size: int
    received: float
    real_path: str


class Storage:
    """
    A folder of this server alone, which goes when the server ends, with a register of the uploads in it.

    Args:
        seconds: Age at which files are deleted.
        quota: Bounds of the total size.
    """

    def __init__(self, seconds: float, quota: Quota):
        self.seconds, self.quota = seconds, quota
        parent = os.environ.get("GRADIO_TEMP_DIR")
        if parent is not None:
            os.makedirs(parent, exist_ok=True)
        self._directory = tempfile.TemporaryDirectory(prefix="jet-demo-", dir=parent, ignore_cleanup_errors=True)
        self.folder = Path(self._directory.name).resolve()
        self.uploads: dict[str, StoredUpload] = {}
        self.lasting: dict[str, str] = {}

    def add_lasting(self, sources: Iterable[Path], folder: str) -> list[str]:
        """Copy files that visitors may use as pictures for as long as the server runs; return their paths."""
        (self.folder / folder).mkdir()
        paths = []
        for source in sources:
            target = self.folder / folder / source.name
            target.write_bytes(source.read_bytes())
            self.lasting[str(target)] = os.path.realpath(target)
            paths.append(str(target))
        return paths

    def holds(self, path: str) -> bool:
        """Return whether `path` is an upload or a lasting file, and still the file that was put there."""
        upload = self.uploads.get(path)
        real_path = self.lasting.get(path) if upload is None else upload.real_path
        return real_path is not None and os.path.realpath(path) == real_path

    def add_upload(self, path: str, client: str) -> None:
        """Register a file that the server has received."""
        real_path = os.path.realpath(path)
        if Path(real_path).is_relative_to(self.folder):
            self.uploads[path] = StoredUpload(client, os.path.getsize(path), time.time(), real_path)

    def check_room(self, client: str, size: int) -> None:
        """Raise QuotaError if `size` further bytes of a client are too much."""
        own = [upload for upload in self.uploads.values() if upload.client == client]
        for uploads, max_bytes, max_files, reason in (
            (own, self.quota.client_bytes, self.quota.client_files, "You have uploaded"),
            (self.uploads.values(), self.quota.upload_bytes, self.quota.upload_files, "Visitors have uploaded"),
        ):
            used = sum(upload.size for upload in uploads)
            if used + size > max_bytes or len(uploads) >= max_files:
                raise QuotaError(
                    f"{reason} {len(uploads)} files of {used / 2**20:.0f} MB, and at most {max_files} files of "
                    f"{max_bytes / 2**20:.0f} MB are kept: try again later."
                )

    def sweep(self, forget: Callable[[Collection[str]], None] = lambda paths: None) -> None:
        """
        Delete files that are too old, half-received ones among them, and the oldest results that exceed the quota.

        Args:
            forget: Called with the paths of the deleted files.
        """
        oldest = time.time() - self.seconds
        deleted, results = [], []
        for path, upload in list(self.uploads.items()):
            if upload.received < oldest:
                del self.uploads[path]
                deleted.append(path)
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(parent, name)
                if path in self.uploads or path in self.lasting:
                    continue
                try:
                    status = os.lstat(path)
                except FileNotFoundError:
                    continue
                if status.st_ctime < oldest:
                    deleted.append(path)
                else:
                    results.append((status.st_ctime, status.st_size, path))
        left = sum(size for _, size, _ in results)
        results.sort()
        for number, (_, size, path) in enumerate(results):
            if left <= self.quota.result_bytes and len(results) - number <= self.quota.result_files:
                break
            left -= size
            deleted.append(path)
        for path in deleted:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
            if (parent := Path(path).parent) != self.folder:
                with contextlib.suppress(OSError):  # where it holds other files
                    parent.rmdir()
        forget(deleted)
