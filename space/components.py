# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Gradio's components and server, with nothing done to what visitors send before our own checks have seen it."""

import functools
import inspect
import logging
import uuid

import gradio as gr
from fastapi import HTTPException
from fastapi.responses import PlainTextResponse
from uploads import MAX_FILE_SIZE


logger = logging.getLogger(__name__)

# Beside the file itself, an upload has headers of its parts; every other request is a few numbers and names.
MAX_UPLOAD_BODY = MAX_FILE_SIZE + 2**16
MAX_BODY = 2**18


class ImageInput(gr.Image):
    """A picture that arrives as the path of the file that was sent, not decoded."""

    is_template = True

    def preprocess(self, payload) -> str | None:
        if payload is not None and (payload.path is None or (payload.url or "").startswith("data:")):
            raise gr.Error("a picture must be uploaded as a file.", print_exception=False)
        return None if payload is None else payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path):
        if str(url_or_file_path).startswith(("http:", "https:")):
            raise gr.Error("addresses are not fetched: send the picture itself.", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)


class NumberInput(gr.Slider):
    """A slider whose value arrives as it was sent: a call over the API may hold anything."""

    is_template = True

    def preprocess(self, payload):
        return payload


class ChoiceInput(gr.Radio):
    """Likewise, one of a few words."""

    is_template = True

    def preprocess(self, payload):
        return payload


def image_input(label: str, **options) -> ImageInput:
    """A place to upload, paste or drop a picture."""
    return ImageInput(label=label, type="filepath", sources=["upload", "clipboard"], buttons=[], **options)


def png_image(label: str, **options) -> gr.Image:
    """A picture that leaves the server without loss; each of its pixels is shown as a square."""
    defaults = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"], "alt_text": label}
    classes = ["pixelated"] if options.get("show_label", True) else ["pixelated", "unlabelled"]
    return gr.Image(label=label, elem_classes=classes, **(defaults | options))


def png_gallery(label: str, **options) -> gr.Gallery:
    """Pictures that leave the server without loss; each of their pixels is shown as a square."""
    defaults = {"format": "png", "interactive": False, "object_fit": "contain"}
    defaults["buttons"] = ["download", "download_all", "fullscreen"]
    return gr.Gallery(label=label, elem_classes=["pixelated"], **(defaults | options))


def answers_errors(function):
    """
    Makes a message for the visitor of what `function` raises: a ValueError explains itself, anything else is our
    fault, of which the log has the whole and the visitor a number to name.
    """

    def to_error(error: Exception) -> gr.Error:
        if isinstance(error, ValueError):
            return gr.Error(str(error), print_exception=False)
        ticket = uuid.uuid4().hex[:8]
        logger.error("error %s", ticket, exc_info=error)
        return gr.Error(f"something went wrong here, not with you (error {ticket}).", print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def guarded(*args, **kwargs):
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise to_error(error) from None

    else:

        @functools.wraps(function)
        def guarded(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                raise to_error(error) from None

    return guarded


class RequestGuard:
    """ASGI middleware: bounds the size of requests, and keeps the server from fetching addresses for its visitors."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])
        if "/file=http" in path or "/proxy=" in path:
            await PlainTextResponse("Addresses are not fetched.", 403)(scope, receive, send)
            return
        limit = MAX_UPLOAD_BODY if path.endswith("/upload") else MAX_BODY
        too_large = f"A request here must have at most {limit:,} bytes."
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            await PlainTextResponse(too_large, 413)(scope, receive, send)
            return
        received = 0

        async def bounded_receive():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, too_large)
            return message

        await self.app(scope, bounded_receive, send)
