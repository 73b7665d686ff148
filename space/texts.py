# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts of the page."""

from jet_demo import JetDemo, Score


FIT_CHOICES = [
    ("Resize: average the central square down", "resize"),
    ("Crop: take the central pixels unchanged", "crop"),
]
FIT_LABEL = "Fit to the model's size"
SAMPLING_HELP = (
    "The model starts from noise and inverts its coupling layers one after another until an image appears. At "
    "**temperature** 1 the images are samples of the density that also gives the scores. Lower temperatures give less "
    "varied images, and 0 gives the single image at the center of the latent space. The same **seed** gives the same "
    "images."
)
RECONSTRUCTION_HELP = (
    "A flow loses nothing: every image has exactly one latent, and the latent gives the image back. Edit the latent "
    "in between, and see what the model makes of it."
)
INTERPOLATION_HELP = "From one image to another, along the great circle between their latents."
HEAT_MAPS_HELP = "### Where the bits are\nBits per dimension of each patch. The two terms add up to the total."
LIKELIHOOD_HELP = """### What a likelihood tells you, and what it does not
**Bits per dimension** are the negative binary logarithm of the probability that the model assigns to this 8-bit image,
divided by the number of its values. A perfect compressor that uses the model would spend this many bits on each value.
A uniform model spends 8. The score is an upper bound that depends slightly on random noise between the 256 levels.
Several noise draws therefore give a mean and a standard error.

**Few bits do not mean that an image resembles the training data.** A blank wall takes fewer bits than any photograph,
and static takes the most. The score does not distinguish real images from generated ones, or good ones from bad ones.
It measures how predictable these pixels are for this model at this size. Scaling, sharpening and JPEG compression all
change it.
"""
SECOND_IMAGE = "Second image"
SCORE_HINT = "Upload, paste or choose an image, and press *Score*."
RECONSTRUCTION_HINT = "The demo encodes and decodes your image, and measures the difference."


def introduction(demo: JetDemo) -> str:
    """Describe the flow and the model."""
    config, held_out = demo.model.config, demo.held_out
    scores = (
        f" {held_out.title} take {held_out.bits_per_dim.mean():.2f} bits per dimension on average." if held_out else ""
    )
    return (
        "# Jet: a normalizing flow\n"
        "Jet maps images to noise and noise to images, exactly. It can therefore do what other generative models "
        "cannot: compute the **likelihood** of any image.\n\n"
        f"Model: **{demo.title}**, {config.image_size} x {config.image_size} pixels, "
        f"{config.num_coupling_layers} coupling layers, {demo.model.num_parameters() / 1e6:.1f} M parameters."
        f"{scores} [Paper](https://arxiv.org/abs/2412.15129)"
    )


def sampling_status(done: int, num_layers: int) -> str:
    """Describe the progress of sampling."""
    return f"{done} of {num_layers} coupling layers inverted."


def score_summary(score: Score, image_size: int) -> str:
    """Describe a score."""
    error, log_likelihood = score.standard_error, score.to_dict()["log_likelihood"]
    if error is None:
        spread, draws = "", "One noise draw."
    else:
        spread = f" ± {error:.4f}"
        draws = f"Mean of {len(score.draws)} noise draws from {score.draws.min():.3f} to {score.draws.max():.3f}."
    lines = [
        f"## {score.bits_per_dim:.3f}{spread} bits per dimension",
        draws,
        "",
        "| | bits per dimension |",
        "|---|---:|",
        f"| this model | {score.bits_per_dim:.3f} |",
        f"| PNG file of the same pixels | {score.png_bits_per_dim:.3f} |",
        f"| lossless WebP file | {score.webp_bits_per_dim:.3f} |",
        "| uniform model | 8 |",
        "",
        f"Log-likelihood: {log_likelihood:,.0f} nats for {score.num_dims:,} values.",
    ]
    if score.share_above is not None:
        lines.append(f"{score.share_above:.0%} of the held-out images take more bits than this one.")
    if image_size <= 64:
        lines.append(
            f"At {image_size} x {image_size} pixels, file headers are a large part of the PNG and WebP files."
        )
    return "\n".join([*lines, "", *(f"*{note}*" for note in score.fitted.notes)])


def reconstruction_result(measured: dict, num_values: int) -> str:
    """Describe the accuracy of a reconstruction."""
    equal = "**all are equal to those of the original**" if measured["bytes_equal"] else "**not all are equal**"
    return (
        f"The largest error of the dequantized values is **{measured['max_abs_error']:.1e}**, on a scale from -1 to 1 "
        f"on which a gray level is 7.8e-03. Of the {num_values:,} decoded bytes, {equal}."
    )
