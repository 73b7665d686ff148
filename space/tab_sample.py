# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tab that draws samples."""

import math

import gradio as gr
import jet_demo
import texts
from components import ChoiceMenu, ClassMenu, Named, NumberField, NumberInput, png_gallery, png_image
from jet_demo import ALL_CLASSES, MAX_SEED, Sampler
from page import Page, Refresh
from PIL import Image

from jet_hf.analysis.sampling import image_grid
from jet_hf.utils.files import strict_json


# Number of intermediate images that a sampling run shows.
NUM_LOOKS = 5
NUM_IMAGES = 20


def enlarged_grid(images: list[Image.Image], columns: int | None = None, size: int = 640) -> Image.Image:
    """Arrange images in a grid, by default a square one, and enlarge pixels to squares until it is `size` wide."""
    grid = image_grid(images, columns or math.isqrt(len(images) - 1) + 1)
    factor = -(-size // grid.width)
    return grid.resize((factor * grid.width, factor * grid.height), Image.Resampling.NEAREST)


def class_choices(sampler: Sampler) -> list[tuple[str, int]]:
    """Return the choices of the menu of classes."""
    return [("all in turn", ALL_CLASSES), *((name, i) for i, name in enumerate(sampler.classes))]


def draw(sampler: Sampler, num_images: int, temperature: float, seed: int, label: int):
    """Yield what the tab shows while images appear: the images, the path from noise, single images, and a status."""
    layers, looks = sampler.model.config.num_coupling_layers, []
    name = f"{texts.slug(sampler.title)}-seed{seed}-t{temperature:g}"
    if label != ALL_CLASSES:
        name += f"-{texts.slug(sampler.classes[label])}"
    for done, images in sampler.sample_steps(num_images, temperature, seed, NUM_LOOKS, label):
        looks.append(images[0])
        grid, status = Named(enlarged_grid(images), f"{name}.png"), texts.sampling_status(done, layers)
        if done < layers:
            yield grid, gr.skip(), gr.skip(), status
        else:
            yield grid, Named(enlarged_grid(looks, NUM_LOOKS + 1), f"{name}-path.png"), images, status


def add_sampling(page: Page) -> None:
    """Add the tab."""

    def sample(model, num_images, temperature, seed, label, progress=gr.Progress()):  # noqa: B008
        if seed is None:
            yield None, None, None, texts.SAMPLING_HINT
            return
        sampler = page.samplers[model]
        # The menu of classes may still be that of another model.
        known = label if label < len(sampler.classes) else ALL_CLASSES
        for shown in draw(sampler, num_images, temperature, seed, known):
            progress(0.5, desc="decoding")
            yield shown

    def classes_of(model, label):
        choices = class_choices(page.samplers[model])
        known = label if label < len(choices) - 1 else ALL_CLASSES
        return ClassMenu(choices=choices, value=known, visible=len(choices) > 1)

    title, sampler = next(iter(page.samplers.items()))
    *_, (first, path, singles, status_text) = draw(sampler, NUM_IMAGES, 1, 0, ALL_CLASSES)
    gr.Markdown(texts.SAMPLING_HELP)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            model = ChoiceMenu(list(page.samplers), value=title, label="Model", visible=len(page.samplers) > 1)
            choices = class_choices(sampler)
            label = ClassMenu(choices, value=ALL_CLASSES, label="Class", visible=len(choices) > 1)
            num_images = NumberInput(1, jet_demo.MAX_IMAGES, NUM_IMAGES, step=1, precision=0, label="Number of images")
            temperature = NumberInput(0, jet_demo.MAX_TEMPERATURE, 1, step=0.05, label="Temperature")
            seed = NumberField(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            another = gr.Button("Another seed", variant="primary")
        with gr.Column(scale=2, min_width=320, elem_classes=["results"]):
            grid = png_image("Samples", height=480, value=first)
            status = gr.Markdown(status_text)
    gr.Markdown("## From noise to the first image")
    strip = png_image("From noise to the first image", show_label=False, height=190, value=path)
    with gr.Accordion("Single images at the model's size", open=False):
        gallery = png_gallery("Single images", height=420, show_label=False, value=singles)
    inputs = [model, num_images, temperature, seed, label]
    another.click(None, outputs=seed, js=f"() => Math.floor(Math.random() * {MAX_SEED + 1})", api_visibility="private")
    model.change(classes_of, [model, label], label, show_progress="hidden", api_visibility="private")
    outputs, live = [grid, strip, gallery, status], [num_images, temperature]
    page.refreshes(Refresh(sample, inputs, outputs, live=live, options={"show_progress_on": [grid]}))
    # The address of the page names what it shows.
    gr.on(
        [component.change for component in inputs],
        None,
        inputs=inputs,
        js="(...values) => { jetAddress.write(values); return []; }",
        api_visibility="private",
    )
    page.blocks.load(
        None,
        inputs=inputs,
        outputs=inputs,
        js=f"(...values) => jetAddress.read(values, {strict_json(list(page.samplers))})",
        api_visibility="private",
    )
