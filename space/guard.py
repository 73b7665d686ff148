# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""ASGI middleware that sees each request first: which paths there are, how large and slow a body may be, its shape."""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs
from weakref import WeakValueDictionary

import gradio as gr
from fairness import Calls, client_of
from fastapi.exceptions import RequestValidationError
from gradio_internals import has_results
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, PlainTextResponse
from storage import QuotaError, Storage
from uploads import MAX_FILE_SIZE

from jet_hf.utils.files import strict_json


logger = logging.getLogger(__name__)

API = "/gradio_api"
# The pages, assets and functions of the demo. Gradio has more routes, which nothing here needs.
READABLE = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static|svelte)/.*"
    rf"|{API}/(info/?|openapi\.json|app_id/?|user/?|login_check/?|startup-events|theme\.css|heartbeat/.*"
    r"|queue/(data|status)|call/.*|file=.*|upload_progress)"
)
# These describe the whole page, which takes a while to put together.
COSTLY = re.compile(rf"/|/config/?|{API}/(info/?|openapi\.json)")
WRITABLE = re.compile(rf"{API}/(queue/join|call/.*|run/.*|upload|cancel|reset/?)")
FUNCTION = re.compile(rf"{API}/(queue/join|(?:call/v2|call|run)/(\w+)/?)")
RESULT = re.compile(rf"{API}/call/(?:v2/)?\w+/(\w+)")
SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
NO_SUCH_FUNCTION = "There is no such function here: see the page's API."


@dataclass(frozen=True)
class RequestLimits:
    """
    Bounds of request bodies.

    Args:
        upload_bytes: Size of an upload: the file, and the headers of its parts.
        body_bytes: Size of any other body, which holds a few numbers and names.
        idle_seconds, body_seconds: Time between two chunks, and for a whole body.
        uploads, client_uploads: Number of uploads on their way at once, of all clients and of one.
    """

    upload_bytes: int = MAX_FILE_SIZE + 2**16
    body_bytes: int = 2**18
    idle_seconds: float = 10
    body_seconds: float = 120
    uploads: int = 64
    client_uploads: int = 24


class RequestError(Exception):
    """A request that is refused, with the status and the sentence of the answer."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Body:
    """The `receive` of a request whose body has bounds."""

    POLL_SECONDS = 0.5

    def __init__(self, receive, max_bytes: int, limits: RequestLimits):
        self.receive, self.max_bytes, self.limits = receive, max_bytes, limits
        self.started = self.last_chunk = time.monotonic()
        self.size, self.complete, self.displaced = 0, False, False

    async def __call__(self) -> dict:
        while not self.complete:
            try:
                message = await asyncio.wait_for(self.receive(), self.POLL_SECONDS)
            except TimeoutError:
                self._check_time()
                continue
            if message["type"] == "http.disconnect":
                raise RequestError(400, "The connection was closed before the request was complete.")
            self.size += len(message.get("body", b""))
            if self.size > self.max_bytes:
                raise RequestError(413, too_large(self.max_bytes))
            self.last_chunk, self.complete = time.monotonic(), not message.get("more_body", False)
            self._check_time()
            return message
        return await self.receive()

    @property
    def idle_seconds(self) -> float:
        return time.monotonic() - self.last_chunk

    def _check_time(self) -> None:
        if self.displaced:
            raise RequestError(503, "The upload had come to a halt and has made room for others.")
        if self.idle_seconds > self.limits.idle_seconds:
            raise RequestError(408, f"The request had come to a halt for {self.limits.idle_seconds:g} seconds.")
        if not self.complete and time.monotonic() - self.started > self.limits.body_seconds:
            raise RequestError(408, f"The request took more than {self.limits.body_seconds:g} seconds to arrive.")

    async def read(self) -> bytes:
        chunks = []
        while not self.complete:
            chunks.append((await self()).get("body", b""))
        return b"".join(chunks)


def too_large(max_bytes: int) -> str:
    return f"A request here must have at most {max_bytes:,} bytes, its maximum allowed size."


async def answer_in_a_sentence(request, error: RequestValidationError) -> JSONResponse:
    """Answer a body of the wrong shape; the framework's own answer is a list of objects."""
    return JSONResponse({"detail": "The request does not have the form that this address takes."}, 422)


