"""
A local Hub server over HTTP, with repositories in memory and large files through LFS.

It answers the requests of `huggingface_hub` for creating, writing and reading repositories, and can be told to fail.
The client reads its settings when it is imported and therefore needs a separate process:

    with HubServer() as hub:
        hub.fail("commit", status=503, times=2)
        subprocess.run([sys.executable, "push.py"], env=hub.environment(token="writer"))
        assert hub.files("jet/tiny")["config.json"]
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hub_repos import ROUTES, TOKENS, File, Hub, HubError, Repo


WRITING = ("preupload", "batch", "commit", "set_variable", "delete_variable", "hardware")


@dataclass
class Fault:
    """
    Failure of the next requests of a route.

    Args:
        route: Name of a route of `ROUTES`.
        times: Number of requests that fail.
        status: Status of the responses, or `None` to close the connection instead.
        when: "before" or "after" the request takes effect, or "half" to stop reading in the middle of the body, and to
            close the connection when `release` is set.
        body, headers: Content of the responses.
        min_size: Minimum size of the requests, in bytes.
        reached: Event that is set when all requests have failed.
    """

    route: str
    times: int = 1
    status: int | None = 503
    when: str = "before"
    body: str = '{"error": "told to fail"}'
    headers: dict[str, str] = field(default_factory=dict)
    min_size: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class HubServer(Hub):
    """Server that runs in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[dict] = []  # route, method, path, status, size and user, in the order of the responses
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close, self.server.hub = True, False, self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self.home = tempfile.mkdtemp(prefix="hub_client_")
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.recover()
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.home, ignore_errors=True)

    def environment(self, token: str | None = "writer", home: str | os.PathLike | None = None) -> dict[str, str]:
        """Return the environment of a client process, with a token of `TOKENS` and the client's cache in `home`."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_CACHE")
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home or self.home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        if token is not None:
            settings["HF_TOKEN"] = token
        return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | settings

    def fail(self, route: str, **options) -> Fault:
        """Let the next requests of a route fail. `options` are fields of [`Fault`]."""
        fault = Fault(route, **options)
        assert route in {name for name, *_ in ROUTES} and fault.when in ("before", "after", "half"), fault
        self.faults.append(fault)
        return fault

    def recover(self) -> None:
        """Cancel all pending failures."""
        with self.lock:
            for fault in self.faults:
                fault.times = 0
                fault.release.set()

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[f"{repo_type}s", repo_id]

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """Return the files of the last commit, except for the `.gitattributes` that the Hub creates."""
        files = self.repo(repo_id, repo_type).commits[-1].files
        return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def messages(self, repo_id: str, repo_type: str = "model") -> list[str]:
        """Return the commit messages, except for the first, which is the Hub's."""
        return [commit.message for commit in self.repo(repo_id, repo_type).commits[1:]]

    def count(self, route: str, status: int | None = 200) -> int:
        """Return the number of responses of a route with a status. `None` counts closed connections."""
        with self.lock:
            return sum(request["route"] == route and request["status"] == status for request in self.requests)

    def take_fault(self, route: str, size: int) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.route == route and fault.times > 0 and size >= fault.min_size:
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets it fail if requested, checks the permissions, and sends the route's response."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        self.hub, self.user, self.route, found = self.server.hub, None, "unknown", {}
        path = unquote(urlsplit(self.path).path)
        for name, method, pattern in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                self.route = name
                found = {key: value for key, value in match.groupdict().items() if value is not None}
                break
        size = int(self.headers.get("Content-Length", 0))
        fault = self.hub.take_fault(self.route, size)
        if fault and fault.when == "half":
            self.rfile.read(size // 2)
        else:
            body = self.read_body()
        if not fault:
            return self.serve(found, body)
        if fault.when == "after":
            self.act(found, body)
        if fault.times == 0:
            fault.reached.set()
        if fault.when == "half":
            fault.release.wait()
        if fault.status is None or fault.when == "half":
            self.note(None)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        self.answer(fault.status, fault.body.encode(), fault.headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def serve(self, found: dict[str, str], body: bytes) -> None:
        try:
            answer = self.act(found, body)
        except HubError as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            return self.answer(error.status, json.dumps(error.body).encode(), headers | error.headers)
        if self.route == "resolve":
            return self.send_file(*answer)
        headers = {"ETag": f'"{answer["etag"]}"'} if self.route == "upload" else {}
        self.answer(200, json.dumps(answer).encode(), headers)

    def act(self, found: dict[str, str], body: bytes):
        """Check the permissions, and call the method of the route."""
        hub, role = self.hub, None
        if token := self.headers.get("Authorization", "").removeprefix("Bearer "):
            if token not in TOKENS:
                raise HubError(401, "Invalid credentials in Authorization header")
            self.user, role = TOKENS[token]
        arguments = {"user": self.user, "role": role, "body": body} | found
        if "+json" in self.headers.get("Content-Type", "") or self.headers.get("Content-Type") == "application/json":
            arguments["data"] = json.loads(body)
        with hub.lock:
            if "repo" in found:
                arguments["kind"], arguments["repo_id"] = found.get("kind", "models"), found["repo"]
                arguments["repo"] = hub.visible(arguments["kind"], found["repo"], self.user)
                if self.route in WRITING:
                    hub.check_may_write(self.user, role, arguments["repo"])
            return getattr(hub, self.route)(**arguments)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_file(self, sha: str, file: File) -> None:
        content, status = file.content, 200
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(content))}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self.answer(status, content, headers)

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.note(status)
        self.send_response(status)
        defaults = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in (defaults | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def note(self, status: int | None) -> None:
        request = {"route": self.route, "method": self.command, "path": self.path, "status": status}
        request |= {"user": self.user, "size": int(self.headers.get("Content-Length", 0))}
        with self.hub.lock:
            self.hub.requests.append(request)

    def log_message(self, *args) -> None:
        pass


# Imports slow modules once, then forks a process for each line of JSON that it reads.
CLIENT = """
import json, os, sys
import torch
from huggingface_hub import HfApi, ModelCard, constants, hf_hub_download
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.hub import check_login, full_repo_id, push_folder

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if process := os.fork():
        print(process, flush=True)
        os.waitpid(process, 0)
        print("ended", flush=True)
        continue
    os.environ.pop("HF_TOKEN", None)
    os.environ |= {} if job["token"] is None else {"HF_TOKEN": job["token"]}
    names = globals() | job["names"]
    try:
        exec(job["code"], names)
        answer = {"result": names.get("result")}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    with open(job["answer"], "w") as file:
        json.dump(answer, file)
    os._exit(0)
"""


class ClientError(Exception):
    """Exception in a client process. The message contains the name of its class."""


class Client:
    """
    Runs code in new processes that have already imported huggingface_hub and jet_hf.

    Args:
        hub: Server that the processes use.
        folder: Working directory of the processes.
    """

    def __init__(self, hub: HubServer, folder: Path):
        self.answer = folder / "answer.json"
        command, log = [sys.executable, "-c", CLIENT], folder / "client.log"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with log.open("w") as stderr:
            self.process = subprocess.Popen(command, env=hub.environment(), cwd=folder, stderr=stderr, **pipes)
        assert self.process.stdout.readline() == "ready\n", log.read_text()

    def start(self, code: str, token: str | None = "writer", **names) -> int:
        """Start a process with the given variables, and return its id."""
        self.answer.unlink(missing_ok=True)
        job = {"code": code, "token": token, "names": names, "answer": str(self.answer)}
        self.process.stdin.write(json.dumps(job, default=str) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        """Wait for the process, and return the variable `result` of its code, or `None` if it was killed."""
        assert self.process.stdout.readline() == "ended\n"
        answer = json.loads(self.answer.read_text()) if self.answer.exists() else {}
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer.get("result")

    def __call__(self, code: str, token: str | None = "writer", **names):
        self.start(code, token, **names)
        return self.wait()

    def push(self, folder: Path, repo_id: str, token: str | None = "writer", **options) -> str:
        code = "result = push_folder(folder, repo_id, **options)"
        return self(code, token, folder=folder, repo_id=repo_id, options={"wait_seconds": 0.01} | options)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
