# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Frame of the page, and the functions of the API."""

import json
from collections.abc import Callable, Sequence

import gradio as gr
import jet_demo
import texts
from charts import heat_maps
from components import ChoiceInput, FileInput, ImageInput, NumberInput, file_input, image_input, png_gallery, png_image
from endpoints import Service
from jet_demo import ALL_CLASSES, FITS, MAX_CLASS, MAX_SEED, WHOLE, JetDemo, Sampler
from storage import Storage


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
        empty = {text: f"() => [{'null, ' * (len(outputs) - 1)}{json.dumps(text)}]" for text in ("", texts.NO_RESULT)}
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


def add_api(page: Page) -> None:
    """Add the public functions, whose names and parameters README.md documents and must not change."""
    demo: JetDemo = page.demo
    names = list(page.samplers)

    def sample(num_images, temperature, seed, label=ALL_CLASSES, model=demo.title):
        """
        Draw images.

        num_images: 1 to 36; temperature: 0 to 2; seed: 0 to 2 ** 32 - 1; label, of models with classes only: the
        class, or -1 for all in turn; model: the title of one of the models on the page.
        """
        return page.samplers[model].sample(num_images, temperature, seed, label)

    def score(image, num_noise_draws, fit):
        """Score an image in bits per dimension. num_noise_draws: 1 to 32; fit: "resize" or "crop"."""
        result = demo.score(image, num_noise_draws)
        return result.to_dict(), heat_maps(list(result.maps.values()), list(result.maps))

    def reconstruct(image, fit):
        """Encode an image and decode it again. fit: "resize" or "crop"."""
        _, _, decoded, measured = demo.reconstruct(image)
        return decoded, measured

    def interpolate(image_a, image_b, steps):
        """Interpolate between two images in the latent space. steps: 2 to 16 images, including both ends."""
        return demo.interpolate(image_a, image_b, steps)

    def compress(image):
        """Compress a picture without loss. Pictures of more than 256 pixels a side are averaged down first."""
        result = demo.compress(image)
        return page.storage.add_result(result.data, "picture.jet"), result.to_dict()

    def decompress(file):
        """Decompress a file of `compress`."""
        return demo.decompress(file)

    image, image_a, image_b = map(page.image_input, ("image", "image_a", "image_b"))
    fit = ChoiceInput(list(FITS), value=FITS[0], label="fit")
    num_images = NumberInput(1, jet_demo.MAX_IMAGES, 4, step=1, precision=0, label="num_images")
    temperature = NumberInput(0, jet_demo.MAX_TEMPERATURE, 1, label="temperature")
    seed = NumberInput(0, MAX_SEED, 0, step=1, precision=0, label="seed")
    label = NumberInput(ALL_CLASSES, MAX_CLASS, ALL_CLASSES, step=1, precision=0, label="label")
    model = ChoiceInput(names, value=demo.title, label="model")
    draws = NumberInput(1, jet_demo.MAX_NOISE_DRAWS, 8, step=1, precision=0, label="num_noise_draws")
    steps = NumberInput(2, jet_demo.MAX_STEPS, 8, step=1, precision=0, label="steps")
    picture, gallery, answer = png_image("picture"), png_gallery("images"), gr.JSON(label="result")
    functions = [
        (sample, [num_images, temperature, seed, label, model], gallery, FITS[0]),
        (score, [image, draws, fit], [answer, picture], FITS[0]),
        (reconstruct, [image, fit], [picture, answer], FITS[0]),
        (interpolate, [image_a, image_b, steps], gallery, FITS[0]),
    ]
    if demo.codec is not None:
        file, packed = page.file_input("file", required=True), gr.File(label="packed")
        functions += [
            (compress, [image], [packed, answer], WHOLE),
            (decompress, [file], [picture, answer], FITS[0]),
        ]
    for function, inputs, outputs, how in functions:
        gr.Button().click(inputs=inputs, outputs=outputs, **page.computes(function, function.__name__, how))
