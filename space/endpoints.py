# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Gradio's side of the demo's functions: calls are admitted, their images are decoded, and they take turns."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import anyio
import gradio as gr
from components import SentFile, SentImage
from fairness import Call, CallLimits, Calls, FairQueue, client_of
from gradio_internals import visitor_error
from jet_demo import FITS, JetDemo
from uploads import read_bytes
from zero_gpu import borrows_gpu


# Number of images decoded at once. One client may take all but one, so that slow images delay only their sender.
DECODERS = 3


class Service:
    """
    Model with a queue for the decoders and a queue for the computation.

    Args:
        demo: The model.
        limits: Limits of the calls.
    """

    def __init__(self, demo: JetDemo, limits: CallLimits):
        self.demo, self.calls = demo, Calls(limits)
        self.decoding = FairQueue(self.calls, slots=DECODERS, per_client=DECODERS - 1)
        self.computing = FairQueue(self.calls, slots=1, per_client=1)
        self.tasks: set[asyncio.Task] = set()  # the event loop itself holds no reference

    def endpoint(self, function: Callable, fit: str = FITS[0]) -> Callable:
        """
        Return an asynchronous function for Gradio.

        Args:
            function: Function that receives images at the model's size, and files as bytes.
            fit: How images get there, unless the function has an argument `fit`.
        """
        signature = inspect.signature(function)
        computed = borrows_gpu(function)

        if inspect.isgeneratorfunction(function):

            async def call(*arguments):
                async for item in self._stream(computed, signature, arguments, fit):
                    yield item

        else:

            async def call(*arguments):
                (result,) = [item async for item in self._stream(lambda *a: [computed(*a)], signature, arguments, fit)]
                return result

        # Gradio reads names and defaults from the signature, and passes the request to a parameter of this type.
        request = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
        parameters = list(signature.parameters.values())
        first_default = next((i for i, p in enumerate(parameters) if p.default is not p.empty), len(parameters))
        parameters.insert(first_default, request)
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__signature__ = signature.replace(parameters=parameters)
        call.__annotations__ = {"request": gr.Request}
        return call

    async def _stream(
        self, computed: Callable[..., Iterable], signature: inspect.Signature, arguments: tuple, fit: str
    ) -> AsyncIterator:
        """
        Yield the items of `computed`.

        It runs in a separate task, which Gradio does not cancel, so that a call holds the model exactly as long as the
        computation takes.
        """
        items: asyncio.Queue = asyncio.Queue()
        end, stopped, loop = object(), threading.Event(), asyncio.get_running_loop()

        def produce(prepared: list) -> None:
            for item in computed(*prepared):
                loop.call_soon_threadsafe(items.put_nowait, item)
                if stopped.is_set():
                    return

        async def run() -> None:
            try:
                async with self._turn(signature, arguments, fit, stopped) as prepared:
                    await anyio.to_thread.run_sync(produce, prepared)
            except Exception as error:
                items.put_nowait(visitor_error(error))
            finally:
                items.put_nowait(end)

        task = asyncio.create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:
            while (item := await items.get()) is not end:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stopped.set()

    @asynccontextmanager
    async def _turn(
        self, signature: inspect.Signature, arguments: tuple, fit: str, stopped: threading.Event
    ) -> AsyncIterator[list]:
        """Admit a call, decode its images, hold the model in the context, and return the function's arguments."""
        request = next(argument for argument in arguments if isinstance(argument, gr.Request))
        progress = next((argument for argument in arguments if isinstance(argument, gr.Progress)), None)
        values = [argument for argument in arguments if argument is not request]

        def show_place(others: int) -> None:
            if progress is not None:
                progress(0, desc=f"{others} other calls are waiting" if others else "next in line")

        # Plain HTTP calls of a client share one session.
        session = "" if "/call/" in request.url.path else request.session_hash
        client = client_of(request.client and request.client.host)
        with self.calls.admit(client, session, request.session_hash, stopped) as call:
            fit = signature.bind(*values).arguments.get("fit", fit)
            prepared = [await self._prepare(value, fit, call) for value in values]
            async with self.computing.turn(call, show_place):
                yield prepared

    async def _prepare(self, value, fit: str, call: Call):
        """Return an argument of the function. Images are decoded and fitted; files are read."""
        if isinstance(value, SentFile):
            return await anyio.to_thread.run_sync(read_bytes, value.path, value.name)
        if not isinstance(value, SentImage):
            return value
        if value.path is None:
            return None
        async with self.decoding.turn(call):
            return await anyio.to_thread.run_sync(self.demo.load, value.path, fit, value.name)
