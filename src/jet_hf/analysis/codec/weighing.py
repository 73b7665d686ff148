# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Size of a compressed dataset, term by term, beside the model's bits per dimension and other codecs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
from tqdm.auto import tqdm

from ...data import PixelImages
from ...data.pixels import LABEL
from ...model.modeling_jet import JetForDensityEstimation
from ..baselines import available_codecs, codec_bits_per_dim
from ..evaluation import evaluate
from . import container
from .api import Codec
from .container import GROUP
from .errors import CodecError


# Images that other codecs compress at a time.
BATCH_SIZE = 64


@dataclass(frozen=True)
class Terms:
    """
    Bits per dimension of a file of images of the model's size, which are the sum of all fields.

    Args:
        model: The model's score.
        first_images: Images that are coded as WebP, to have bits to borrow: their size minus the model's score.
        rounding: Integers in place of real numbers, and other dequantization noise than that of the score.
        table: The table of the base density in place of N(0, 1). It gives outliers fewer bits.
        coder: Bits that the coder could not use.
        header: Everything before the stack.
    """

    model: float
    first_images: float
    rounding: float
    table: float
    coder: float
    header: float


def weigh(
    model: JetForDensityEstimation,
    dataset: datasets.Dataset,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> tuple[bytes, dict]:
    """
    Compress a dataset, and explain the size.

    Args:
        model: Density model.
        dataset: Pixels from [`load_pixels`], with classes for a class-conditional model.
        batch_size: Number of images that a conditioner takes at a time.
        seed: Seed of the noise of the model's score.
        progress: Whether to show progress bars on stderr.

    Returns:
        The file; and the model's bits per dimension with their standard error, those of the file, the difference by
        [`Terms`], the speeds, and the bits of other codecs, each image a file, ready for JSON.

    Raises:
        CodecError: for images that are not restored.
        ValueError: for a model that the codec has no integer maps for, or a dataset without images.
    """
    codec = Codec(model, batch_size)
    images = PixelImages(dataset)
    labels = dataset.with_format("numpy", columns=[LABEL])[:][LABEL] if model.config.num_classes is not None else None
    evaluation = evaluate(model, dataset, seed=seed, progress=progress)
    start = time.monotonic()
    data, weight = codec.compress(images, labels, allow_webp=False, verify=False, progress=progress)
    end = time.monotonic()
    (file,) = container.unpack(data)
    for i, image in codec.decode(*file, progress=progress):
        if not np.array_equal(image, images[i]):
            raise CodecError(f"image {i} is not restored.")
    speeds = {"compress": len(images) / (end - start), "decompress": len(images) / (time.monotonic() - end)}
    _, header, body = file
    is_coded = np.concatenate([np.full(step[1], step[0] == GROUP) for step in header.steps])
    scores = evaluation.bits_per_dim.numpy() * model.config.num_dims
    tally, tile_bits = weight.tally, 8 * weight.tile_bytes
    bits = {
        "model": scores.sum(),
        "first_images": tile_bits - scores[~is_coded].sum(),
        "rounding": tally.maps + tally.normal - scores[is_coded].sum(),
        "table": tally.table - tally.normal,
        "coder": 8 * len(body) - tile_bits - tally.maps - tally.table,
        "header": 8 * (len(data) - len(body)),
    }
    terms = Terms(**{name: float(value) / weight.num_dims for name, value in bits.items()})
    result = {
        "num_images": len(images),
        "num_bytes": len(data),
        "bits_per_dim": evaluation.mean,
        "standard_error": evaluation.standard_error,
        "file_bits_per_dim": weight.bits_per_dim,
        "terms": vars(terms),
        "images_per_second": speeds,
        "codecs": {name: float(np.mean(list(_codec_bits(dataset, name, progress)))) for name in available_codecs()},
    }
    return data, result


def _codec_bits(dataset: datasets.Dataset, codec: str, progress: bool) -> Iterator[float]:
    """Yield the bits per dimension of each image as a file of another codec."""
    images = PixelImages(dataset)
    for start in tqdm(range(0, len(images), BATCH_SIZE), unit="batch", desc=codec, disable=not progress):
        batch = [images[i] for i in range(start, min(start + BATCH_SIZE, len(images)))]
        yield from codec_bits_per_dim(np.stack(batch).transpose(0, 3, 1, 2), codec)


def describe(result: dict) -> str:
    """Return the result of [`weigh`] as a table of bits per dimension."""
    error = f"+/- {result['standard_error']:.4f}, one draw of noise" if result["num_images"] > 1 else ""
    causes = {
        "first_images": "first images, coded as WebP",
        "rounding": "integers for real numbers, and another draw of noise",
        "table": "table for N(0, 1), lighter for outliers",
        "coder": "bits that the coder could not use",
        "header": "header",
    }
    speeds = ", ".join(f"{name} {speed:.0f} images/s" for name, speed in result["images_per_second"].items())
    lines = [f"{'model':15} {result['bits_per_dim']:8.4f}  {error}"]
    lines += [f"  {name:13} {result['terms'][name]:+8.4f}  {cause}" for name, cause in causes.items()]
    lines.append(f"{'file':15} {result['file_bits_per_dim']:8.4f}  {result['num_bytes']:,} bytes; {speeds}")
    lines += [f"{name:15} {value:8.4f}  each image a file" for name, value in result["codecs"].items()]
    return "\n".join(lines)
