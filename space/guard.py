# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""ASGI middleware that receives each request first, and checks its path, size, pace and shape."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import get_type_hints
from urllib.parse import parse_qs
from weakref import WeakValueDictionary

import gradio as gr
from fairness import Calls, client_of
from fastapi.exceptions import RequestValidationError
from gradio_internals import has_results, server_fault
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from storage import QuotaError, Storage
from uploads import MAX_FILE_SIZE, MAX_SIDE

from jet_hf.utils.files import strict_json


API = "/gradio_api"
# The demo's pages, assets and functions. Gradio has more routes, which the demo does not need.
READABLE = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static|svelte)/.*"
    rf"|{API}/(info/?|openapi\.json|app_id/?|user/?|login_check/?|startup-events|theme\.css|heartbeat/.*"
    r"|queue/(data|status)|call/.*|file=.*|upload_progress)"
)
# Descriptions of the whole page, which are slow to generate.
COSTLY = re.compile(rf"/|/config/?|{API}/info/?")
WRITABLE = re.compile(rf"{API}/(queue/join|call/.*|run/.*|upload|cancel|reset/?)")
FUNCTION = re.compile(rf"{API}/(queue/join|(?:call/v2|call|run)/(\w+)/?)")
RESULT = re.compile(rf"{API}/call/(?:v2/)?\w+/(\w+)")
SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
NO_SUCH_FUNCTION = "There is no such function here: see the API of the page."


@dataclass(frozen=True)
class RequestLimits:
    """
    Limits of request bodies.

    Args:
        upload_bytes: Size of an upload, including the headers of its parts.
        body_bytes: Size of any other body, which contains a few numbers and names.
        idle_seconds, body_seconds: Time between two chunks, and for a whole body.
        uploads, client_uploads: Number of simultaneous uploads, of all clients and of one.
    """

    upload_bytes: int = MAX_FILE_SIZE + 2**16
    body_bytes: int = 2**18
    idle_seconds: float = 10
    body_seconds: float = 120
    uploads: int = 64
    client_uploads: int = 24


class RequestError(Exception):
    """Refused request, with the status and the message of the response."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class LimitedBody:
    """`receive` function of a request whose body is limited in size and time."""

    POLL_SECONDS = 0.5

    def __init__(self, receive: Receive, max_bytes: int, limits: RequestLimits):
        self.receive, self.max_bytes, self.limits = receive, max_bytes, limits
        self.started = self.last_chunk = time.monotonic()
        self.size, self.complete, self.displaced = 0, False, False

    async def __call__(self) -> Message:
        while not self.complete:
            try:
                message = await asyncio.wait_for(self.receive(), self.POLL_SECONDS)
            except TimeoutError:
                self._check_time()
                continue
            if message["type"] == "http.disconnect":
                raise RequestError(400, "The connection was closed before the request was complete.")
            self.size += len(message.get("body", b""))
            self.check_size(self.size)
            self.last_chunk, self.complete = time.monotonic(), not message.get("more_body", False)
            self._check_time()
            return message
        return await self.receive()

    async def read(self) -> bytes:
        """Return the whole body."""
        chunks = []
        while not self.complete:
            chunks.append((await self()).get("body", b""))
        return b"".join(chunks)

    @property
    def idle_seconds(self) -> float:
        """Time since the last chunk."""
        return time.monotonic() - self.last_chunk

    def check_size(self, size: int) -> None:
        """Raise RequestError if `size` exceeds the limit."""
        if size > self.max_bytes:
            raise RequestError(413, f"A request must have at most {self.max_bytes:,} bytes, its maximum allowed size.")

    def _check_time(self) -> None:
        if self.displaced:
            raise RequestError(503, "The upload had stalled and has made room for others.")
        if self.idle_seconds > self.limits.idle_seconds:
            raise RequestError(408, f"The request had stalled for {self.limits.idle_seconds:g} seconds.")
        if not self.complete and time.monotonic() - self.started > self.limits.body_seconds:
            raise RequestError(408, f"The request took more than {self.limits.body_seconds:g} seconds to arrive.")


async def explain_validation_error(request, error: RequestValidationError) -> JSONResponse:
    """Respond to a body of the wrong shape with a sentence instead of FastAPI's list of objects."""
    return JSONResponse({"detail": "The request does not have the form that this address takes."}, 422)


