# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The demo: samples, scores and looks inside a Jet.

    python space/app.py
    MODEL_ID=org/jet-imagenet-64 python space/app.py
"""

from zero_gpu import borrows_gpu


# isort: split
import math
import os
import sys
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from charts import heat_map, heat_maps, histogram
from components import (
    ChoiceInput,
    NumberInput,
    RequestGuard,
    answers_errors,
    image_input,
    png_gallery,
    png_image,
)
from jet_demo import (
    ALL_CLASSES,
    FITS,
    MAPS,
    MAX_IMAGES,
    MAX_NOISE_DRAWS,
    MAX_SEED,
    MAX_STEPS,
    MAX_TEMPERATURE,
    MAX_TRUNCATION,
    JetDemo,
)
from PIL import Image
from starlette.middleware import Middleware
from texts import (
    FIT_CHOICES,
    INTERPOLATION_HELP,
    LIKELIHOOD,
    RECONSTRUCTION_HELP,
    SAMPLING_HELP,
    introduction,
    reconstruction_result,
    sampling_status,
    score_summary,
)
from uploads import MAX_FILE_SIZE

from jet_hf.sampling import image_grid


SPACE = Path(__file__).parent
EXAMPLES = sorted(str(path) for path in (SPACE / "examples").glob("*.png"))
CSS, JS = ((SPACE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
# Files older than an hour go, looked for every five minutes.
DELETE_CACHE = (300, 3600)
# Models share the machine: one call computes, the others wait in a line of this length.
QUEUE = {"default_concurrency_limit": 1, "max_size": 100, "api_open": False}
# Gradio keeps what belongs to the last sessions, each call of a program being one; ours have no state.
SESSIONS = 100
NUM_LOOKS = 5


def enlarged_grid(images: list[Image.Image], columns: int | None = None, size: int = 640) -> Image.Image:
    """Images in rows, by default as many as columns; each pixel a square of several, at least `size` pixels wide."""
    grid = image_grid(images, columns or math.isqrt(len(images) - 1) + 1)
    factor = -(-size // grid.width)
    return grid.resize((factor * grid.width, factor * grid.height), Image.Resampling.NEAREST)


def build_app(demo: JetDemo) -> gr.Blocks:
    """The whole page and the API, for one model."""

    def computes(function, api_name: str | None = None):
        """What every event that runs the model has in common; without `api_name` it is the page's own."""
        return {
            "fn": answers_errors(borrows_gpu(function)),
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_name": api_name or f"page_{function.__name__}",
            "api_visibility": "public" if api_name else "private",
        }

    with gr.Blocks(title="Jet", analytics_enabled=False, delete_cache=DELETE_CACHE) as app:
        gr.Markdown(introduction(demo))
        with gr.Tab("Sample"):
            add_sampling(demo, computes)
        with gr.Tab("Score"):
            add_scoring(demo, computes)
        with gr.Tab("Reconstruct and edit"):
            add_reconstruction(demo, computes)
        with gr.Tab("Interpolate"):
            add_interpolation(demo, computes)
        add_api(demo, computes)
    return app


def add_sampling(demo: JetDemo, computes) -> None:
    def sample(num_images, temperature, seed, label, progress=gr.Progress()):  # noqa: B008
        layers, looks = demo.model.config.num_coupling_layers, []
        for done, images in demo.sample_steps(num_images, temperature, seed, NUM_LOOKS, label):
            looks.append(images[0])
            progress((done, layers), desc="decoding", unit="layers")
            strip = enlarged_grid(looks, NUM_LOOKS + 1) if done == layers else gr.skip()
            yield enlarged_grid(images), sampling_status(done, layers), strip, images if done == layers else gr.skip()

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown(SAMPLING_HELP)
            num_images = NumberInput(1, MAX_IMAGES, 16, step=1, precision=0, label="Number of images")
            temperature = NumberInput(0, MAX_TEMPERATURE, 1, step=0.05, label="Temperature")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            choices = [("all in turn", ALL_CLASSES), *((name, i) for i, name in enumerate(demo.classes))]
            label = gr.Dropdown(choices, value=ALL_CLASSES, label="Class", visible=len(choices) > 1)
            another = gr.Button("Another seed")
            run = gr.Button("Sample", variant="primary")
        with gr.Column(scale=2, min_width=320):
            grid = png_image("Samples", height=480)
            status = gr.Markdown(sampling_status(None, demo.model.config.num_coupling_layers))
    gr.Markdown("### From noise to the first image")
    strip = png_image("From noise to the first image", show_label=False, height=190)
    with gr.Accordion("Single images, at the model's size", open=False):
        singles = png_gallery("Single images", height=420, show_label=False)
    another.click(None, outputs=seed, js=f"() => Math.floor(Math.random() * {MAX_SEED + 1})")
    gr.on(
        [run.click, seed.submit],
        inputs=[num_images, temperature, seed, label],
        outputs=[grid, status, strip, singles],
        show_progress_on=[grid],
        **computes(sample),
    )


