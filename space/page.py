# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Parts that the tabs share."""

from collections.abc import Callable, Sequence

import gradio as gr
import texts
from components import FileInput, ImageInput, file_input, image_input
from endpoints import Service
from jet_demo import FITS, Sampler
from storage import Storage

from jet_hf.utils.files import strict_json


class Page:
    """
    Parts that all tabs share. Each tab adds itself to the current Gradio context, see the modules `tab_*.py`.

    Args:
        blocks: The page's Gradio context.
        service: The model and its queues.
        storage: Register of uploads.
        examples: Paths of the example images.
        samplers: Models that draw samples, by their titles.
    """

    def __init__(
        self,
        blocks: gr.Blocks,
        service: Service,
        storage: Storage,
        examples: list[str],
        samplers: dict[str, Sampler],
    ):
        self.blocks = blocks
        self.service, self.demo, self.storage, self.examples = service, service.demo, storage, examples
        self.samplers = samplers

    def computes(self, function: Callable, api_name: str | None = None, fit: str = FITS[0]) -> dict:
        """Return the options of an event that runs the model. Without `api_name` the event is private to the page."""
        return {
            "fn": self.service.endpoint(function, fit),
            "concurrency_limit": None,
            "api_name": api_name or f"page_{function.__name__}",
            "api_visibility": "public" if api_name else "private",
        }

    def refreshes(
        self,
        triggers: Sequence,
        function: Callable,
        inputs: Sequence,
        outputs: Sequence,
        replaced: Sequence = (),
        fit: str = FITS[0],
        **options,
    ) -> None:
        """
        Run the model whenever a trigger fires. The newest request runs next, and those before it are dropped.

        Args:
            triggers: Events.
            function: Function that runs the model.
            inputs, outputs: Its components. The last output is a text.
            replaced: Events, among the triggers, that make old results wrong: these disappear at once.
            fit: See [`Service.endpoint`].
            options: Further keyword arguments of `gr.on`.
        """
        empty = {text: f"() => [{'null, ' * (len(outputs) - 1)}{strict_json(text)}]" for text in ("", texts.NO_RESULT)}
        if replaced:
            gr.on(replaced, None, outputs=outputs, js=empty[""], api_visibility="private")
        event = gr.on(
            [*triggers, *replaced],
            inputs=inputs,
            outputs=outputs,
            trigger_mode="always_last",
            **options,
            **self.computes(function, fit=fit),
        )
        event.failure(None, outputs=outputs, js=empty[texts.NO_RESULT], api_visibility="private")

    def image_input(self, label: str, **options) -> ImageInput:
        """Create an image input that accepts this server's uploads."""
        return image_input(label, self.storage, **options)

    def file_input(self, label: str, **options) -> FileInput:
        """Create a file input that accepts this server's uploads."""
        return file_input(label, self.storage, **options)

    def example_images(self, target: ImageInput, label: str = "Or one of these") -> None:
        """Add buttons that copy an example image to `target`."""
        gr.Examples(self.examples, target, label=label, cache_examples=False, api_visibility="private")
