# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf compress`."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm

from ..arguments import CodecArguments, CompressArguments
from ..codec import Codec, Weight
from ..hub import load_config
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.files import replace_file
from .sample import open_image


EXPECTED_ERRORS = (StrictDataclassError, BrokenProcessPool)
# Images of a part of the file, when several processes make the parts.
IMAGES_OF_PART = 64
# Modes of images that hold the pixels of a model with this number of channels.
MODES = {1: ("L", "1"), 3: ("RGB", "L", "1", "P")}


class ImageFiles(Sequence[np.ndarray]):
    """
    Image files as arrays, read on access.

    Args:
        paths: Files.
        channels: Number of channels of the arrays.
    """

    def __init__(self, paths: Sequence[str], channels: int):
        self.paths, self.channels = paths, channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        with open_image(path) as image:
            if image.mode not in MODES[self.channels] or image.has_transparency_data:
                words = " or ".join(MODES[self.channels])
                raise ValueError(f"{path} must be an image of the mode {words} and opaque, got {image.mode}.")
            pixels = np.asarray(image.convert("L" if self.channels == 1 else "RGB"))
        return pixels[:, :, None] if self.channels == 1 else pixels


def run(arguments: CompressArguments) -> None:
    """Compress images into a file."""
    output = Path(arguments.output)
    if not output.absolute().parent.is_dir() or output.is_dir():
        raise ValueError(f"`output` must be a file in an existing folder, got {output}.")
    for path in arguments.files:
        if output.exists() and Path(path).exists() and output.samefile(path):
            raise ValueError(f"`output` must not be one of the images, got {output}.")
    load_config(arguments.model, "model")
    size = len(arguments.files) if arguments.num_proc == 1 else IMAGES_OF_PART
    parts = [arguments.files[i : i + size] for i in range(0, len(arguments.files), size)]
    with tqdm(total=len(arguments.files), unit="image", disable=arguments.num_proc == 1 or not is_watched()) as bar:
        files, weights = [], []
        for data, weight in in_processes(_compress, [(arguments, part) for part in parts], arguments):
            files.append(data)
            weights.append(weight)
            bar.update(min(size, len(arguments.files) - bar.n))
    replace_file(output, lambda draft: draft.write_bytes(b"".join(files)))
    num_bytes, num_dims = sum(map(len, files)), sum(weight.num_dims for weight in weights)
    is_webp = all(weight.is_webp for weight in weights)
    note = ", as plain WebP, which is smaller than the model's" if is_webp else ""
    rate = 8 * num_bytes / num_dims
    print(f"{output}: {len(arguments.files)} image(s) in {num_bytes:,} bytes, {rate:.3f} bits per dimension{note}")


def load_codec(arguments: CodecArguments) -> Codec:
    """Load the model of a command into a codec."""
    model = JetForDensityEstimation.from_pretrained(arguments.model).eval()
    return Codec(model, arguments.batch_size)


def is_watched() -> bool:
    """Return whether stderr is a terminal, for progress bars."""
    return sys.stderr.isatty()


def in_processes(work: Callable, tasks: Sequence[tuple], arguments: CodecArguments) -> Iterator[Any]:
    """Yield the results of work on each task, done in as many processes as the command has."""
    num_proc = min(arguments.num_proc, len(tasks))
    if num_proc < 2:
        for task in tasks:
            yield work(*task)
        return
    num_threads = max(1, (os.cpu_count() or 1) // num_proc)
    # Forks of this process, which has threads, may hang. The fork server imports once for all processes.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(num_proc, context, torch.set_num_threads, (num_threads,)) as pool:
        try:
            yield from pool.map(work, *zip(*tasks, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)


def _compress(arguments: CompressArguments, paths: Sequence[str]) -> tuple[bytes, Weight]:
    codec = load_codec(arguments)
    return codec.compress(
        ImageFiles(paths, codec.config.num_channels),
        labels=None if arguments.label is None else [arguments.label] * len(paths),
        names=[Path(path).name for path in paths],
        allow_webp=arguments.allow_webp,
        verify=arguments.verify,
        progress=arguments.num_proc == 1 and is_watched(),
    )
