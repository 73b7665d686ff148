# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Parts that the tabs share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import gradio as gr
import texts
from components import FileInput, ImageInput, file_input, image_input
from endpoints import Service
from jet_demo import FITS, Sampler
from storage import Storage

from jet_hf.utils.files import strict_json


@dataclass(frozen=True)
class Refresh:
    """
    Function of the model that runs whenever one of its inputs changes.

    Args:
        function: The function.
        inputs, outputs: Its components. The last output is a text.
        live: Inputs that move in small steps, such as sliders. Results stay until those of the next step arrive. A
            change of any other input removes them at once, because they are not of the new one.
        fit: See [`Service.endpoint`].
        options: Further keyword arguments of `gr.on`.
    """

    function: Callable
    inputs: Sequence[gr.components.Component]
    outputs: Sequence[gr.components.Component]
    live: Sequence[gr.components.Component] = ()
    fit: str = FITS[0]
    options: dict = field(default_factory=dict)

    @property
    def places(self) -> list[int]:
        """Positions of the inputs whose change removes the results."""
        return [place for place, component in enumerate(self.inputs) if component not in self.live]

    def empty(self, text: str) -> str:
        """Return a JavaScript array of empty outputs with a text."""
        return strict_json([None] * (len(self.outputs) - 1) + [text])


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

    def refreshes(self, *refreshes: Refresh) -> None:
        """
        Run functions of the model whenever their inputs change.

        Of one function, the newest request runs next, and those before it are dropped.
        """
        # Gradio finishes one listener of an event before it starts the next: all old results disappear first.
        for refresh in refreshes:
            changes = [refresh.inputs[place].change for place in refresh.places]
            gr.on(changes, None, outputs=refresh.outputs, js=f"() => {refresh.empty('')}", api_visibility="private")
        for refresh in refreshes:
            arguments = f"{strict_json(refresh.function.__name__)}, {refresh.places}, values"
            event = gr.on(
                [component.change for component in refresh.inputs],
                inputs=refresh.inputs,
                outputs=refresh.outputs,
                js=f"(...values) => jetResults.start({arguments})",
                trigger_mode="always_last",
                **refresh.options,
                **self.computes(refresh.function, fit=refresh.fit),
            )
            failed = f"() => {refresh.empty(texts.NO_RESULT)}"
            event.failure(None, outputs=refresh.outputs, js=failed, api_visibility="private")
            # The result of a running call may arrive after an input has changed.
            unchanged = strict_json([gr.skip()] * len(refresh.outputs))
            refresh.outputs[-1].change(
                None,
                refresh.inputs,
                refresh.outputs,
                js=f"(...values) => jetResults.isOld({arguments}) ? {refresh.empty('')} : {unchanged}",
                api_visibility="private",
            )

    def image_input(self, label: str, **options) -> ImageInput:
        """Create an image input that accepts this server's uploads."""
        return image_input(label, self.storage, **options)

    def file_input(self, label: str, **options) -> FileInput:
        """Create a file input that accepts this server's uploads."""
        return file_input(label, self.storage, **options)

    def example_images(self, target: ImageInput, label: str = "Or one of these") -> None:
        """Add buttons that copy an example image to `target`."""
        gr.Examples(self.examples, target, label=label, cache_examples=False, api_visibility="private")
