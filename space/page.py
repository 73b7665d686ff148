# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tabs of the page, and the functions of the API."""

import math
from collections.abc import Callable

import gradio as gr
import jet_demo
import texts
from charts import heat_maps, histogram
from components import (
    ChoiceInput,
    ChoiceMenu,
    ImageInput,
    NumberField,
    NumberInput,
    image_input,
    png_gallery,
    png_image,
)
from endpoints import Service
from jet_demo import ALL_CLASSES, FITS, MAX_SEED, MAX_TRUNCATION
from PIL import Image
from storage import Storage
from uploads import UnreadableImageError, missing

from jet_hf.analysis.sampling import image_grid


# Number of intermediate images that a sampling run shows.
NUM_LOOKS = 5


def enlarged_grid(images: list[Image.Image], columns: int | None = None, size: int = 640) -> Image.Image:
    """Arrange images in a grid, by default a square one, and enlarge pixels to squares until it is `size` wide."""
    grid = image_grid(images, columns or math.isqrt(len(images) - 1) + 1)
    factor = -(-size // grid.width)
    return grid.resize((factor * grid.width, factor * grid.height), Image.Resampling.NEAREST)


class Page:
    """
    Content of the page. Each method adds a part to the current Gradio context.

    Args:
        service: The model and its queues.
        storage: Register of uploads.
        examples: Paths of the example images.
    """

    def __init__(self, service: Service, storage: Storage, examples: list[str]):
        self.service, self.demo, self.storage, self.examples = service, service.demo, storage, examples

    def add(self) -> None:
        """Add the whole page."""
        gr.Markdown(texts.introduction(self.demo))
        with gr.Tab("Sample"):
            self.add_sampling()
        with gr.Tab("Score"):
            self.add_scoring()
        with gr.Tab("Reconstruct and edit"):
            self.add_reconstruction()
        with gr.Tab("Interpolate"):
            self.add_interpolation()
        with gr.Row(visible=False):
            self.add_api()

    def computes(self, function: Callable, api_name: str | None = None) -> dict:
        """Return the options of an event that runs the model. Without `api_name` the event is private to the page."""
        return {
            "fn": self.service.endpoint(function),
            "concurrency_limit": None,
            "api_name": api_name or f"page_{function.__name__}",
            "api_visibility": "public" if api_name else "private",
        }

    def image_input(self, label: str, **options) -> ImageInput:
        """Create an image input that accepts this server's uploads."""
        return image_input(label, self.storage, **options)

    def example_images(self, target: ImageInput, label: str = "Or one of these") -> None:
        """Add buttons that copy an example image to `target`."""
        gr.Examples(self.examples, target, label=label, cache_examples=False, api_visibility="private")

    def add_sampling(self) -> None:
        """Add the tab that draws samples."""
        demo, layers = self.demo, self.demo.model.config.num_coupling_layers

        def sample(num_images, temperature, seed, label, progress=gr.Progress()):  # noqa: B008
            looks = []
            for done, images in demo.sample_steps(num_images, temperature, seed, NUM_LOOKS, label):
                looks.append(images[0])
                progress((done, layers), desc="decoding", unit="layers")
                last = (enlarged_grid(looks, NUM_LOOKS + 1), images) if done == layers else (gr.skip(), gr.skip())
                yield enlarged_grid(images), texts.sampling_status(done, layers), *last

        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                gr.Markdown(texts.SAMPLING_HELP)
                num_images = NumberInput(1, jet_demo.MAX_IMAGES, 16, step=1, precision=0, label="Number of images")
                temperature = NumberInput(0, jet_demo.MAX_TEMPERATURE, 1, step=0.05, label="Temperature")
                seed = NumberField(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
                choices = [("all in turn", ALL_CLASSES), *((name, i) for i, name in enumerate(demo.classes))]
                label = ChoiceMenu(choices, value=ALL_CLASSES, label="Class", visible=len(choices) > 1)
                another = gr.Button("Another seed")
                run = gr.Button("Sample", variant="primary")
            with gr.Column(scale=2, min_width=320):
                grid = png_image("Samples", height=480)
                status = gr.Markdown(texts.sampling_status(0, layers))
        gr.Markdown("### From noise to the first image")
        strip = png_image("From noise to the first image", show_label=False, height=190)
        with gr.Accordion("Single images at the model's size", open=False):
            singles = png_gallery("Single images", height=420, show_label=False)
        another.click(None, outputs=seed, js=f"() => Math.floor(Math.random() * {MAX_SEED + 1})")
        gr.on(
            [run.click, seed.submit],
            inputs=[num_images, temperature, seed, label],
            outputs=[grid, status, strip, singles],
            show_progress_on=[grid],
            **self.computes(sample),
        )

    def add_scoring(self) -> None:
        """Add the tab that computes the likelihood of an image."""
        demo = self.demo

        def score(image, num_noise_draws, fit, progress=gr.Progress()):  # noqa: B008
            progress(0.1, desc="scoring")
            result = demo.score(image, num_noise_draws)
            progress(0.6, desc="drawing")
            seen = Image.fromarray(result.fitted.pixels.permute(1, 2, 0).numpy().squeeze())
            place = demo.held_out and histogram(demo.held_out.bits_per_dim, result.bits_per_dim)
            return (
                texts.score_summary(result, demo.model.config.image_size),
                seen,
                place,
                *(heat_maps([values]) for values in result.maps.values()),
            )

        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = self.image_input("Image", height=280)
                fit = ChoiceInput(texts.FIT_CHOICES, value=FITS[0], label=texts.FIT_LABEL)
                draws = NumberInput(1, jet_demo.MAX_NOISE_DRAWS, 8, step=1, precision=0, label="Noise draws")
                run = gr.Button("Score", variant="primary")
                self.example_images(image)
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    seen = png_image("Model input", height=240, min_width=200)
                    place = png_image(
                        "Among held-out images", height=240, min_width=280, visible=demo.held_out is not None
                    )
                summary = gr.Markdown(texts.SCORE_HINT, min_height=300)
        gr.Markdown(texts.HEAT_MAPS_HELP)
        with gr.Row():
            heat = [png_image(title.capitalize(), height=300, min_width=240) for title in jet_demo.MAPS]
        gr.Markdown(texts.LIKELIHOOD_HELP)
        run.click(
            inputs=[image, draws, fit],
            outputs=[summary, seen, place, *heat],
            show_progress_on=[summary],
            **self.computes(score),
        )

    def add_reconstruction(self) -> None:
        """Add the tab that encodes an image, edits its latents, and decodes them."""
        demo = self.demo

        def reconstruct(image, other, fit, mix, noise, truncation, seed, progress=gr.Progress()):  # noqa: B008
            progress(0.1, desc="encoding and decoding")
            if mix > 0 and other is None:
                raise UnreadableImageError(missing(texts.SECOND_IMAGE))
            original, latents, decoded, measured = demo.reconstruct(image)
            progress(0.6, desc="editing")
            edited = demo.edit(latents, other, mix, noise, truncation, seed)
            statement = texts.reconstruction_result(measured, demo.model.config.num_dims)
            return original, demo.show_latents(latents), decoded, edited, statement

        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                gr.Markdown(texts.RECONSTRUCTION_HELP)
                with gr.Row():
                    image = self.image_input("Image", height=200, min_width=140)
                    other = self.image_input(texts.SECOND_IMAGE, optional=True, height=200, min_width=140)
                self.example_images(image)
                fit = ChoiceInput(texts.FIT_CHOICES, value=FITS[0], label=texts.FIT_LABEL)
                mix = NumberInput(0, 1, 0, step=0.05, label="Mix: share of the second image")
                noise = NumberInput(0, 1, 0, step=0.05, label="Noise: share of new latents")
                truncation = NumberInput(
                    0, MAX_TRUNCATION, MAX_TRUNCATION, step=0.1, label=f"Clip latents at ± ({MAX_TRUNCATION:g}: off)"
                )
                seed = NumberField(0, label="Seed of the noise", precision=0, minimum=0, maximum=MAX_SEED)
                run = gr.Button("Encode and decode", variant="primary")
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    original = png_image("Model input", height=240, min_width=200)
                    latents = png_image("Latents", height=240, min_width=200)
                with gr.Row():
                    decoded = png_image("Reconstruction", height=240, min_width=200)
                    edited = png_image("Decoded after the edit", height=240, min_width=200)
                statement = gr.Markdown(texts.RECONSTRUCTION_HINT, min_height=80)
        gr.on(
            [run.click, mix.release, noise.release, truncation.release],
            inputs=[image, other, fit, mix, noise, truncation, seed],
            outputs=[original, latents, decoded, edited, statement],
            show_progress_on=[statement],
            trigger_mode="always_last",
            **self.computes(reconstruct),
        )

    def add_interpolation(self) -> None:
        """Add the tab that interpolates between two images."""

        def interpolate(image_a, image_b, steps, fit, progress=gr.Progress()):  # noqa: B008
            progress(0.1, desc="interpolating")
            return self.demo.interpolate(image_a, image_b, steps)

        gr.Markdown(texts.INTERPOLATION_HELP)
        with gr.Row():
            image_a = self.image_input("From", height=220, min_width=200)
            image_b = self.image_input("To", height=220, min_width=200)
        with gr.Row():
            self.example_images(image_a, "From one of these")
            self.example_images(image_b, "To one of these")
        with gr.Row():
            steps = NumberInput(
                2, jet_demo.MAX_STEPS, 8, step=1, precision=0, label="Number of images, including both ends"
            )
            fit = ChoiceInput(texts.FIT_CHOICES, value=FITS[0], label=texts.FIT_LABEL)
        run = gr.Button("Interpolate", variant="primary")
        gr.Markdown("### Path through the latent space")
        gallery = png_gallery("Path through the latent space", height=320, show_label=False)
        run.click(inputs=[image_a, image_b, steps, fit], outputs=gallery, **self.computes(interpolate))

    def add_api(self) -> None:
        """Add the public functions, whose names and parameters README.md documents and must not change."""
        demo = self.demo

        def sample(num_images, temperature, seed, label=ALL_CLASSES):
            """
            Draw images.

            num_images: 1 to 36; temperature: 0 to 2; seed: 0 to 2 ** 32 - 1; label, of models with classes only: the
            class, or -1 for all in turn.
            """
            return demo.sample(num_images, temperature, seed, label)

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

        image, image_a, image_b = map(self.image_input, ("image", "image_a", "image_b"))
        fit = ChoiceInput(list(FITS), value=FITS[0], label="fit")
        num_images = NumberInput(1, jet_demo.MAX_IMAGES, 4, step=1, precision=0, label="num_images")
        temperature = NumberInput(0, jet_demo.MAX_TEMPERATURE, 1, label="temperature")
        seed = NumberInput(0, MAX_SEED, 0, step=1, precision=0, label="seed")
        # A slider needs two ends, even for a model without classes.
        last_class = max(len(demo.classes) - 1, 0)
        label = NumberInput(ALL_CLASSES, last_class, ALL_CLASSES, step=1, precision=0, label="label")
        draws = NumberInput(1, jet_demo.MAX_NOISE_DRAWS, 8, step=1, precision=0, label="num_noise_draws")
        steps = NumberInput(2, jet_demo.MAX_STEPS, 8, step=1, precision=0, label="steps")
        picture, gallery, answer = png_image("picture"), png_gallery("images"), gr.JSON(label="result")
        for function, inputs, outputs in (
            (sample, [num_images, temperature, seed, *([label] if demo.classes else [])], gallery),
            (score, [image, draws, fit], [answer, picture]),
            (reconstruct, [image, fit], [picture, answer]),
            (interpolate, [image_a, image_b, steps], gallery),
        ):
            gr.Button().click(inputs=inputs, outputs=outputs, **self.computes(function, function.__name__))
