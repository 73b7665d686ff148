# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""What the demo says."""

from jet_demo import JetDemo, Score


FIT_CHOICES = [
    ("Resize: the central square, averaged down", "resize"),
    ("Crop: the central pixels as they are", "crop"),
]
SAMPLING_HELP = (
    "Noise goes in, the layers of the flow are undone one after the other, images come out. At **temperature** 1 they "
    "are samples of the density that the model scores with; below, they are tamer; at 0, the single image in the "
    "middle. The same **seed** gives the same images."
)
RECONSTRUCTION_HELP = (
    "A flow loses nothing: each image has one point of latents, and these give the image back. Edit the latents in "
    "between, and see what comes out."
)
INTERPOLATION_HELP = "From one image to another, along the great circle between their latents."
LIKELIHOOD = """### What a likelihood says, and what not
**Bits per dimension** are -log₂ of the probability that the model gives to this 8-bit image, divided by its number of
values: what a perfect coder that knows the model would spend on each. A model that knows nothing spends 8. It is an
upper bound, which depends a little on the noise that fills the gaps between the 256 levels; hence several draws, and
their spread.

**Few bits do not mean that an image resembles what the model has learnt from.** A blank wall takes fewer bits than any
photograph, and static the most. Nor does it tell real from generated, or good from bad. It says how predictable these
pixels are to this model, at this size: scaling, sharpening and JPEG all change it.
"""


def introduction(demo: JetDemo) -> str:
    config = demo.model.config
    held_out = ""
    if demo.held_out:
        held_out = (
            f" {demo.held_out.title} take {demo.held_out.bits_per_dim.mean():.2f} bits per dimension on average."
        )
    return (
        "# Jet: a normalizing flow\n"
        "It turns images into noise and noise into images, exactly, and so it can do what other generators cannot: "
        "tell the **likelihood** of any image.\n\n"
        f"Model: **{demo.title}**, {config.image_size} x {config.image_size} pixels, "
        f"{config.num_coupling_layers} coupling layers, {demo.model.num_parameters() / 1e6:.1f} M parameters."
        f"{held_out} [Paper](https://arxiv.org/abs/2412.15129)"
    )


def sampling_status(done: int | None, num_layers: int) -> str:
    if done is None:
        return f"Ready: {num_layers} coupling layers to undo."
    return f"{done} of {num_layers} coupling layers undone."


def score_summary(score: Score | None, demo: JetDemo) -> str:
    if score is None:
        return "Upload, paste or pick an image, and press *Score*."
    error, fields = score.standard_error, score.to_dict()
    spread = f" ± {error:.4f}" if error is not None else ""
    draws = f"mean of {len(score.draws)} noise draws, from {score.draws.min():.3f} to {score.draws.max():.3f}"
    lines = [
        f"## {score.bits_per_dim:.3f}{spread} bits per dimension",
        draws if error is not None else "one noise draw",
        "",
        "| | bits per dimension |",
        "|---|---:|",
        f"| this model | {score.bits_per_dim:.3f} |",
        f"| PNG file of the same pixels | {score.png_bits_per_dim:.3f} |",
        f"| lossless WebP file | {score.webp_bits_per_dim:.3f} |",
        "| a model that knows nothing | 8 |",
        "",
        f"Log-likelihood: {fields['log_likelihood']:,.0f} nats, over {score.num_dims:,} values.",
    ]
    if score.share_above is not None:
        lines.append(f"{score.share_above:.0%} of the held-out images take more bits than this one.")
    size = demo.model.config.image_size
    if size <= 64:
        lines.append(f"At {size} x {size} pixels, the headers of the files weigh much.")
    return "\n".join([*lines, "", *(f"*{note}*" for note in score.fitted.notes)])


def reconstruction_result(measured: dict | None, num_values: int | None) -> str:
    if measured is None:
        return "Encoding and decoding again is measured on your image, here and now."
    equal = "**all are equal to those of the original**" if measured["bytes_equal"] else "**not all are equal**"
    return (
        f"Largest error of the dequantised values: **{measured['max_abs_error']:.1e}**, on a scale from -1 to 1, "
        f"where a grey level is 7.8e-03. Of the {num_values:,} bytes that came back, {equal}."
    )
