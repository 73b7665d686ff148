# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The places where the demo relies on more of Gradio than its documentation promises. `tests/test_space_guard.py` fails
where another version of Gradio goes past them.
"""

import logging
import uuid
from collections.abc import Collection

import gradio as gr
from components import check_input


logger = logging.getLogger(__name__)


def server_fault(error: Exception) -> gr.Error:
    """Log a fault of the server under a number, and return a message that names nothing but the number."""
    ticket = uuid.uuid4().hex[:8]
    logger.error("error %s", ticket, exc_info=error)
    return gr.Error(f"Something went wrong here, not with you (error {ticket}).", print_exception=False)


def visitor_error(error: Exception) -> gr.Error:
    """Return a message for the visitor: a ValueError of the demo explains itself."""
    return gr.Error(str(error), print_exception=False) if isinstance(error, ValueError) else server_fault(error)


class GuardedBlocks(gr.Blocks):
    """
    A page whose every input is checked first. All routes to a function (the queue, `call`, `run` and `api`) lead
    through these two methods, and Gradio resolves files and addresses in the values after the first.
    """

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        names = ", ".join(f"`{component.label}`" for component in block_fn.inputs)
        try:
            if len(inputs) != len(block_fn.inputs):
                raise ValueError(
                    f"`{block_fn.api_name}` must get {len(block_fn.inputs)} values ({names}), got {len(inputs)}."
                )
            inputs = [check_input(*slot) for slot in zip(block_fn.inputs, inputs, strict=True)]
        except Exception as error:
            raise visitor_error(error) from None
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)

    async def process_api(self, *args, **kwargs):
        try:
            return await super().process_api(*args, **kwargs)
        except Exception as error:
            if type(error) is gr.Error:
                raise
            raise server_fault(error) from None  # messages of Gradio and its libraries hold paths and code


def forget_files(blocks: gr.Blocks, paths: Collection[str]) -> None:
    """Remove deleted files from Gradio's lists, which otherwise grow for as long as the server runs."""
    for known in blocks.temp_file_sets:
        known.difference_update(paths)


def has_results(blocks: gr.Blocks, session: str) -> bool:
    """Return whether a session has results, or calls that will give some."""
    return session in blocks._queue.pending_messages_per_session


def forget_unread(blocks: gr.Blocks, readers: Collection[str], unread_before: set[str]) -> set[str]:
    """
    Drop the results of sessions that nobody has read from since `unread_before` was returned, which Gradio keeps.

    Args:
        readers: Sessions that are read from now, or have calls in line.
        unread_before: The value that the previous call returned.

    Returns:
        Sessions with results that nobody reads now.
    """
    queue = blocks._queue
    unread = set(queue.pending_event_ids_session) - set(readers)
    for session in unread & unread_before:
        for event in queue.pending_event_ids_session.pop(session, ()):
            queue.event_ids_to_events.pop(event, None)
        queue.pending_messages_per_session.pop(session, None)
    return unread - unread_before
