# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts of the page."""

import re

from jet_demo import CompressedPicture, JetDemo, Score


FIT_CHOICES = [
    ("Resize: average the central square down", "resize"),
    ("Crop: take the central pixels unchanged", "crop"),
]
FIT_LABEL = "Fit to the model's size"
SAMPLING_HINT = "Enter a seed to draw samples."
SAMPLING_HELP = (
    "The model starts from noise and inverts its coupling layers one after another until an image appears. At "
    "**temperature** 1 the images are samples of the density that also gives the scores. Lower temperatures give less "
    "varied images, and 0 gives the single image at the center of the latent space. The same **seed** gives the same "
    "images."
)
RECONSTRUCTION_HELP = (
    "A flow loses nothing: every image has exactly one latent, and the latent gives the image back. Edit the latent "
    "in between, and see what the model makes of it: move a slider, or click a patch of the model input, which then "
    "gets new latents."
)
INTERPOLATION_HELP = "From one image to another, along the great circle between their latents."
HEAT_MAPS_HELP = "## Where the bits are\nBits per dimension of each patch. The two terms add up to the total."
LIKELIHOOD_HELP = """## What a likelihood tells you, and what it does not
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
SCORE_HINT = "Upload, paste or choose an image."
RECONSTRUCTION_HINT = "Upload, paste or choose an image, which the demo then encodes and decodes."
INTERPOLATION_HINT = "Upload, paste or choose both images."
NO_RESULT = "There is no result: the message says why."
EDITED = "After the edit"
FILE_HELP = (
    "A likelihood is a promise of a file size. The codec keeps it: its file has as many bits as the model says, and "
    "gives back every byte of the picture."
)
PACKED_FILE = "File of this demo"
FILE_HINT = "Upload, paste or choose a picture."
DECOMPRESSION_HINT = "Upload a file that you have downloaded above."
ANOMALY_HELP = (
    "Is a picture odd? The likelihood alone says little: a blank wall takes few bits. Other scores compare the bits "
    "with those of a codec, with those of held-out images, and patch by patch. A **p-value** is the share of held-out "
    "images that are as odd: small ones are suspicious."
)
SCORE_TITLES = {
    "negative_log_likelihood": "bits per dimension",
    "complexity_corrected": "bits minus those of a codec",
    "typicality": "distance from the usual bits",
    "latent_norm": "distance from the usual norm of the latents",
    "gradient_norm": "norm of the gradient",
    "likelihood_ratio": "bits minus those of a background model",
    "largest_patch": "oddest patch",
}
GAME_HELP = (
    "**Which picture takes fewer bits?** Few bits do not mean that a picture is like the training data. Ten pairs "
    "show what a likelihood prefers."
)
# Formats of lossless files, by the names of `jet_hf.analysis.baselines`.
FORMATS = {"jet": "this file", "png": "PNG", "webp": "WebP", "jpegls": "JPEG-LS", "jpegxl": "JPEG XL"}
# Titles of the pictures of the first view, by the words in the names of their files.
PICTURE_TITLES = {"coffee": "A photograph", "smooth": "A smooth picture", "static": "Static"}


def slug(words: str) -> str:
    """Return words as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


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


def three_pictures(scores: dict[str, Score]) -> str:
    """Compare the scores of the first view."""
    photograph, smooth, static = (f"{scores[word].bits_per_dim:.2f}" for word in PICTURE_TITLES)
    return (
        "## How many bits does a picture take?\n"
        f"The model spends **{photograph} bits** on each value of a photograph that it has never seen, {smooth} on a "
        f"smooth picture, where it can guess the next value from the last, and {static} on static, where there is "
        "nothing to guess. The colors, on one scale for all three, show where the bits go: edges are expensive, and "
        "plain areas are cheap."
    )


def picture_caption(score: Score) -> str:
    """Describe a picture of the first view."""
    return f"**{score.bits_per_dim:.2f} bits per dimension** (PNG: {score.png_bits_per_dim:.2f})"


def walk_result(steps: int) -> str:
    """Describe a walk."""
    return f"{steps} images, decoded from {steps} latents between the two."


def position_result(position: float) -> str:
    """Describe a position between two images."""
    return f"{1 - position:.0%} of the way is left."


def file_sizes(result: CompressedPicture) -> str:
    """Compare the sizes of lossless files of a picture."""
    sizes = result.to_dict()
    lines = [
        f"## {sizes['bytes']['jet']:,} bytes for {sizes['width']} x {sizes['height']} pixels",
        "",
        "| lossless file | bytes | bits per dimension |",
        "|---|---:|---:|",
        *(
            f"| {FORMATS[name]} | {size:,} | {sizes['bits_per_dim'][name]:.3f} |"
            for name, size in sizes["bytes"].items()
        ),
        "",
    ]
    if result.is_webp:
        lines.append("WebP makes a smaller file of this picture than the model does, so the file holds plain WebP.")
    lines.append("The server has decompressed the file, and every byte was equal.")
    return "\n".join([*lines, "", *(f"*{note}*" for note in result.fitted.notes)])


def anomaly_table(table: dict[str, dict[str, float]]) -> str:
    """Describe the anomaly scores of an image."""
    rows = [
        f"| {SCORE_TITLES[name]} | {values['score']:.3f} | {values['p_value']:.3f} |" for name, values in table.items()
    ]
    return "\n".join(["| score | value | p-value |", "|---|---:|---:|", *rows])


def decompressed(measured: dict) -> str:
    """Describe a decompressed picture."""
    return (
        f"**{measured['width']} x {measured['height']} pixels, equal to those that were compressed**: they have the "
        f"checksum {measured['checksum']}, which the file holds."
    )


def score_summary(score: Score, image_size: int) -> str:
    """Describe a score."""
    error, log_likelihood = score.standard_error, score.to_dict()["log_likelihood"]
    if error is None:
        spread, draws = "", "One noise draw."
    else:
        spread = f" ± {error:.4f}"
        draws = f"Mean of {len(score.draws)} noise draws from {score.draws.min():.3f} to {score.draws.max():.3f}."
    lines = [
        f"### {score.bits_per_dim:.3f}{spread} bits per dimension",
        draws,
        "",
        "| coder | bits per dimension |",
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
