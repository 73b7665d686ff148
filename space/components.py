# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Gradio components of the demo. Inputs check their values, and their error messages name their labels."""

from typing import NamedTuple

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from jet_demo import ALL_CLASSES, MAX_CLASS
from PIL import Image
from storage import Storage
from uploads import UnreadableImageError, missing, not_an_upload


MAX_SHOWN = 60


class SentImage(NamedTuple):
    """Path of an unopened image among the uploads, or `None` if it is missing, and its name in messages."""

    path: str | None
    name: str


class SentFile(NamedTuple):
    """Path of an unopened file among the uploads, and its name in messages."""

    path: str
    name: str


class CheckedInput:
    """
    Input that checks raw values, because a call of the API may contain anything.

    `gradio_internals.GuardedBlocks` calls `check` before Gradio processes the value.
    """

    is_template = True  # the page renders the Gradio component that is the first base class

    def check(self, value):
        """Return the value in the component's form. Raise ValueError, naming the label, if it is invalid."""
        raise NotImplementedError

    def preprocess(self, payload):
        """Return the checked value unchanged, instead of Gradio's conversion."""
        return payload


class ImageInput(gr.Image, CheckedInput):
    """Image input that accepts uploads. Its `storage` and `optional` must be set: see `image_input`."""

    storage: Storage
    optional: bool

    def check(self, value) -> dict | None:
        if value is None:
            if self.optional:
                return None
            raise UnreadableImageError(missing(self.label))
        return checked_upload(self, value)

    def preprocess(self, payload) -> SentImage:
        return SentImage(None if payload is None else payload.path, self.label)


class NumberInput(gr.Slider, CheckedInput):
    """Number on a slider."""

    preprocess = CheckedInput.preprocess

    def check(self, value) -> float | int:
        return check_number(self.label, value, self.minimum, self.maximum, whole=self.precision == 0)


class NumberField(gr.Number, CheckedInput):
    """Number in a text field, which is `None` while a visitor types."""

    preprocess = CheckedInput.preprocess

    def check(self, value) -> float | int | None:
        return None if value is None else NumberInput.check(self, value)


class ChoiceInput(gr.Radio, CheckedInput):
    """Choice between radio buttons."""

    preprocess = CheckedInput.preprocess

    def check(self, value) -> str | int:
        choices = [choice for _, choice in self.choices]
        if isinstance(value, str | int | float) and not isinstance(value, bool) and value in choices:
            return choices[choices.index(value)]
        raise ValueError(f"`{self.label}` must be one of {', '.join(map(str, choices))}, got {shown(value)}.")


class ChoiceMenu(gr.Dropdown, CheckedInput):
    """Choice in a drop-down menu."""

    preprocess = CheckedInput.preprocess
    check = ChoiceInput.check


class ClassMenu(gr.Dropdown, CheckedInput):
    """Class in a drop-down menu, which depends on the model: the model refuses classes that it does not have."""

    preprocess = CheckedInput.preprocess

    def check(self, value) -> int:
        return check_number(self.label, value, ALL_CLASSES, MAX_CLASS, whole=True)


class FileInput(gr.File, CheckedInput):
    """Input of a file that is not an image. Its `storage` and `optional` must be set: see `file_input`."""

    storage: Storage
    optional: bool

    def check(self, value) -> dict | None:
        return None if value is None and self.optional else checked_upload(self, value)

    def preprocess(self, payload) -> SentFile | None:
        return None if payload is None else SentFile(payload.path, self.label)


class Named(NamedTuple):
    """Image, and the name that it has when a visitor downloads it."""

    content: Image.Image
    name: str


class ImageOutput(gr.Image):
    """Lossless image output, which also takes a `Named` image."""

    is_template = True

    def postprocess(self, value):
        if isinstance(value, Named):
            # The name of the file is the name of the download.
            stem, _, extension = value.name.rpartition(".")
            value = save_pil_to_cache(value.content, self.GRADIO_CACHE, stem, extension)
        return super().postprocess(value)


def check_input(component: gr.blocks.Block, value):
    """Return the checked value of an input. Raise ValueError if it is invalid, or the component takes no values."""
    if isinstance(component, CheckedInput):
        return component.check(value)
    if isinstance(component, gr.Dataset):
        return check_number("example", value, 0, len(component.raw_samples) - 1, whole=True)
    raise ValueError(f"`{component.label}` takes no values.")


def checked_upload(component: "ImageInput | FileInput", value) -> dict:
    """Return the path of an upload. Raise UnreadableImageError for anything else."""
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not component.storage.holds(path):
        raise UnreadableImageError(not_an_upload(component.label))
    # All other fields are ignored, in particular addresses.
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def check_number(name: str, value, low: float, high: float, whole: bool) -> float | int:
    """
    Return `value`. Raise ValueError unless it is a number, or a whole number, from `low` to `high`.

    4.0 is accepted as 4, because JSON does not distinguish them.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not is_number or (whole and value != int(value)):
        kind = "whole number" if whole else "number"
        raise ValueError(f"`{name}` must be a {kind} from {low} to {high}, got {shown(value)}.")
    return int(value) if whole else float(value)


def shown(value) -> str:
    """Return a short description of any value, for error messages."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "a list"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def image_input(label: str, storage: Storage, optional: bool = False, **options) -> ImageInput:
    """Create an image input that accepts the uploads of `storage`. `options` are keyword arguments of `gr.Image`."""
    component = ImageInput(label=label, type="filepath", sources=["upload", "clipboard"], buttons=[], **options)
    # Gradio sends the parameters of components to the page. These are attributes instead.
    component.storage, component.optional = storage, optional
    return component


def file_input(label: str, storage: Storage, optional: bool = False, **options) -> FileInput:
    """Create a file input that accepts the uploads of `storage`. `options` are keyword arguments of `gr.File`."""
    component = FileInput(label=label, type="filepath", **options)
    component.storage, component.optional = storage, optional
    return component


def png_image(label: str, chart: bool = False, **options) -> ImageOutput:
    """Create a lossless image output, which shows each pixel as a square unless it shows a `chart`."""
    defaults = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"], "alt_text": label}
    classes = ["chart" if chart else "pixelated", *([] if options.get("show_label", True) else ["unlabeled"])]
    return ImageOutput(label=label, elem_classes=classes, **(defaults | options))


def png_gallery(label: str, **options) -> gr.Gallery:
    """Create a lossless gallery output that shows each pixel as a square."""
    defaults = {"format": "png", "interactive": False, "object_fit": "contain"}
    defaults["buttons"] = ["download", "download_all", "fullscreen"]
    return gr.Gallery(label=label, elem_classes=["pixelated"], **(defaults | options))
