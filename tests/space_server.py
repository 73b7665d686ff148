"""The demo as a real server process, for its tests."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
from conftest import ROOT


SPACE = ROOT / "space"
# Started like `python space/app.py`, with the time after which files go set from outside.
SHORT_LIVED = (
    "import sys; sys.path.insert(0, sys.argv[1]); import app; app.DELETE_CACHE = (1, 2)\n"
    "from jet_demo import JetDemo; app.launch(app.build_app(JetDemo(app.SPACE / 'model')))"
)


def find_chromium() -> str | None:
    """Path of a Chromium: that of the variable CHROMIUM, or one on the PATH."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class SpaceServer:
    """
    A server with its own folder for files; a context manager.

    Args:
        folder: An empty folder.
        short_lived: Whether files are deleted after two seconds, not an hour.
    """

    def __init__(self, folder: Path, short_lived: bool = False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.files, self.log = f"http://127.0.0.1:{port}", folder / "files", folder / "log.txt"
        command = ["-c", SHORT_LIVED, str(SPACE)] if short_lived else [str(SPACE / "app.py")]
        environment = {name: value for name, value in os.environ.items() if name not in ("MODEL_ID", "GRADIO_SHARE")}
        environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(self.files), "OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self):
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.url}/config", timeout=10).close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.__exit__()
        raise RuntimeError(f"the demo did not start: {self.log.read_text()}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def megabytes(self) -> float:
        """Memory that the process holds."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def logged(self) -> str:
        return self.log.read_text()