def add_scoring(demo: JetDemo, computes) -> None:
    def score(image, num_noise_draws, fit, progress=gr.Progress()):  # noqa: B008
        progress(0.1, desc="scoring")
        result = demo.score(image, num_noise_draws, fit)
        progress(0.6, desc="drawing")
        seen = Image.fromarray(result.fitted.pixels.permute(1, 2, 0).numpy().squeeze())
        place = demo.held_out and histogram(demo.held_out.bits_per_dim, result.bits_per_dim)
        return score_summary(result, demo), seen, place, *map(heat_map, result.maps.values())

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            image = image_input("Image", height=280)
            fit = ChoiceInput(FIT_CHOICES, value=FITS[0], label="How it gets to the model's size")
            draws = NumberInput(1, MAX_NOISE_DRAWS, 8, step=1, precision=0, label="Noise draws")
            run = gr.Button("Score", variant="primary")
            gr.Examples(EXAMPLES, image, label="Or one of these", cache_examples=False, api_visibility="private")
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                seen = png_image("What the model sees", height=240, min_width=200)
                place = png_image(
                    "Among held-out images", height=240, min_width=280, visible=demo.held_out is not None
                )
            summary = gr.Markdown(score_summary(None, demo), min_height=300)
    gr.Markdown("### Where the bits are\nBits per dimension of each patch. The two terms add up to all bits.")
    with gr.Row():
        heat = [png_image(title.capitalize(), height=300, min_width=240) for title in MAPS]
    gr.Markdown(LIKELIHOOD)
    run.click(
        inputs=[image, draws, fit],
        outputs=[summary, seen, place, *heat],
        show_progress_on=[summary],
        **computes(score),
    )


def add_reconstruction(demo: JetDemo, computes) -> None:
    def reconstruct(image, other, fit, mix, noise, truncation, seed, progress=gr.Progress()):  # noqa: B008
        progress(0.1, desc="encoding and decoding")
        original, latents, decoded, measured = demo.reconstruct(image, fit)
        progress(0.6, desc="editing")
        edited = demo.edit(latents, other, fit, mix, noise, truncation, seed)
        statement = reconstruction_result(measured, demo.model.config.num_dims)
        return original, demo.show_latents(latents), decoded, edited, statement

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown(RECONSTRUCTION_HELP)
            with gr.Row():
                image = image_input("Image", height=200, min_width=140)
                other = image_input("Second image, to mix in", height=200, min_width=140)
            gr.Examples(EXAMPLES, image, label="Or one of these", cache_examples=False, api_visibility="private")
            fit = ChoiceInput(FIT_CHOICES, value=FITS[0], label="How it gets to the model's size")
            mix = NumberInput(0, 1, 0, step=0.05, label="Mix: way to the second image")
            noise = NumberInput(0, 1, 0, step=0.05, label="Noise: share of fresh latents")
            truncation = NumberInput(
                0, MAX_TRUNCATION, MAX_TRUNCATION, step=0.1, label=f"Truncate latents at ± ({MAX_TRUNCATION:g}: not)"
            )
            seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0, maximum=MAX_SEED)
            run = gr.Button("Encode and decode", variant="primary")
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                original = png_image("What the model sees", height=240, min_width=200)
                latents = png_image("Latents", height=240, min_width=200)
            with gr.Row():
                decoded = png_image("Decoded again", height=240, min_width=200)
                edited = png_image("Decoded after the edit", height=240, min_width=200)
            statement = gr.Markdown(reconstruction_result(None, None), min_height=80)
    gr.on(
        [run.click, mix.release, noise.release, truncation.release],
        inputs=[image, other, fit, mix, noise, truncation, seed],
        outputs=[original, latents, decoded, edited, statement],
        show_progress_on=[statement],
        trigger_mode="always_last",
        **computes(reconstruct),
    )


