# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Gradio's components as the demo uses them. Inputs check what visitors send, in the words of their own labels."""

from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from checks import check_choice, check_number, check_whole
from storage import Storage
from uploads import UnreadableImageError, missing, not_an_upload


@dataclass(frozen=True)
class SentPicture:
    """
    A picture that a visitor sent, not yet opened.

    Args:
        path: Its file among the uploads; None if there is none.
        name: What the visitor calls it.
    """

    path: str | None
    name: str


class CheckedInput:
    """
    An input whose value stays as it was sent until `check` has seen it: a call over the API may hold anything.

    `gradio_internals.GuardedBlocks` calls `check` before Gradio does anything with the value.
    """

    def check(self, value):
        """Return the value as the component takes it; raise ValueError, naming the label, for any other."""
        raise NotImplementedError


def as_sent(self, payload):
    """Return a checked value as it is, in place of the conversion of Gradio's component."""
    return payload


class ImageInput(gr.Image, CheckedInput):
    """A place for a picture; `image_input` makes it."""

    is_template = True

    # Attributes, not parameters: Gradio sends the parameters of components to the page.
    storage: Storage
    optional: bool

    def check(self, value) -> dict | None:
        if value is None:
            if self.optional:
                return None
            raise UnreadableImageError(missing(self.label))
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(path, str) or not self.storage.holds(path):
            raise UnreadableImageError(not_an_upload(self.label))
        # No other field of what was sent has a meaning here, an address in particular.
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def preprocess(self, payload) -> SentPicture:
        return SentPicture(None if payload is None else payload.path, self.label)


class NumberInput(gr.Slider, CheckedInput):
    """A number on a slider."""

    is_template = True
    preprocess = as_sent

    def check(self, value) -> float | int:
        check = check_whole if self.precision == 0 else check_number
        return check(self.label, value, self.minimum, self.maximum)


class NumberField(gr.Number, CheckedInput):
    """A number in a field."""

    is_template = True
    preprocess = as_sent
    check = NumberInput.check


class ChoiceInput(gr.Radio, CheckedInput):
    """One of a few words."""

    is_template = True
    preprocess = as_sent

    def check(self, value) -> str | int:
        return check_choice(self.label, value, [choice for _, choice in self.choices])


class ChoiceMenu(gr.Dropdown, CheckedInput):
    """One of many words."""

    is_template = True
    preprocess = as_sent
    check = ChoiceInput.check


def check_input(component: gr.blocks.Block, value):
    """Return a value of a component's slot, checked. Raises ValueError for any that the component does not take."""
    if isinstance(component, CheckedInput):
        return component.check(value)
    if isinstance(component, gr.Dataset):
        return check_whole("example", value, 0, len(component.raw_samples) - 1)
    raise ValueError(f"`{component.label}` takes no values.")


def image_input(label: str, storage: Storage, optional: bool = False, **options) -> ImageInput:
    """
    Return a place to upload, paste or drop a picture.

    Args:
        label: Label on the page, or name in the API.
        storage: Register of the uploads.
        optional: Whether the function also works without the picture.
        options: Those of `gr.Image`.
    """
    component = ImageInput(label=label, type="filepath", sources=["upload", "clipboard"], buttons=[], **options)
    component.storage, component.optional = storage, optional
    return component


def png_image(label: str, **options) -> gr.Image:
    """Return a picture that leaves the server without loss; each of its pixels is shown as a square."""
    defaults = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"], "alt_text": label}
    classes = ["pixelated"] if options.get("show_label", True) else ["pixelated", "unlabelled"]
    return gr.Image(label=label, elem_classes=classes, **(defaults | options))


def png_gallery(label: str, **options) -> gr.Gallery:
    """Return pictures that leave the server without loss; each of their pixels is shown as a square."""
    defaults = {"format": "png", "interactive": False, "object_fit": "contain"}
    defaults["buttons"] = ["download", "download_all", "fullscreen"]
    return gr.Gallery(label=label, elem_classes=["pixelated"], **(defaults | options))


def share_examples(storage: Storage, sources: list[Path]) -> list[str]:
    """Copy the example pictures to where visitors may use them; return their paths."""
    paths = storage.add_lasting(sources, "examples")
    gr.set_static_paths([str(storage.folder / "examples")])
    return paths
