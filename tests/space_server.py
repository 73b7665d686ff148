"""Servers of the demo, for its tests."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import app
import httpx
import psutil
import pytest
from conftest import ROOT


SPACE = ROOT / "space"


def find_chromium() -> str | None:
    """Return the path of a Chromium from the variable CHROMIUM or from the PATH."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class SpaceClient:
    """
    Requests to a server.

    Args:
        port: Port of the server.
        files: Folder of the server's files.
    """

    def __init__(self, port: int, files: Path):
        self.url, self.files = f"http://127.0.0.1:{port}", files
        # One client for all requests, because each new one loads certificates.
        self.http = httpx.Client(timeout=120, limits=httpx.Limits(max_connections=None), trust_env=False)

    def upload(self, path: Path | str, client: str = "127.0.0.1") -> dict:
        """Upload an image from the address `client`, and return it in the form of the API."""
        with open(path, "rb") as file:
            answer = self.post("upload", client, files={"files": file})
        answer.raise_for_status()
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def call(
        self, name: str, data: list, client: str = "127.0.0.1", readers: list[socket.socket] | None = None
    ) -> tuple[str, object]:
        """
        Call a function as curl does, and return the name and the data of the last event.

        Args:
            name: Name of the function.
            data: Its values.
            client: Address that calls it.
            readers: List to which the connection that waits for the result is appended.
        """
        answer = self.post(f"call/{name}", client, json={"data": data})
        answer.raise_for_status()
        with self.http.stream("GET", f"{self.url}/gradio_api/call/{name}/{answer.json()['event_id']}") as events:
            if readers is not None:
                readers.append(events.extensions["network_stream"].get_extra_info("socket"))
            lines = events.read().decode().strip().splitlines()
        return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))

    def post(self, route: str, client: str = "127.0.0.1", **content) -> httpx.Response:
        headers = content.pop("headers", {}) | {"X-Forwarded-For": client}
        return self.http.post(f"{self.url}/gradio_api/{route}", headers=headers, **content)

    def received(self) -> list[Path]:
        """Return all files of visitors on the disk."""
        return sorted(self._present() - self.own_files)

    def remember_own_files(self) -> None:
        """Take all present files for those of the server."""
        self.own_files = self._present()

    def _present(self) -> set[Path]:
        # Folders may be deleted during the walk, which os.walk ignores and rglob does not.
        files = [Path(folder) / name for folder, _, names in os.walk(self.files) for name in names]
        return {path for path in files if path.is_file()}


class SpaceServer(SpaceClient):
    """
    Process of `app.py` that runs in its context.

    Args:
        folder: Empty folder for the files of the server.
    """

    def __init__(self, folder: Path):
        port, self.log = free_port(), folder / "log.txt"
        super().__init__(port, folder / "files")
        environment = {name: value for name, value in os.environ.items() if name not in ("MODEL_ID", "GRADIO_SHARE")}
        environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(self.files), "OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SPACE / "app.py")],
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self):
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.url}/config", timeout=10).close()
                self.remember_own_files()
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.__exit__()
        raise RuntimeError(f"the demo did not start: {self.log.read_text()}")

    def __exit__(self, *_):
        self.http.close()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def megabytes(self) -> float:
        """Return the memory of the process."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def logged(self) -> str:
        return self.log.read_text()


@contextmanager
def serve_here(folder: Path, **settings: object) -> Iterator[SpaceClient]:
    """
    Serve the demo from threads of this process, which has done the imports already.

    Args:
        folder: Empty folder for the files of the server.
        settings: Other values of the settings at the top of `app.py`.
    """
    client = SpaceClient(free_port(), folder / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(client.files))
        patch.delenv("GRADIO_SHARE", raising=False)
        for name, value in settings.items():
            patch.setattr(app, name, value)
        page = app.build_app(*app.load_models(None))
        client.remember_own_files()
        app.launch(page, prevent_thread_lock=True, quiet=True, server_port=int(client.url.rpartition(":")[2]))
        try:
            yield client
        finally:
            client.http.close()
            page.close(verbose=False)
