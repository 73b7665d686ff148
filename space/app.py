# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The demo: samples, scores and looks inside a Jet.

    python space/app.py
    MODEL_ID=org/jet-imagenet-64 python space/app.py
"""

import zero_gpu  # noqa: F401


# isort: split
import asyncio
import contextlib
import math
import os
import signal
import sys
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Gradio computes statistics of the last 10,000 calls after each call.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
if "SPACE_ID" in os.environ:
    # The Hub's proxies name the visitor's address in X-Forwarded-For; anybody else's header is not believed.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,127.0.0.1")

import gradio as gr
from charts import heat_map, heat_maps, histogram
from components import (
    ChoiceInput,
    ChoiceMenu,
    NumberField,
    NumberInput,
    image_input,
    png_gallery,
    png_image,
    share_examples,
)
from endpoints import Service
from fairness import CallLimits
from fastapi.exceptions import RequestValidationError
from gradio_internals import GuardedBlocks, forget_files, forget_unread
from guard import RequestGuard, RequestLimits, answer_in_a_sentence
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
from storage import Quota, Storage
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

from jet_hf.analysis.sampling import image_grid


SPACE = Path(__file__).parent
EXAMPLES = sorted((SPACE / "examples").glob("*.png"))
CSS, JS = ((SPACE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
# Files are looked through every so many seconds, and deleted at the age of an hour.
DELETE_CACHE = (15, 3600)
QUOTA = Quota()
CALLS = CallLimits()
REQUESTS = RequestLimits()
# The lines are in `endpoints.py`: Gradio's own passes every call on.
QUEUE = {"default_concurrency_limit": None, "max_size": 1000, "api_open": False}
MAX_CALLS_AT_WORK = 256
# Gradio keeps what belongs to the last sessions, each call of a program being one; ours have no state.
SESSIONS = 100
NUM_LOOKS = 5
SECOND_IMAGE = "Second image, to mix in"


def enlarged_grid(images: list[Image.Image], columns: int | None = None, size: int = 640) -> Image.Image:
    """Images in rows, by default as many as columns; each pixel a square of several, at least `size` pixels wide."""
    grid = image_grid(images, columns or math.isqrt(len(images) - 1) + 1)
    factor = -(-size // grid.width)
    return grid.resize((factor * grid.width, factor * grid.height), Image.Resampling.NEAREST)


def build_app(demo: JetDemo) -> GuardedBlocks:
    """Return the whole page and the API, for one model."""
    storage = Storage(DELETE_CACHE[1], QUOTA)
    # Gradio takes the place of its files from here.
    os.environ["GRADIO_TEMP_DIR"] = str(storage.folder)
    examples, service = share_examples(storage, EXAMPLES), Service.of(demo, CALLS)

    def computes(function, api_name: str | None = None):
        """Return the options of every event that runs the model; without `api_name` it is the page's own."""
        return {
            "fn": service.endpoint(function),
            "concurrency_limit": None,
            "api_name": api_name or f"page_{function.__name__}",
            "api_visibility": "public" if api_name else "private",
        }

    with GuardedBlocks(title="Jet", analytics_enabled=False) as app:
        gr.Markdown(introduction(demo))
        with gr.Tab("Sample"):
            add_sampling(demo, computes)
        with gr.Tab("Score"):
            add_scoring(demo, storage, examples, computes)
        with gr.Tab("Reconstruct and edit"):
            add_reconstruction(demo, storage, examples, computes)
        with gr.Tab("Interpolate"):
            add_interpolation(demo, storage, examples, computes)
        add_api(demo, storage, computes)
    app.storage, app.calls = storage, service.calls
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
            seed = NumberField(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            choices = [("all in turn", ALL_CLASSES), *((name, i) for i, name in enumerate(demo.classes))]
            label = ChoiceMenu(choices, value=ALL_CLASSES, label="Class", visible=len(choices) > 1)
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


def add_scoring(demo: JetDemo, storage: Storage, examples: list[str], computes) -> None:
    def score(image, num_noise_draws, fit, progress=gr.Progress()):  # noqa: B008
        progress(0.1, desc="scoring")
        result = demo.score(image, num_noise_draws, fit)
        progress(0.6, desc="drawing")
        seen = Image.fromarray(result.fitted.pixels.permute(1, 2, 0).numpy().squeeze())
        place = demo.held_out and histogram(demo.held_out.bits_per_dim, result.bits_per_dim)
        return score_summary(result, demo), seen, place, *map(heat_map, result.maps.values())

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            image = image_input("Image", storage, height=280)
            fit = ChoiceInput(FIT_CHOICES, value=FITS[0], label="How it gets to the model's size")
            draws = NumberInput(1, MAX_NOISE_DRAWS, 8, step=1, precision=0, label="Noise draws")
            run = gr.Button("Score", variant="primary")
            gr.Examples(examples, image, label="Or one of these", cache_examples=False, api_visibility="private")
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


def add_reconstruction(demo: JetDemo, storage: Storage, examples: list[str], computes) -> None:
    def reconstruct(image, other, fit, mix, noise, truncation, seed, progress=gr.Progress()):  # noqa: B008
        progress(0.1, desc="encoding and decoding")
        original, latents, decoded, measured = demo.reconstruct(image, fit)
        progress(0.6, desc="editing")
        edited = demo.edit(latents, other, fit, mix, noise, truncation, seed, SECOND_IMAGE)
        statement = reconstruction_result(measured, demo.model.config.num_dims)
        return original, demo.show_latents(latents), decoded, edited, statement

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown(RECONSTRUCTION_HELP)
            with gr.Row():
                image = image_input("Image", storage, height=200, min_width=140)
                other = image_input(SECOND_IMAGE, storage, optional=True, height=200, min_width=140)
            gr.Examples(examples, image, label="Or one of these", cache_examples=False, api_visibility="private")
            fit = ChoiceInput(FIT_CHOICES, value=FITS[0], label="How it gets to the model's size")
            mix = NumberInput(0, 1, 0, step=0.05, label="Mix: way to the second image")
            noise = NumberInput(0, 1, 0, step=0.05, label="Noise: share of fresh latents")
            truncation = NumberInput(
                0, MAX_TRUNCATION, MAX_TRUNCATION, step=0.1, label=f"Truncate latents at ± ({MAX_TRUNCATION:g}: not)"
            )
            seed = NumberField(0, label="Seed of the noise", precision=0, minimum=0, maximum=MAX_SEED)
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


def add_interpolation(demo: JetDemo, storage: Storage, examples: list[str], computes) -> None:
    def interpolate(image_a, image_b, steps, fit, progress=gr.Progress()):  # noqa: B008
        progress(0.1, desc="interpolating")
        return demo.interpolate(image_a, image_b, steps, fit)

    gr.Markdown(INTERPOLATION_HELP)
    with gr.Row():
        image_a = image_input("From", storage, height=220, min_width=200)
        image_b = image_input("To", storage, height=220, min_width=200)
    with gr.Row():
        gr.Examples(examples, image_a, label="From one of these", cache_examples=False, api_visibility="private")
        gr.Examples(examples, image_b, label="To one of these", cache_examples=False, api_visibility="private")
    with gr.Row():
        steps = NumberInput(2, MAX_STEPS, 8, step=1, precision=0, label="Images on the way, ends included")
        fit = ChoiceInput(FIT_CHOICES, value=FITS[0], label="How they get to the model's size")
    run = gr.Button("Interpolate", variant="primary")
    gr.Markdown("### The way through the latent space")
    gallery = png_gallery("The way through the latent space", height=320, show_label=False)
    run.click(inputs=[image_a, image_b, steps, fit], outputs=gallery, **computes(interpolate))


def add_api(demo: JetDemo, storage: Storage, computes) -> None:
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
        image, image_a, image_b = (image_input(name, storage) for name in ("image", "image_a", "image_b"))
        picture = png_image("picture")
        fit = ChoiceInput(list(FITS), value=FITS[0], label="fit")
        num_images = NumberInput(1, MAX_IMAGES, 4, step=1, precision=0, label="num_images")
        temperature = NumberInput(0, MAX_TEMPERATURE, 1, label="temperature")
        seed = NumberInput(0, MAX_SEED, 0, step=1, precision=0, label="seed")
        # A slider needs two ends, although a model without classes has no use for it.
        last_class = max(len(demo.classes) - 1, 0)
        label = NumberInput(ALL_CLASSES, last_class, ALL_CLASSES, step=1, precision=0, label="label")
        draws = NumberInput(1, MAX_NOISE_DRAWS, 8, step=1, precision=0, label="num_noise_draws")
        steps = NumberInput(2, MAX_STEPS, 8, step=1, precision=0, label="steps")
        gallery, answer, call = png_gallery("images"), gr.JSON(label="result"), gr.Button()
    for name, function, inputs, outputs in (
        ("sample", sample, [num_images, temperature, seed, *([label] if demo.classes else [])], gallery),
        ("score", score, [image, draws, fit], [answer, picture]),
        ("reconstruct", reconstruct, [image, fit], [picture, answer]),
        ("interpolate", interpolate, [image_a, image_b, steps], gallery),
    ):
        call.click(inputs=inputs, outputs=outputs, **computes(function, name))


def keep_tidy(app: GuardedBlocks):
    """Return a lifespan of the server, during which files and results that nobody needs are deleted now and then."""

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async def tidy() -> None:
            unread = set()
            while True:
                await asyncio.sleep(DELETE_CACHE[0])
                await asyncio.to_thread(app.storage.sweep, lambda paths: forget_files(app, paths))
                unread = forget_unread(app, app.calls.wanted_readers(), unread)

        task = asyncio.create_task(tidy())
        yield
        task.cancel()

    return lifespan


def launch(app: GuardedBlocks, **options):
    """Start the server; `options` are those of `gr.Blocks.launch`."""
    system = ["system-ui", "sans-serif"]  # no visitor's browser has to ask another server for letters
    theme = gr.themes.Soft(primary_hue="orange", font=system, font_mono=["ui-monospace", "monospace"])
    guard = Middleware(RequestGuard, blocks=app, storage=app.storage, calls=app.calls, limits=REQUESTS)
    return app.queue(**QUEUE).launch(
        css=CSS,
        js=JS,
        theme=theme,
        max_file_size=MAX_FILE_SIZE,
        max_threads=MAX_CALLS_AT_WORK,
        app_kwargs={
            "middleware": [guard],
            "exception_handlers": {RequestValidationError: answer_in_a_sentence},
            "lifespan": keep_tidy(app),
        },
        state_session_capacity=SESSIONS,
        show_error=True,
        run_history=False,
        footer_links=["api", "settings"],
        ssr_mode=False,
        **options,
    )


def main() -> None:
    """Serve the model that the variable MODEL_ID names, until a signal ends the process."""
    # An exit, unlike a signal's default, deletes the server's files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        jet_demo = JetDemo(os.environ.get("MODEL_ID") or SPACE / "model")
    except (OSError, ValueError) as error:
        sys.exit(f"error: MODEL_ID: {' '.join(str(error).split())}")
    launch(build_app(jet_demo))


if __name__ == "__main__":
    main()
