# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Functions as Gradio calls them: let in, their pictures decoded, and run on the model, each when its turn comes."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import gradio as gr
from components import SentPicture
from fairness import Call, CallLimits, Calls, FairLine, client_of
from gradio_internals import visitor_error
from jet_demo import FITS, JetDemo
from zero_gpu import borrows_gpu


# Pictures decoded at once, of one client all but one, so that slow pictures hold up their sender alone.
DECODERS = 3


@dataclass(frozen=True)
class Service:
    """
    The model and the two lines before it.

    Args:
        demo: The model.
        calls: All calls that wait or run.
        decoding: Line before the decoders.
        computing: Line before the model, which computes one call at a time.
        tasks: Calls at work.
    """

    demo: JetDemo
    calls: Calls
    decoding: FairLine
    computing: FairLine
    tasks: set[asyncio.Task] = field(default_factory=set)

    @classmethod
    def of(cls, demo: JetDemo, limits: CallLimits) -> "Service":
        calls = Calls(limits)
        return cls(demo, calls, FairLine(calls, DECODERS, DECODERS - 1), FairLine(calls, 1, 1))

    def endpoint(self, function: Callable) -> Callable:
        """Return an asynchronous function for Gradio; `SentPicture`s reach `function` fitted to the model's size."""
        signature = inspect.signature(function)
        computed = borrows_gpu(function)

        if inspect.isgeneratorfunction(function):

            async def call(*arguments):
                async for item in self._stream(computed, signature, arguments):
                    yield item

        else:

            async def call(*arguments):
                result = None
                async for item in self._stream(lambda *prepared: [computed(*prepared)], signature, arguments):
                    result = item
                return result

        # Gradio reads names and defaults from the signature, and gives the request to a parameter of this type.
        request = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
        parameters = list(signature.parameters.values())
        first_default = next((i for i, p in enumerate(parameters) if p.default is not p.empty), len(parameters))
        parameters.insert(first_default, request)
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__signature__ = signature.replace(parameters=parameters)
        call.__annotations__ = {"request": gr.Request}
        return call

    async def _stream(self, computed: Callable, signature: inspect.Signature, arguments: tuple) -> AsyncIterator:
        """
        Yield the items that `computed` gives. It runs in a task of its own, which Gradio does not cancel: the model is
        held for as long as the computation takes, no shorter and no longer, whoever takes the items.
        """
        items, end, stopped = asyncio.Queue(), object(), threading.Event()
        loop = asyncio.get_running_loop()

        def produce(prepared: list) -> None:
            for item in computed(*prepared):
                loop.call_soon_threadsafe(items.put_nowait, item)
                if stopped.is_set():
                    return

        async def run() -> None:
            try:
                async with self._turn(signature, arguments, stopped) as prepared:
                    await anyio.to_thread.run_sync(produce, prepared)
            except Exception as error:
                items.put_nowait(visitor_error(error))
            finally:
                items.put_nowait(end)

        task = asyncio.create_task(run())
        self.tasks.add(task)  # the event loop itself holds no reference
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
        self, signature: inspect.Signature, arguments: tuple, stopped: threading.Event
    ) -> AsyncIterator[list]:
        """Let a call in, decode its pictures, and hold the model; give the arguments of the function."""
        request = next(argument for argument in arguments if isinstance(argument, gr.Request))
        progress = next((argument for argument in arguments if isinstance(argument, gr.Progress)), None)
        arguments = [argument for argument in arguments if argument is not request]

        def show_place(others: int) -> None:
            if progress is not None:
                progress(0, desc=f"{others} other calls wait" if others else "next in line")

        # Calls over plain HTTP have no session of their own.
        session = "" if "/call/" in request.url.path else request.session_hash
        client = client_of(request.client and request.client.host)
        with self.calls.admit(client, session, request.session_hash, stopped) as call:
            fit = signature.bind(*arguments).arguments.get("fit", FITS[0])
            prepared = [await self._prepared(argument, fit, call) for argument in arguments]
            async with self.computing.turn(call, show_place):
                yield prepared

    async def _prepared(self, argument, fit: str, call: Call):
        """Return an argument of a call, a picture decoded and fitted to the model's size."""
        if not isinstance(argument, SentPicture):
            return argument
        if argument.path is None:
            return None
        async with self.decoding.turn(call):
            return await anyio.to_thread.run_sync(self.demo.prepare, argument.path, fit, argument.name)
