# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Code that relies on undocumented parts of Gradio.

`tests/test_space_server.py` and `tests/test_space_queues.py` fail if another version of Gradio changes these parts.
"""

import inspect
import logging
import uuid
from collections.abc import Callable, Collection

import gradio as gr
from components import check_input
from fairness import Calls
from storage import Storage


logger = logging.getLogger(__name__)


def server_fault(error: Exception) -> str:
    """Log an internal error with a number, and return a message that contains only this number."""
    ticket = uuid.uuid4().hex[:8]
    logger.error("error %s", ticket, exc_info=error)
    return f"Something went wrong on the server (error {ticket}). It is not your fault."


def visitor_error(error: Exception) -> gr.Error:
    """Return an error for the visitor. The demo's ValueErrors explain themselves."""
    message = str(error) if isinstance(error, ValueError) else server_fault(error)
    return gr.Error(message, print_exception=False)


def default_values(function: Callable) -> list:
    """Return the default values of the last parameters of a function, without those that Gradio fills itself."""
    values = [parameter.default for parameter in inspect.signature(function).parameters.values()]
    return [value for value in values if value is not inspect.Parameter.empty and not isinstance(value, gr.Progress)]


class GuardedBlocks(gr.Blocks):
    """
    Page that checks every input first.

    All routes to a function (the queue, `call`, `run` and `api`) lead through these two methods. Gradio resolves files
    and addresses in the values only in the base class's `preprocess_data`.
    """

    storage: Storage
    calls: Calls

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        """Check the inputs of a function before Gradio processes them."""
        names = ", ".join(f"`{component.label}`" for component in block_fn.inputs)
        most, defaults = len(block_fn.inputs), default_values(block_fn.fn)
        least = most - len(defaults)
        try:
            if not least <= len(inputs) <= most:
                count = most if least == most else f"{least} to {most}"
                raise ValueError(f"`{block_fn.api_name}` must get {count} values ({names}), got {len(inputs)}.")
            inputs = [*inputs, *defaults[len(inputs) - least :]]
            inputs = [check_input(*slot) for slot in zip(block_fn.inputs, inputs, strict=True)]
        except Exception as error:
            raise visitor_error(error) from None
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)

    async def process_api(self, *args, **kwargs):
        """Call a function, and hide the messages of Gradio and its libraries, which contain paths and code."""
        try:
            return await super().process_api(*args, **kwargs)
        except Exception as error:
            if type(error) is gr.Error:
                raise
            raise gr.Error(server_fault(error), print_exception=False) from None


def remember_configurations(blocks: gr.Blocks) -> None:
    """Compute the configuration of each component once, which Gradio would do for each session: for each API call."""
    for component in blocks.blocks.values():
        component.get_config = component.get_config().copy


def forget_files(blocks: gr.Blocks, paths: Collection[str]) -> None:
    """Remove deleted files from Gradio's lists, which otherwise grow as long as the server runs."""
    for known in blocks.temp_file_sets:
        known.difference_update(paths)


def has_results(blocks: gr.Blocks, session: str) -> bool:
    """Return whether a session has results or pending calls."""
    return session in blocks._queue.pending_messages_per_session


def forget_unread(blocks: gr.Blocks, readers: Collection[str], unread_before: set[str]) -> set[str]:
    """
    Drop results, which Gradio would keep, if they already had no reader at the previous call of this function.

    Args:
        blocks: The page.
        readers: Sessions that have a reader or waiting calls.
        unread_before: Return value of the previous call.

    Returns:
        Sessions whose results have no reader.
    """
    queue = blocks._queue
    unread = set(queue.pending_event_ids_session) - set(readers)
    for session in unread & unread_before:
        for event in queue.pending_event_ids_session.pop(session, ()):
            queue.event_ids_to_events.pop(event, None)
        queue.pending_messages_per_session.pop(session, None)
    return unread - unread_before
