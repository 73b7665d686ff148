# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""From data sets of images to data sets of pixels: the bytes that the model scores."""

import io
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from datasets.utils.file_utils import xopen
from PIL import Image

from .. import __version__
from ..model.image_processing_jet import JetImageProcessor
from .releases import check_release
from .sources import DataSource, find_image_column, known_release, open_split, preparation_record


logger = logging.getLogger(__name__)

PIXELS = "pixels"
LOSSY_FORMATS = {"AVIF", "JPEG", "JPEG2000", "MPO", "WEBP"}
NUM_NAMES_LOGGED = 100


class UndecodableImagesError(RuntimeError):
    """More images than allowed cannot be decoded."""


class UndecodableImageError(ValueError):
    """One image cannot be decoded; the message says why."""


@dataclass(frozen=True)
class UndecodableLimit:
    """
    How many undecodable images are too many.

    Args:
        share: The largest share that is allowed.
        num_images: Images of the split.
        where: What the split is called in messages.
    """

    share: float
    num_images: int
    where: str

    def check(self, undecodable: list[str]) -> None:
        """Raises UndecodableImagesError where these, named, are more than the share, or all that there are."""
        if len(undecodable) > self.share * self.num_images or len(undecodable) == self.num_images > 0:
            raise self.error(undecodable)

    def error(self, undecodable: list[str]) -> UndecodableImagesError:
        """The error that these, named, are."""
        return UndecodableImagesError(
            f"{len(undecodable)} of {self.num_images} images of {self.where} cannot be decoded, more than "
            f"max_undecodable_share={self.share:g} allows; the first are: {'; '.join(undecodable[:5])}."
        )


@dataclass(frozen=True)
class PixelSplit:
    """
    A split as pixels.

    Args:
        dataset: One column, `pixels`: uint8 arrays (C, S, S).
        num_skipped: Images that could not be decoded.
        source_format: Encoding of the source, such as "JPEG", or "JPEG, PNG" if mixed; `None` for raw bytes.
    """

    dataset: datasets.Dataset
    num_skipped: int
    source_format: str | None

    @property
    def lossy(self) -> bool:
        """Whether the source's encoding loses information. WebP counts as lossy: few files of it are not."""
        return not LOSSY_FORMATS.isdisjoint((self.source_format or "").split(", "))


def load_pixels(
    source: DataSource,
    split: str,
    processor: JetImageProcessor,
    *,
    random_crops_per_image: int | None = None,
    max_images: int | None = None,
    max_undecodable_share: float = 0.001,
    num_proc: int | None = None,
    seed: int = 0,
) -> PixelSplit:
    """
    Decodes, crops and resizes every image of a split once, as the processor is configured.

    The pixels are cached on the disk by `datasets`; those of a streaming source are read through and held in memory.

    Args:
        source, split: What to read.
        processor: Makes the pixels.
        random_crops_per_image: Crops of full resolution that are cut at random places out of each image, in place of
            resizing it.
        max_images: Reads the first images only.
        max_undecodable_share: Share of undecodable images above which an error is raised. Fewer are skipped, counted,
            and named in the log.
        num_proc: Processes that decode.
        seed: Draws the places of crops.

    Raises:
        ValueError: see [`open_split`] and [`check_release`]; also if there is no image.
        UndecodableImagesError: if more than the allowed share of images cannot be decoded.
    """
    dataset = open_split(source, split)
    column = find_image_column(dataset.features, source.image_column)
    is_stream = isinstance(dataset, datasets.IterableDataset)
    release = known_release(source)
    prepared = preparation_record(source.path).get("splits", {}) if source.path else {}
    num_left_out = prepared.get(split, {}).get("num_skipped", 0) if max_images is None else 0
    if max_images is not None:
        dataset = dataset.take(max_images) if is_stream else dataset.select(range(min(max_images, len(dataset))))
    elif not is_stream:
        check_release(release, split, len(dataset) + num_left_out)
    decoder = _Decoder(processor, column, random_crops_per_image, seed)
    where = f"split {split!r} of {source.name or source.path}"
    if is_stream:
        decoded, num_images = _read_through(dataset, decoder)
        if max_images is None:
            check_release(release, split, num_images + num_left_out)
        pixels = _keep_decoded(decoded, UndecodableLimit(max_undecodable_share, num_images, where))
    else:
        pixels = _decode_all(dataset, decoder, max_undecodable_share, num_proc, where)
    return replace(
        pixels,
        num_skipped=pixels.num_skipped + num_left_out,
        source_format=pixels.source_format or prepared.get(split.split("[")[0], {}).get("source_format"),
    )


def to_pixels(dataset: datasets.Dataset, processor: JetImageProcessor, num_proc: int | None = None):
    """
    Decodes, crops and resizes every image of a map-style dataset once, as the processor is configured.

    Returns:
        Dataset with one column, `pixels`: uint8 arrays (C, S, S).
    """
    dataset, column = _with_encoded_images(dataset)
    return _decode_all(dataset, _Decoder(processor, column), 0.001, num_proc).dataset


