# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tab that computes the likelihood of an image."""

from pathlib import Path

import gradio as gr
import jet_demo
import numpy as np
import texts
from charts import histogram, overlay
from components import ChoiceInput, Named, NumberInput, png_image
from jet_demo import FITS, JetDemo, Score
from page import Page, Refresh


NUM_NOISE_DRAWS = 8


def heat_map(score: Score, demo: JetDemo, title: str, **options) -> Named:
    """Return the map of a title out of `MAPS`, laid over the image. `options` are those of [`overlay`]."""
    return Named(overlay(demo.picture(score.fitted), score.maps[title], **options), f"jet-{texts.slug(title)}.png")


def pictures(score: Score, demo: JetDemo) -> tuple:
    """Return the pictures of a score: the model's input, its place among held-out images, and the maps."""
    seen = Named(demo.picture(score.fitted), "jet-model-input.png")
    place = demo.held_out and histogram(demo.held_out.bits_per_dim, score.bits_per_dim)
    return seen, place, *(heat_map(score, demo, title) for title in jet_demo.MAPS)


def add_scoring(page: Page) -> None:
    """Add the tab."""
    demo = page.demo

    def score(image, num_noise_draws, fit, progress=gr.Progress()):  # noqa: B008
        if image is None:
            return *[None] * 5, texts.SCORE_HINT
        progress(0.1, desc="scoring")
        result = demo.score(image, num_noise_draws)
        progress(0.6, desc="drawing")
        return *pictures(result, demo), texts.score_summary(result, demo.model.config.image_size)

    paths = {word: path for word in texts.PICTURE_TITLES for path in page.examples if word in Path(path).name}
    scores = {word: demo.score(demo.load(path), NUM_NOISE_DRAWS) for word, path in paths.items()}
    totals = [score.maps[jet_demo.MAPS[0]] for score in scores.values()]
    limits = (min(map(np.min, totals)), max(map(np.max, totals)))
    gr.Markdown(texts.three_pictures(scores))
    with gr.Row():
        for word, result in scores.items():
            with gr.Column(min_width=240):
                heat = heat_map(result, demo, jet_demo.MAPS[0], limits=limits)
                png_image(texts.PICTURE_TITLES[word], chart=True, height=280, value=heat)
                gr.Markdown(texts.picture_caption(result))
    gr.Markdown("## Score your own picture")
    example, first = next(iter(scores.items()))
    seen_value, place_value, *maps = pictures(first, demo)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            image = page.image_input("Image", optional=True, height=280, value=paths[example])
            page.example_images(image)
            fit = ChoiceInput(texts.FIT_CHOICES, value=FITS[0], label=texts.FIT_LABEL)
            draws = NumberInput(1, jet_demo.MAX_NOISE_DRAWS, NUM_NOISE_DRAWS, step=1, precision=0, label="Noise draws")
        with gr.Column(scale=2, min_width=320):
            summary = gr.Markdown(texts.score_summary(first, demo.model.config.image_size), min_height=300)
            with gr.Row():
                seen = png_image("Model input", height=240, min_width=200, value=seen_value)
                place = png_image(
                    "Among held-out images",
                    chart=True,
                    height=240,
                    min_width=280,
                    visible=demo.held_out is not None,
                    value=place_value,
                )
    gr.Markdown(texts.HEAT_MAPS_HELP)
    with gr.Row():
        heat = [
            png_image(title.capitalize(), chart=True, height=300, min_width=240, value=value)
            for title, value in zip(jet_demo.MAPS, maps, strict=True)
        ]
    gr.Markdown(texts.LIKELIHOOD_HELP)
    outputs = [seen, place, *heat, summary]
    page.refreshes(Refresh(score, [image, draws, fit], outputs, live=[draws], options={"show_progress_on": [summary]}))
