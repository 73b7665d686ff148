# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tab about odd pictures: anomaly scores, and a game: which of two pictures takes fewer bits?"""

import base64
import io
from html import escape

import gradio as gr
import numpy as np
import texts
from charts import overlay
from components import ChoiceInput, Named, png_image
from jet_demo import FITS, JetDemo
from page import Page, Refresh
from PIL import Image, ImageFilter, ImageOps

from jet_hf.utils.files import strict_json


NUM_NOISE_DRAWS = 4
# Side of the pictures of the game, in pixels.
SIDE = 256


def variants(demo: JetDemo, examples: list[str]) -> dict[str, Image.Image]:
    """Return example images at the model's size, and pictures made of them, by their descriptions."""
    size = demo.model.config.image_size
    mode = "RGB" if demo.model.config.num_channels == 3 else "L"
    coffee, temple, cat, smooth, static = (demo.picture(demo.load(path)).convert(mode) for path in examples)
    (sample,) = demo.sample(1, 1, 0)
    noise = np.random.default_rng(0).normal(0, 12, np.shape(cat))
    noisy = Image.fromarray(np.clip(np.asarray(cat) + noise, 0, 255).astype(np.uint8))
    return {
        "coffee": coffee,
        "temple": temple,
        "cat": cat,
        "a smooth gradient": smooth,
        "static": static,
        "a sample of the model": sample.convert(mode),
        "the cat, blurred": cat.filter(ImageFilter.GaussianBlur(1.5)),
        "the cat with a little noise": noisy,
        "the coffee, upside down": ImageOps.flip(coffee),
        "the temple, mirrored": ImageOps.mirror(temple),
        "the coffee in shades of gray": ImageOps.grayscale(coffee).convert(mode),
        "the temple with inverted colors": ImageOps.invert(temple),
        "one color": Image.new(mode, (size, size), 128 if mode == "L" else (90, 140, 200)),
    }


PAIRS = (
    ("coffee", "static"),
    ("cat", "one color"),
    ("temple", "a smooth gradient"),
    ("cat", "the cat, blurred"),
    ("the cat with a little noise", "cat"),
    ("coffee", "temple"),
    ("the coffee, upside down", "coffee"),
    ("the coffee in shades of gray", "coffee"),
    ("temple", "the temple with inverted colors"),
    ("a sample of the model", "temple"),
)


def add_odd(page: Page) -> None:
    """Add the tab."""
    if page.demo.detector is not None:
        add_anomaly(page)
    add_game(page)


def add_anomaly(page: Page) -> None:
    """Add the anomaly scores of an image."""
    demo = page.demo

    def anomaly(image, fit):
        if image is None:
            return None, texts.SCORE_HINT
        table, excess = demo.judge(image)
        heat = overlay(demo.picture(image), excess, centered=True)
        return Named(heat, "jet-odd-patches.png"), texts.anomaly_table(table)

    smooth = next(path for path in page.examples if "smooth" in path)
    first, table = anomaly(demo.load(smooth), FITS[0])
    gr.Markdown(f"## Odd pictures\n{texts.ANOMALY_HELP}")
    with gr.Row():
        with gr.Column(min_width=280):
            image = page.image_input("Image", optional=True, height=240, value=smooth)
            page.example_images(image)
            fit = ChoiceInput(texts.FIT_CHOICES, value=FITS[0], label=texts.FIT_LABEL)
        with gr.Column(min_width=320):
            scores = gr.Markdown(table)
            heat = png_image("Bits of patches in excess of held-out images", chart=True, height=280, value=first)
    page.refreshes(Refresh(anomaly, [image, fit], [heat, scores]))


def add_game(page: Page) -> None:
    """Add the game, whose moves `page.js` makes in the browser."""
    pictures = variants(page.demo, page.examples)
    bits = {name: bits_of(page.demo, image) for name, image in pictures.items()}
    pairs = [
        [{"name": name, "bits": bits[name], "source": _source(pictures[name])} for name in pair] for pair in PAIRS
    ]
    gr.Markdown(f"## The game\n{texts.GAME_HELP}")
    gr.HTML(f'<div class="jet-game" data-pairs="{escape(strict_json(pairs))}"></div>', js_on_load=None)


def bits_of(demo: JetDemo, image: Image.Image) -> float:
    """Return the bits per dimension of an image at the model's size."""
    return round(demo.score(demo.fitted(image), NUM_NOISE_DRAWS).bits_per_dim, 3)


def _source(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
