# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tabs of the latent space: one edits the latents of an image, the other walks from one image to another."""

import io

import gradio as gr
import jet_demo
import texts
from components import ChoiceInput, Named, NumberField, NumberInput, png_gallery, png_image
from jet_demo import FITS, MAX_SEED, MAX_TRUNCATION, Fitted
from page import Page, Refresh
from PIL import Image
from uploads import UnreadableImageError, missing


# Side of the frames of the walk, in pixels, and the time that each is shown, in milliseconds.
FRAME_SIDE, FRAME_MILLISECONDS = 256, 120


def looped(images: list[Image.Image]) -> bytes:
    """Return an animation, which goes to the end of a walk and back, as a lossless WebP file."""
    side = -(-FRAME_SIDE // images[0].width) * images[0].width
    frames = [image.resize((side, side), Image.Resampling.NEAREST) for image in (*images, *images[-2:0:-1])]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "webp", lossless=True, save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0
    )
    return buffer.getvalue()


def add_reconstruction(page: Page) -> None:
    """Add the tab that encodes an image, edits its latents, and decodes them."""
    demo = page.demo
    num_patches = demo.model.config.num_patches

    def reconstruct(image, other, fit, mix, noise, truncation, seed, patch):
        if image is None or seed is None:
            return *[None] * 4, texts.RECONSTRUCTION_HINT
        if mix > 0 and other is None:
            raise UnreadableImageError(missing(texts.SECOND_IMAGE))
        original, latents, decoded, measured = demo.reconstruct(image)
        edited = demo.edit(latents, other, mix, noise, truncation, seed, patch)
        return (
            Named(original, "jet-model-input.png"),
            Named(demo.show_latents(latents), "jet-latents.png"),
            Named(decoded, "jet-reconstruction.png"),
            Named(edited, f"jet-edit-seed{seed}.png"),
            texts.reconstruction_result(measured, demo.model.config.num_dims),
        )

    def patch_at(place: gr.SelectData):
        size, side = demo.model.config.image_size, demo.model.config.patch_size
        column, row = (min(int(number), size - 1) // side for number in place.index)
        return row * demo.num_columns + column + 1

    *shown, statement_text = reconstruct(demo.load(page.examples[0]), None, FITS[0], 0, 0, MAX_TRUNCATION, 0, 0)
    gr.Markdown(texts.RECONSTRUCTION_HELP)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            with gr.Row():
                image = page.image_input("Image", optional=True, height=200, min_width=140, value=page.examples[0])
                other = page.image_input(texts.SECOND_IMAGE, optional=True, height=200, min_width=140)
            page.example_images(image, "Image: one of these")
            page.example_images(other, f"{texts.SECOND_IMAGE}: one of these")
            fit = ChoiceInput(texts.FIT_CHOICES, value=FITS[0], label=texts.FIT_LABEL)
        with gr.Column(scale=2, min_width=320, elem_classes=["edit"]):
            titles = ("Model input", "Latents", "Reconstruction", texts.EDITED)
            outputs = []
            for first in (0, 2):
                with gr.Row():
                    for title, value in list(zip(titles, shown, strict=True))[first : first + 2]:
                        outputs.append(png_image(title, height=240, min_width=140, value=value))
            # Beside the pictures, also on a phone, so that these are seen while a slider moves.
            with gr.Row():
                mix = NumberInput(0, 1, 0, step=0.05, label="Mix: share of the second image")
                noise = NumberInput(0, 1, 0, step=0.05, label="Noise: share of new latents")
            with gr.Row():
                patch = NumberInput(0, num_patches, 0, step=1, precision=0, label="Patch with new latents (0: none)")
                truncation = NumberInput(
                    0, MAX_TRUNCATION, MAX_TRUNCATION, step=0.1, label=f"Clip latents at ± ({MAX_TRUNCATION:g}: off)"
                )
            seed = NumberField(0, label="Seed of the new latents", precision=0, minimum=0, maximum=MAX_SEED)
            statement = gr.Markdown(statement_text, min_height=80)
    for component in (outputs[0], outputs[-1]):
        component.select(patch_at, None, patch, show_progress="hidden", api_visibility="private")
    page.refreshes(
        Refresh(
            reconstruct,
            [image, other, fit, mix, noise, truncation, seed, patch],
            [*outputs, statement],
            live=[mix, noise, truncation, patch],
            options={"show_progress": "hidden"},
        )
    )


def add_interpolation(page: Page) -> None:
    """Add the tab that interpolates between two images."""
    demo = page.demo

    def walk(image_a, image_b, steps, fit):
        if image_a is None or image_b is None:
            return None, None, texts.INTERPOLATION_HINT
        images = demo.interpolate(image_a, image_b, steps)
        return page.storage.add_result(looped(images), f"jet-walk-{steps}.webp"), images, texts.walk_result(steps)

    def step_to(image_a: Fitted | None, image_b: Fitted | None, position, fit):
        if image_a is None or image_b is None:
            return None, texts.INTERPOLATION_HINT
        image = demo.between(image_a, image_b, position)
        return Named(image, f"jet-between-{position:g}.png"), texts.position_result(position)

    coffee, cat = (next(path for path in page.examples if word in path) for word in ("coffee", "cat"))
    ends = demo.load(coffee), demo.load(cat)
    film, images, walk_text = walk(*ends, 12, FITS[0])
    between, position_text = step_to(*ends, 0.5, FITS[0])
    gr.Markdown(texts.INTERPOLATION_HELP)
    with gr.Row():
        image_a = page.image_input("From", optional=True, height=220, min_width=200, value=coffee)
        image_b = page.image_input("To", optional=True, height=220, min_width=200, value=cat)
    with gr.Row():
        page.example_images(image_a, "From one of these")
        page.example_images(image_b, "To one of these")
    with gr.Row():
        with gr.Column(min_width=280):
            position = NumberInput(0, 1, 0.5, step=0.01, label="Position between both images")
            shown = png_image("Image at this position", height=280, value=between)
            position_status = gr.Markdown(position_text)
        with gr.Column(min_width=280):
            steps = NumberInput(
                2, jet_demo.MAX_STEPS, 12, step=1, precision=0, label="Number of images, including both ends"
            )
            animation = png_image("Walk there and back", chart=True, height=280, value=film, format="webp")
            walk_status = gr.Markdown(walk_text)
    fit = ChoiceInput(texts.FIT_CHOICES, value=FITS[0], label=texts.FIT_LABEL)
    gr.Markdown("## Path through the latent space")
    gallery = png_gallery("Path through the latent space", height=320, show_label=False, value=images)
    page.refreshes(
        Refresh(
            step_to,
            [image_a, image_b, position, fit],
            [shown, position_status],
            live=[position],
            options={"show_progress": "hidden"},
        ),
        Refresh(walk, [image_a, image_b, steps, fit], [animation, gallery, walk_status], live=[steps]),
    )