class RequestGuard:
    """
    Refuse what is not a request of the demo's page or API, and note who uploads and who reads.

    Args:
        app: The next ASGI application.
        blocks: Gradio's description of the page.
        storage: Register of uploads.
        calls: Register of readers.
        limits: Bounds of request bodies.
    """

    def __init__(self, app, blocks: gr.Blocks, storage: Storage, calls: Calls, limits: RequestLimits):
        self.app, self.blocks, self.storage, self.calls, self.limits = app, blocks, storage, calls, limits
        self.uploading: dict[Body, str] = {}
        self.rendering = asyncio.Semaphore(2)
        self.rendering_for: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched_send(message):
            nonlocal started
            started = True
            await send(message)

        try:
            await self._handle(scope, receive, watched_send)
        except Exception as error:
            if started:
                raise
            if isinstance(error, RequestError):
                status, sentence = error.status, error.sentence
            else:
                ticket = uuid.uuid4().hex[:8]
                logger.error("error %s", ticket, exc_info=error)
                status, sentence = 500, f"Something went wrong here, not with you (error {ticket})."
            respond = PlainTextResponse if status == 403 else JSONResponse
            await respond(sentence if status == 403 else {"detail": sentence}, status)(scope, receive, send)

    async def _handle(self, scope, receive, send) -> None:
        path, method = scope["path"], scope["method"]
        if "/proxy=" in path or re.search(r"/file[=/]https?:", path, re.IGNORECASE):
            raise RequestError(403, "Addresses are not fetched.")
        if method in ("GET", "HEAD", "OPTIONS") and READABLE.fullmatch(path):
            await self._read(scope, receive, send)
        elif method == "OPTIONS" and WRITABLE.fullmatch(path):
            await self.app(scope, receive, send)
        elif method == "POST" and WRITABLE.fullmatch(path):
            await self._write(scope, receive, send)
        else:
            raise RequestError(404, "There is no such page here.")

    async def _read(self, scope, receive, send) -> None:
        path, reader = scope["path"], None
        if result := RESULT.fullmatch(path):
            reader = result[1]
            if not has_results(self.blocks, reader):
                raise RequestError(404, "There is no such call, or its result has been fetched or dropped.")
        elif path == f"{API}/queue/data":
            reader = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]
        with contextlib.nullcontext() if reader is None else self.calls.reading(reader):
            await (self._render if COSTLY.fullmatch(path) else self.app)(scope, receive, send)

    async def _write(self, scope, receive, send) -> None:
        path = scope["path"]
        is_upload = path == f"{API}/upload"
        body = Body(receive, self.limits.upload_bytes if is_upload else self.limits.body_bytes, self.limits)
        declared = dict(scope["headers"]).get(b"content-length", b"")
        size = int(declared[:20]) if declared.isdigit() else 0
        if size > body.max_bytes:
            raise RequestError(413, too_large(body.max_bytes))
        if is_upload:
            await self._upload(scope, body, size, send)
            return
        content = await body.read()
        if function := FUNCTION.fullmatch(path):
            content = strict_json(self._checked_call(function[1], function[2], content)).encode()
        await self.app(scope, replayed(content, receive), send)

    async def _render(self, scope, receive, send) -> None:
        """Make one page at a time for each client, and send it when it is whole, however slowly the client reads."""
        messages = []

        async def collect(message) -> None:
            messages.append(message)

        lock = self.rendering_for.setdefault(client_of(scope["client"] and scope["client"][0]), asyncio.Lock())
        async with lock, self.rendering:
            await self.app(scope, receive, collect)
        for message in messages:
            await send(message)

    async def _upload(self, scope, body: Body, size: int, send) -> None:
        client = client_of(scope["client"] and scope["client"][0])
        try:
            self.storage.check_room(client, size)
        except QuotaError as error:
            raise RequestError(429, str(error)) from None
        stored, answer = False, b""

        async def receive():
            try:
                return await body()
            except RequestError as error:
                # The form parser deletes its half-written files at this error, and at no other.
                raise MultiPartException(error.sentence) from None

        async def noting_send(message):
            nonlocal stored, answer
            if message["type"] == "http.response.start":
                stored = message["status"] == 200
            elif stored:
                answer += message.get("body", b"")
                if not message.get("more_body", False):
                    for path in json.loads(answer):
                        self.storage.add_upload(path, client)
            await send(message)

        with self._upload_slot(body, client):
            await self.app(scope, receive, noting_send)

    @contextlib.contextmanager
    def _upload_slot(self, body: Body, client: str):
        """Hold one of the places for uploads; one that has come to a halt makes room."""
        for bodies, most in (
            ([body for body, owner in self.uploading.items() if owner == client], self.limits.client_uploads),
            (list(self.uploading), self.limits.uploads),
        ):
            bodies = [body for body in bodies if not body.displaced]
            if len(bodies) >= most:
                halted = max(bodies, key=lambda body: body.idle_seconds)
                if halted.idle_seconds < 1:
                    raise RequestError(429, f"At most {most} uploads may be on their way at once: try again soon.")
                halted.displaced = True
        self.uploading[body] = client
        try:
            yield
        finally:
            del self.uploading[body]

    def _checked_call(self, route: str, name: str | None, content: bytes) -> dict:
        """Return the fields of a call that this demo uses, checked; raise RequestError for another shape."""
        try:
            call = json.loads(content)
        except (ValueError, RecursionError):
            raise RequestError(400, "A call must be JSON.") from None
        if not isinstance(call, dict):
            raise RequestError(422, "A call must be a JSON object.")
        functions = {fn.api_name: fn for fn in self.blocks.fns.values() if fn.fn is not None}
        if route.startswith("call"):
            if name not in functions:
                raise RequestError(404, NO_SUCH_FUNCTION)
            if route.startswith("call/v2"):
                return self._checked_parameters(name, call)
        if not isinstance(call.get("data"), list):
            raise RequestError(422, "A call must be a JSON object whose `data` is a list of values.")
        checked = {"data": call["data"]}
        if route.startswith("call"):
            # Without a session of its own, the call's session is its event, on which the result is read.
            return checked
        index, session = call.get("fn_index"), call.get("session_hash")
        known = isinstance(index, int) and not isinstance(index, bool) and index in self.blocks.fns
        if not known or self.blocks.fns[index].fn is None:
            raise RequestError(404, NO_SUCH_FUNCTION)
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise RequestError(422, "`session_hash` must be a word of at most 64 letters, digits, - and _.")
        return checked | {"fn_index": index, "session_hash": session}

    def _checked_parameters(self, name: str, call: dict) -> dict:
        """Return a call of `call/v2`, whose values have names; raise RequestError for others than the function's."""
        endpoint = self.blocks.get_api_info()["named_endpoints"].get(f"/{name}")
        if endpoint is None:
            raise RequestError(404, NO_SUCH_FUNCTION)
        parameters = endpoint["parameters"]
        names = {parameter["parameter_name"] for parameter in parameters}
        needed = {p["parameter_name"] for p in parameters if not p.get("parameter_has_default")}
        if not needed <= call.keys() <= names:
            raise RequestError(
                422, f"`{name}` must get a JSON object with {', '.join(f'`{p}`' for p in sorted(names))}."
            )
        return call


def replayed(content: bytes, receive) -> Callable:
    """Return a `receive` that gives a body once more, and then waits for the end of the connection."""
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def replay() -> dict:
        return messages.pop() if messages else await receive()

    return replay