def add_interpolation(demo: JetDemo, computes) -> None:
    def interpolate(image_a, image_b, steps, fit, progress=gr.Progress()):  # noqa: B008
        progress(0.1, desc="interpolating")
        return demo.interpolate(image_a, image_b, steps, fit)

    gr.Markdown(INTERPOLATION_HELP)
    with gr.Row():
        image_a = image_input("From", height=220, min_width=200)
        image_b = image_input("To", height=220, min_width=200)
    with gr.Row():
        gr.Examples(EXAMPLES, image_a, label="From one of these", cache_examples=False, api_visibility="private")
        gr.Examples(EXAMPLES, image_b, label="To one of these", cache_examples=False, api_visibility="private")
    with gr.Row():
        steps = NumberInput(2, MAX_STEPS, 8, step=1, precision=0, label="Images on the way, ends included")
        fit = ChoiceInput(FIT_CHOICES, value=FITS[0], label="How they get to the model's size")
    run = gr.Button("Interpolate", variant="primary")
    gr.Markdown("### The way through the latent space")
    gallery = png_gallery("The way through the latent space", height=320, show_label=False)
    run.click(inputs=[image_a, image_b, steps, fit], outputs=gallery, **computes(interpolate))


def add_api(demo: JetDemo, computes) -> None:
    """The functions for programs, as README.md describes them: their names and parameters stay."""

    def sample(num_images, temperature, seed, label=ALL_CLASSES):
        """
        Draws images. num_images: 1 to 36; temperature: 0 to 2; seed: 0 to 2 ** 32 - 1; label, of models with classes:
        the class, -1 for all in turn.
        """
        return demo.sample(num_images, temperature, seed, label)

    def score(image, num_noise_draws, fit):
        """Scores an image in bits per dimension. num_noise_draws: 1 to 32; fit: "resize" or "crop"."""
        result = demo.score(image, num_noise_draws, fit)
        return result.to_dict(), heat_maps(result.maps)

    def reconstruct(image, fit):
        """Encodes an image and decodes it again. fit: "resize" or "crop"."""
        _, _, decoded, measured = demo.reconstruct(image, fit)
        return decoded, measured

    def interpolate(image_a, image_b, steps):
        """Goes from one image to another through the latent space. steps: 2 to 16 images, both included."""
        return demo.interpolate(image_a, image_b, steps)

    with gr.Row(visible=False):
        image, other, picture = image_input("image"), image_input("image"), png_image("picture")
        fit = ChoiceInput(list(FITS), value=FITS[0], label="fit")
        num_images = NumberInput(1, MAX_IMAGES, 4, step=1, precision=0, label="num_images")
        temperature = NumberInput(0, MAX_TEMPERATURE, 1, label="temperature")
        seed = NumberInput(0, MAX_SEED, 0, step=1, precision=0, label="seed")
        label = NumberInput(ALL_CLASSES, len(demo.classes), ALL_CLASSES, step=1, precision=0, label="label")
        draws = NumberInput(1, MAX_NOISE_DRAWS, 8, step=1, precision=0, label="num_noise_draws")
        steps = NumberInput(2, MAX_STEPS, 8, step=1, precision=0, label="steps")
        gallery, answer, call = png_gallery("images"), gr.JSON(label="result"), gr.Button()
    for name, function, inputs, outputs in (
        ("sample", sample, [num_images, temperature, seed, *([label] if demo.classes else [])], gallery),
        ("score", score, [image, draws, fit], [answer, picture]),
        ("reconstruct", reconstruct, [image, fit], [picture, answer]),
        ("interpolate", interpolate, [image, other, steps], gallery),
    ):
        call.click(inputs=inputs, outputs=outputs, **computes(function, name))


def launch(app: gr.Blocks, **options):
    """Starts the server; `options` are those of `gr.Blocks.launch`."""
    system = ["system-ui", "sans-serif"]  # no visitor's browser has to ask another server for letters
    theme = gr.themes.Soft(primary_hue="orange", font=system, font_mono=["ui-monospace", "monospace"])
    return app.queue(**QUEUE).launch(
        css=CSS,
        js=JS,
        theme=theme,
        max_file_size=MAX_FILE_SIZE,
        app_kwargs={"middleware": [Middleware(RequestGuard)]},
        state_session_capacity=SESSIONS,
        show_error=True,
        run_history=False,
        footer_links=["api", "settings"],
        ssr_mode=False,
        **options,
    )


if __name__ == "__main__":
    try:
        jet_demo = JetDemo(os.environ.get("MODEL_ID") or SPACE / "model")
    except (OSError, ValueError) as error:
        sys.exit(f"error: MODEL_ID: {' '.join(str(error).split())}")
    launch(build_app(jet_demo))