def to_random_crops(dataset: datasets.Dataset, image_size: int, crops_per_image: int, seed: int):
    """
    Cuts crops of full resolution at random places out of every image of a map-style dataset.

    Args:
        dataset: Images of at least `image_size` pixels a side.
        image_size: Height and width of a crop.
        crops_per_image: Number of crops of each image.
        seed: Draws the places, for each image on its own.

    Returns:
        Dataset with one column, `pixels`: uint8 arrays (3, S, S), image by image.
    """
    dataset, column = _with_encoded_images(dataset)
    decoder = _Decoder(JetImageProcessor(size=image_size), column, crops_per_image, seed)
    return _decode_all(dataset, decoder, 0.001).dataset


def load_image_folder(path: str | os.PathLike, split: str, cache_dir: str | os.PathLike | None = None):
    """
    A folder of images as a map-style dataset with an `image` column.

    Args:
        path: Folder with the images in one subfolder a split, such as `train/` and `validation/`.
        split: Name of the split.
        cache_dir: Where `datasets` keeps its Arrow files; its own place by default.
    """
    return datasets.load_dataset(
        "imagefolder", data_dir=str(path), split=split, cache_dir=str(cache_dir) if cache_dir else None
    )


def stored_images(column: pa.ChunkedArray) -> list[dict | np.ndarray | None]:
    """The images of a column as they are stored: files as `{"bytes", "path"}`, arrays (views of Arrow's memory)."""
    if not isinstance(column.type, pa.BaseExtensionType):
        return column.to_pylist()
    images = []
    for chunk in column.chunks:
        values = chunk.storage
        for _ in column.type.shape:
            values = values.flatten()
        arrays = iter(values.to_numpy().reshape(-1, *column.type.shape))
        images += [next(arrays) if valid else None for valid in chunk.is_valid().to_pylist()]
    return images


