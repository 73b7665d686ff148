# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf decompress`."""

from collections import Counter
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm.auto import tqdm

from ..analysis.codec.container import Header, unpack
from ..arguments import DecompressArguments
from ..hub import load_config
from ..utils.files import new_folder
from .compress import EXPECTED_ERRORS as EXPECTED_ERRORS
from .compress import in_processes, is_watched, load_codec


def run(arguments: DecompressArguments) -> None:
    """Write the images of a file to a new folder."""
    files = list(unpack(Path(arguments.file).read_bytes()))
    load_config(arguments.model, "model")
    names = png_names([header for _, header, _ in files])
    with new_folder(arguments.output) as folder:
        tasks = []
        for kind, header, body in files:
            count = header.num_images
            tasks.append((arguments, folder, kind, header, bytes(body), names[:count]))
            names = names[count:]
        with tqdm(total=len(tasks), unit="part", disable=len(tasks) == 1 or not is_watched()) as bar:
            count = 0
            for number in in_processes(_write_images, tasks, arguments):
                count += number
                bar.update()
    print(f"{arguments.output}: {count} image(s)")


def png_names(headers: list[Header]) -> list[str]:
    """Return the name of a PNG file for each image: that of its source, or its index, after which no two are equal."""
    names = []
    for header in headers:
        names += header.names or [""] * header.num_images
    # Names from elsewhere must not lead out of the folder.
    stems = [PurePosixPath(name.replace("\\", "/").replace("\0", "")).stem.lstrip(".") for name in names]
    counts = Counter(stem.lower() for stem in stems)
    unique = [
        stem if stem and counts[stem.lower()] == 1 else f"{i:05d}_{stem}".rstrip("_") for i, stem in enumerate(stems)
    ]
    return [f"{stem}.png" for stem in unique]


def _write_images(
    arguments: DecompressArguments, folder: Path, kind: int, header: Header, body: bytes, names: list[str]
) -> int:
    codec = load_codec(arguments)
    for i, image in codec.decode(kind, header, memoryview(body), is_watched() and arguments.num_proc == 1):
        Image.fromarray(image[:, :, 0] if header.channels == 1 else image).save(folder / names[i])
    return header.num_images