class RequestGuard:
    """
    Refuse all requests that the demo's page and API do not need, and register uploads and readers.

    Args:
        app: Next ASGI application.
        blocks: The page.
        storage: Register of uploads.
        calls: Register of readers.
        limits: Limits of request bodies.
        description: OpenAPI description, which replaces that of Gradio.
    """

    def __init__(
        self,
        app: ASGIApp,
        blocks: gr.Blocks,
        storage: Storage,
        calls: Calls,
        limits: RequestLimits,
        description: dict,
    ):
        self.app, self.blocks, self.storage, self.calls, self.limits = app, blocks, storage, calls, limits
        self.description = description
        self.uploading: dict[LimitedBody, str] = {}
        self.rendering = asyncio.Semaphore(2)
        self.rendering_for: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._handle(scope, receive, watched_send)
        except Exception as error:
            if started:
                raise
            refusal = error if isinstance(error, RequestError) else RequestError(500, server_fault(error))
            if refusal.status == 403:
                response = PlainTextResponse(refusal.message, 403)
            else:
                response = JSONResponse({"detail": refusal.message}, refusal.status)
            await response(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
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

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, reader = scope["path"], None
        if path == f"{API}/openapi.json":
            await JSONResponse(self.description)(scope, receive, send)
            return
        if result := RESULT.fullmatch(path):
            reader = result[1]
            if not has_results(self.blocks, reader):
                raise RequestError(404, "There is no such call, or its result has been fetched or dropped.")
        elif path == f"{API}/queue/data":
            reader = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]
        with contextlib.nullcontext() if reader is None else self.calls.reading(reader):
            await (self._render if COSTLY.fullmatch(path) else self.app)(scope, receive, send)

    async def _render(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate one page at a time per client, and send it when it is complete, however slow the client is."""
        messages = []

        async def collect(message: Message) -> None:
            messages.append(message)

        lock = self.rendering_for.setdefault(_client(scope), asyncio.Lock())
        async with lock, self.rendering:
            await self.app(scope, receive, collect)
        for message in messages:
            await send(message)

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        is_upload = path == f"{API}/upload"
        body = LimitedBody(receive, self.limits.upload_bytes if is_upload else self.limits.body_bytes, self.limits)
        declared = dict(scope["headers"]).get(b"content-length", b"")
        size = int(declared[:20]) if declared.isdigit() else 0
        body.check_size(size)
        if is_upload:
            await self._upload(scope, body, size, send)
            return
        content = await body.read()
        if function := FUNCTION.fullmatch(path):
            content = strict_json(self._checked_call(function[1], function[2], content)).encode()
        messages = [{"type": "http.request", "body": content, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    async def _upload(self, scope: Scope, body: LimitedBody, size: int, send: Send) -> None:
        client = _client(scope)
        try:
            self.storage.check_room(client, size)
        except QuotaError as error:
            raise RequestError(429, str(error)) from None
        start, answer = None, b""

        async def receive() -> Message:
            try:
                return await body()
            except RequestError as error:
                # The form parser deletes its half-written files for this error only.
                raise MultiPartException(error.message) from None

        async def register(message: Message) -> None:
            nonlocal start, answer
            if message["type"] == "http.response.start" and message["status"] == 200:
                start = message  # is sent once the files are registered
            elif start is None:
                await send(message)
            else:
                answer += message.get("body", b"")
                if not message.get("more_body", False):
                    try:
                        self.storage.add_uploads(json.loads(answer), client)
                    except QuotaError as error:
                        raise RequestError(429, str(error)) from None
                    await send(start)
                    await send({"type": "http.response.body", "body": answer})

        with self._upload_slot(body, client):
            await self.app(scope, receive, register)

    @contextlib.contextmanager
    def _upload_slot(self, body: LimitedBody, client: str) -> Iterator[None]:
        """Hold a slot for an upload in the context. A stalled upload makes room for a new one."""
        for bodies, limit in (
            ([body for body, owner in self.uploading.items() if owner == client], self.limits.client_uploads),
            (list(self.uploading), self.limits.uploads),
        ):
            active = [body for body in bodies if not body.displaced]
            if len(active) >= limit:
                stalled = max(active, key=lambda body: body.idle_seconds)
                if stalled.idle_seconds < 1:
                    raise RequestError(429, f"At most {limit} uploads may run at once: try again soon.")
                stalled.displaced = True
        self.uploading[body] = client
        try:
            yield
        finally:
            del self.uploading[body]

    def _checked_call(self, route: str, name: str | None, content: bytes) -> dict:
        """Return the fields of a call that the demo uses. Raise RequestError if they are invalid."""
        try:
            call = json.loads(content)
        except (ValueError, RecursionError):
            raise RequestError(400, "A call must be JSON.") from None
        if not isinstance(call, dict):
            raise RequestError(422, "A call must be a JSON object.")
        is_plain = route.startswith("call")
        if is_plain and name not in {function.api_name for function in self.blocks.fns.values() if function.fn}:
            raise RequestError(404, NO_SUCH_FUNCTION)
        if route.startswith("call/v2"):
            return self._checked_parameters(name, call)
        if not isinstance(call.get("data"), list):
            raise RequestError(422, "A call must be a JSON object whose `data` is a list of values.")
        if is_plain:
            # Without a session hash, Gradio takes the event as the session, on which the result is read.
            return {"data": call["data"]}
        index, session = call.get("fn_index"), call.get("session_hash")
        is_index = isinstance(index, int) and not isinstance(index, bool) and index in self.blocks.fns
        if not is_index or self.blocks.fns[index].fn is None:
            raise RequestError(404, NO_SUCH_FUNCTION)
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise RequestError(422, "`session_hash` must have 1 to 64 letters, digits, hyphens and underscores.")
        checked = {"data": call["data"], "fn_index": index, "session_hash": session}
        if gr.SelectData in get_type_hints(self.blocks.fns[index].fn).values():
            checked["event_data"] = {"index": _checked_place(call.get("event_data")), "value": None}
        return checked

    def _checked_parameters(self, name: str, call: dict) -> dict:
        """Return a call with named values. Raise RequestError if the names are not those of the function."""
        endpoint = self.blocks.get_api_info()["named_endpoints"].get(f"/{name}")
        if endpoint is None:
            raise RequestError(404, NO_SUCH_FUNCTION)
        parameters = endpoint["parameters"]
        names = {parameter["parameter_name"] for parameter in parameters}
        required = {p["parameter_name"] for p in parameters if not p.get("parameter_has_default")}
        if not required <= call.keys() <= names:
            raise RequestError(
                422, f"`{name}` must get a JSON object with {', '.join(f'`{p}`' for p in sorted(names))}."
            )
        return call


def _checked_place(event: object) -> list[int]:
    """Return the place of a click on a picture. Raise RequestError if there is none."""
    place = event.get("index") if isinstance(event, dict) else None
    is_place = isinstance(place, list) and len(place) == 2
    # NaN is in no interval.
    if not is_place or not all(type(number) in (int, float) and -inf <= number <= inf for number in place):
        raise RequestError(422, "`event_data` must have the place of a click, two numbers, as its `index`.")
    return [int(min(max(number, 0), MAX_SIDE)) for number in place]


def _client(scope: Scope) -> str:
    return client_of(scope["client"] and scope["client"][0])