def decode_image(image: dict | np.ndarray | None, convert: Callable) -> tuple[np.ndarray, str | None]:
    """
    Decodes a stored image and converts it to an array.

    Args:
        image: See [`stored_images`].
        convert: From a PIL image or an array to an array.

    Returns:
        The array, and the format of the file; `None` where it was no file.

    Raises:
        UndecodableImageError: if the image is missing, broken, larger than Pillow's limit, or cannot be converted.
        ValueError: if an array is none of an image.
        OSError: if its file cannot be read, which may be no fault of the image.
    """
    if isinstance(image, np.ndarray):
        return convert(image), None
    data = _read_file(image) if image is not None else None
    if data is None:
        raise UndecodableImageError("there is no image")
    try:
        return _decode_file(data, convert)
    except (UndecodableImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:  # its message holds an address
        raise UndecodableImageError("it is no image that Pillow knows") from error
    except Exception as error:  # codecs raise all sorts of errors for broken files
        raise UndecodableImageError(f"{type(error).__name__}: {error}") from error


def _read_file(image: dict) -> bytes | None:
    if image["bytes"] is not None or image["path"] is None:
        return image["bytes"]
    with xopen(image["path"], "rb") as file:
        return file.read()


def _decode_file(data: bytes, convert: Callable) -> tuple[np.ndarray, str]:
    with Image.open(io.BytesIO(data)) as file:
        # Pillow itself only warns up to twice its limit.
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and file.width * file.height > limit:
            raise UndecodableImageError(f"{file.width} x {file.height} pixels are more than Pillow's limit of {limit}")
        return convert(file), file.format


def pixel_converter(processor: JetImageProcessor) -> Callable:
    """From a PIL image or an array to pixels (C, S, S); an array of that shape holds pixels already."""
    return partial(_to_pixels, processor)


def _to_pixels(processor: JetImageProcessor, image: Image.Image | np.ndarray) -> np.ndarray:
    shape = (processor.num_channels, processor.size["height"], processor.size["width"])
    return image if isinstance(image, np.ndarray) and image.shape == shape else processor.to_uint8(image)


def image_name(image: dict | np.ndarray | None, index: int) -> str:
    """What an image is called in messages: its file's name if it has one."""
    path = image.get("path") if isinstance(image, dict) else None
    return path or f"image {index}"


def random_crops(pixels: np.ndarray, image_size: int, num_crops: int, seed: int, index: int) -> list[np.ndarray]:
    """Crops (C, image_size, image_size) of an image (C, H, W), which `seed` and the image's `index` draw."""
    if min(pixels.shape[1:]) < image_size:
        raise ValueError(f"image {index} has {pixels.shape[1:]} pixels, fewer than the crop's {image_size}.")
    rng = np.random.default_rng([seed, index])
    places = rng.integers(0, np.array(pixels.shape[1:]) - image_size + 1, size=(num_crops, 2))
    return [pixels[:, y : y + image_size, x : x + image_size] for y, x in places]


class _Decoder:
    """
    What `Dataset.map` applies: images as stored to pixels, their format, and what was wrong with them.

    Its fields, versions among them, are what `datasets` caches the result by.
    """

    def __init__(self, processor: JetImageProcessor, column: str, crops: int | None = None, seed: int = 0):
        self.processor, self.column, self.crops, self.seed = processor, column, crops, seed if crops else None
        self.shape = (processor.num_channels, processor.size["height"], processor.size["width"])
        self.versions = {"jet_hf": __version__, "pillow": PIL.__version__}
        self.limit: UndecodableLimit | None = None
        self.undecodable: list[str] = []

    @property
    def features(self) -> datasets.Features:
        text = datasets.Value("string")
        return datasets.Features({PIXELS: datasets.Array3D(self.shape, "uint8"), "format": text, "error": text})

    def __call__(self, table: pa.Table, indices: list[int]) -> dict[str, list]:
        pixels, formats, errors = [], [], []
        for image, index in zip(stored_images(table[self.column]), indices, strict=True):
            try:
                arrays, kind = self._decode(image, index)
                error = None
            except UndecodableImageError as reason:
                arrays, kind, error = [np.zeros(self.shape, np.uint8)], None, f"{image_name(image, index)}: {reason}"
                self.undecodable.append(error)
            pixels += arrays
            formats += [kind] * len(arrays)
            errors += [error] * len(arrays)
        if self.limit is not None:  # not only at the end, which may be hours away
            self.limit.check(self.undecodable)
        return {PIXELS: pixels, "format": formats, "error": errors}

    def _decode(self, image, index: int) -> tuple[list[np.ndarray], str | None]:
        processor = self.processor
        if self.crops:
            array, kind = decode_image(
                image, lambda it: processor.process_image(it, processor.do_convert_rgb, processor.num_channels)
            )
            return random_crops(array, self.shape[1], self.crops, self.seed, index), kind
        array, kind = decode_image(image, pixel_converter(processor))
        if array.shape != self.shape:
            raise ValueError(f"image {index} became {array.shape}, expected {self.shape}.")
        return [array], kind


def _with_encoded_images(dataset: datasets.Dataset) -> tuple[datasets.Dataset, str]:
    column = find_image_column(dataset.features)
    if not isinstance(dataset.features[column], datasets.Array3D):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset, column


def _decode_all(
    dataset: datasets.Dataset, decoder: _Decoder, share: float, num_proc: int | None = None, where: str = "the data"
) -> PixelSplit:
    dataset = dataset.select_columns([decoder.column])
    decoder.limit = UndecodableLimit(share, len(dataset), where)
    is_pixels = dataset.features[decoder.column] == decoder.features[PIXELS] and not decoder.crops
    if is_pixels and not dataset.data[decoder.column].null_count:  # no second copy on the disk
        if decoder.column != PIXELS:
            dataset = dataset.rename_column(decoder.column, PIXELS)
        return _keep_decoded(dataset, decoder.limit)
    decoded = dataset.with_format("arrow").map(
        decoder,
        with_indices=True,
        batched=True,
        batch_size=100,
        writer_batch_size=1000,
        remove_columns=[decoder.column],
        features=decoder.features,
        num_proc=num_proc,
        desc=f"decoding {where}",
    )
    return _keep_decoded(decoded.with_format(None), decoder.limit)


def _read_through(dataset: datasets.IterableDataset, decoder: _Decoder) -> tuple[datasets.Dataset, int]:
    """All of a stream, decoded in memory, and the number of its images."""
    parts, num_images = [], 0
    for table in dataset.select_columns([decoder.column]).with_format("arrow").iter(batch_size=100):
        indices = range(num_images, num_images + len(table))
        parts.append(datasets.Dataset.from_dict(decoder(table, indices), features=decoder.features))
        num_images += len(table)
    empty = {name: [] for name in decoder.features}
    return datasets.concatenate_datasets(parts or [datasets.Dataset.from_dict(empty, decoder.features)]), num_images


def _keep_decoded(decoded: datasets.Dataset, limit: UndecodableLimit) -> PixelSplit:
    """Leaves out, counts and logs what could not be decoded."""
    if limit.num_images == 0:
        raise ValueError(f"{limit.where} holds no images.")
    if "error" not in decoded.column_names:
        return PixelSplit(decoded, 0, None)
    table = decoded.with_format("arrow").select_columns(["format", "error"])[:]
    undecodable = table["error"].drop_null().to_pylist()
    limit.check(undecodable)
    if undecodable:
        decoded = decoded.select(np.flatnonzero(table["error"].is_null().to_numpy()))
        more = len(undecodable) - NUM_NAMES_LOGGED
        logger.warning(
            "%d of %d images of %s cannot be decoded and are skipped: %s%s",
            len(undecodable),
            limit.num_images,
            limit.where,
            "; ".join(undecodable[:NUM_NAMES_LOGGED]),
            f"; and {more} more." if more > 0 else ".",
        )
    counts = pc.value_counts(table["format"].drop_null()).to_pylist()
    formats = [count["values"] for count in sorted(counts, key=lambda count: -count["counts"])]
    return PixelSplit(decoded.select_columns([PIXELS]), len(undecodable), ", ".join(formats) or None)
