# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Functions of the API, whose names and parameters README.md documents and must not change."""

from collections.abc import Callable, Sequence

import gradio as gr
import jet_demo
from charts import heat_maps, overlay
from components import ChoiceInput, ImageInput, NumberInput, png_gallery, png_image
from jet_demo import ALL_CLASSES, FITS, MAX_CLASS, MAX_SEED, WHOLE
from page import Page


def add_api(page: Page) -> None:
    """Add the functions that the model has."""
    add_sampling_and_scoring(page)
    if page.demo.codec is not None:
        add_codec(page)
    if page.demo.detector is not None:
        add_anomaly(page)
    if page.demo.prior is not None:
        add_denoising(page)


def publish(page: Page, function: Callable, inputs: Sequence, outputs: Sequence, fit: str = FITS[0]) -> None:
    """Add a function under its own name."""
    gr.Button().click(inputs=inputs, outputs=outputs, **page.computes(function, function.__name__, fit))


def image_and_fit(page: Page) -> tuple[ImageInput, ChoiceInput]:
    """Create the inputs of a function of an image."""
    return page.image_input("image"), ChoiceInput(list(FITS), value=FITS[0], label="fit")


def add_sampling_and_scoring(page: Page) -> None:
    """Add the functions of every model."""
    demo = page.demo

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

    image, fit = image_and_fit(page)
    image_a, image_b = map(page.image_input, ("image_a", "image_b"))
    num_images = NumberInput(1, jet_demo.MAX_IMAGES, 4, step=1, precision=0, label="num_images")
    temperature = NumberInput(0, jet_demo.MAX_TEMPERATURE, 1, label="temperature")
    seed = NumberInput(0, MAX_SEED, 0, step=1, precision=0, label="seed")
    label = NumberInput(ALL_CLASSES, MAX_CLASS, ALL_CLASSES, step=1, precision=0, label="label")
    model = ChoiceInput(list(page.samplers), value=demo.title, label="model")
    draws = NumberInput(1, jet_demo.MAX_NOISE_DRAWS, 8, step=1, precision=0, label="num_noise_draws")
    steps = NumberInput(2, jet_demo.MAX_STEPS, 8, step=1, precision=0, label="steps")
    picture, gallery, answer = png_image("picture"), png_gallery("images"), gr.JSON(label="result")
    publish(page, sample, [num_images, temperature, seed, label, model], [gallery])
    publish(page, score, [image, draws, fit], [answer, picture])
    publish(page, reconstruct, [image, fit], [picture, answer])
    publish(page, interpolate, [image_a, image_b, steps], [gallery])


def add_codec(page: Page) -> None:
    """Add the functions that make pictures files, and files pictures."""

    def compress(image):
        """Compress a picture without loss. Pictures of more than 256 pixels a side are averaged down first."""
        result = page.demo.compress(image)
        return page.storage.add_result(result.data, "picture.jet"), result.to_dict()

    def decompress(file):
        """Decompress a file of `compress`."""
        return page.demo.decompress(file)

    image, file = page.image_input("image"), page.file_input("file")
    packed, picture, answer = gr.File(label="packed"), png_image("picture"), gr.JSON(label="result")
    publish(page, compress, [image], [packed, answer], fit=WHOLE)
    publish(page, decompress, [file], [picture, answer])


def add_anomaly(page: Page) -> None:
    """Add the function that compares an image with held-out images."""

    def anomaly(image, fit):
        """Compare an image with held-out images: scores, p-values, and a heat map. fit: "resize" or "crop"."""
        table, excess = page.demo.judge(image)
        return table, overlay(page.demo.picture(image), excess, centered=True)

    image, fit = image_and_fit(page)
    publish(page, anomaly, [image, fit], [gr.JSON(label="result"), png_image("picture")])


def add_denoising(page: Page) -> None:
    """Add the function that removes noise from an image."""

    def denoise(image, sigma, fit):
        """Remove Gaussian noise. sigma: 1 to 100, its standard deviation in gray levels; fit: "resize" or "crop"."""
        return page.demo.denoise(image, sigma)

    image, fit = image_and_fit(page)
    sigma = NumberInput(jet_demo.MIN_NOISE, jet_demo.MAX_NOISE, 25, label="sigma")
    publish(page, denoise, [image, sigma, fit], [png_image("picture")])
