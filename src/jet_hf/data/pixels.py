# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""From data sets of images to data sets of pixels: the bytes that the model scores."""

import logging
import os
from dataclasses import dataclass, replace

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc

from .. import __version__
from ..model.image_processing_jet import JetImageProcessor
from .decoding import (
    UndecodableImageError,
    decode_image,
    image_name,
    pixel_converter,
    random_crops,
    stored_images,
)
from .releases import check_release
from .sources import (
    DataSource,
    find_image_column,
    find_label_column,
    known_release,
    open_split,
    preparation_record,
)


logger = logging.getLogger(__name__)

PIXELS, LABEL = "pixels", "label"
LOSSY_FORMATS = {"AVIF", "JPEG", "JPEG2000", "MPO", "WEBP"}
NUM_NAMES_LOGGED = 100


class UndecodableImagesError(RuntimeError):
    """More images than allowed cannot be decoded."""


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
        dataset: Column `pixels`: uint8 arrays (C, S, S); where they were asked for, column `label`: int64.
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
    num_classes: int | None = None,
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
        num_classes: Reads the classes too, which must be fewer than this number.
        random_crops_per_image: Crops of full resolution that are cut at random places out of each image, in place of
            resizing it.
        max_images: Reads the first images only.
        max_undecodable_share: Share of undecodable images above which an error is raised. Fewer are skipped, counted,
            and named in the log.
        num_proc: Processes that decode.
        seed: Draws the places of crops.

    Raises:
        ValueError: see [`open_split`], [`check_release`] and [`find_label_column`]; also if there is no image, or a
            class that there should not be.
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
    labels = None if num_classes is None else find_label_column(dataset.features, source.label_column)
    decoder = _Decoder(processor, column, random_crops_per_image, seed, labels)
    where = f"split {split!r} of {source.name or source.path}"
    if is_stream:
        decoded, num_images = _read_through(dataset, decoder)
        if max_images is None:
            check_release(release, split, num_images + num_left_out)
        pixels = _keep_decoded(decoded, UndecodableLimit(max_undecodable_share, num_images, where))
    else:
        pixels = _decode_all(dataset, decoder, max_undecodable_share, num_proc, where)
    if labels is not None:
        check_classes(pixels.dataset.with_format("arrow")[:][LABEL], num_classes, where)
    return replace(
        pixels,
        num_skipped=pixels.num_skipped + num_left_out,
        source_format=pixels.source_format or prepared.get(split.split("[")[0], {}).get("source_format"),
    )


def check_classes(labels: pa.ChunkedArray | pa.Array, num_classes: int, where: str) -> None:
    """Raises ValueError unless all labels are there, from 0 to below `num_classes`."""
    span = pc.min_max(labels).as_py()
    if labels.null_count or span["min"] < 0 or span["max"] >= num_classes:
        found = "none" if span["min"] is None else f"{span['min']} to {span['max']}"
        missing = f", {labels.null_count} missing" if labels.null_count else ""
        raise ValueError(
            f"the classes of {where} must lie from 0 to below `num_classes` {num_classes}, got {found}{missing}."
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


class _Decoder:
    """
    What `Dataset.map` applies: images as stored to pixels, their format, and what was wrong with them.

    Its fields, versions among them, are what `datasets` caches the result by.
    """

    def __init__(
        self,
        processor: JetImageProcessor,
        column: str,
        crops: int | None = None,
        seed: int = 0,
        label_column: str | None = None,
    ):
        self.processor, self.column, self.crops, self.seed = processor, column, crops, seed if crops else None
        self.label_column = label_column
        self.shape = (processor.num_channels, processor.size["height"], processor.size["width"])
        self.versions = {"jet_hf": __version__, "pillow": PIL.__version__}
        self.limit: UndecodableLimit | None = None
        self.undecodable: list[str] = []

    @property
    def features(self) -> datasets.Features:
        text = datasets.Value("string")
        labels = {} if self.label_column is None else {LABEL: datasets.Value("int64")}
        return datasets.Features(
            {PIXELS: datasets.Array3D(self.shape, "uint8"), "format": text, "error": text} | labels
        )

    @property
    def columns(self) -> list[str]:
        """What it reads."""
        return [self.column] if self.label_column is None else [self.column, self.label_column]

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
        decoded = {PIXELS: pixels, "format": formats, "error": errors}
        if self.label_column is not None:
            decoded[LABEL] = [label for label in table[self.label_column].to_pylist() for _ in range(self.crops or 1)]
        return decoded

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
    dataset = dataset.select_columns(decoder.columns)
    decoder.limit = UndecodableLimit(share, len(dataset), where)
    is_pixels = dataset.features[decoder.column] == decoder.features[PIXELS] and not decoder.crops
    if is_pixels and not dataset.data[decoder.column].null_count:  # no second copy on the disk
        names = {decoder.column: PIXELS} | ({decoder.label_column: LABEL} if decoder.label_column else {})
        if changed := {old: new for old, new in names.items() if old != new}:
            dataset = dataset.rename_columns(changed)
        return _keep_decoded(dataset, decoder.limit)
    decoded = dataset.with_format("arrow").map(
        decoder,
        with_indices=True,
        batched=True,
        batch_size=100,
        writer_batch_size=1000,
        remove_columns=decoder.columns,
        features=decoder.features,
        num_proc=num_proc,
        desc=f"decoding {where}",
    )
    return _keep_decoded(decoded.with_format(None), decoder.limit)


def _read_through(dataset: datasets.IterableDataset, decoder: _Decoder) -> tuple[datasets.Dataset, int]:
    """All of a stream, decoded in memory, and the number of its images."""
    parts, num_images = [], 0
    for table in dataset.select_columns(decoder.columns).with_format("arrow").iter(batch_size=100):
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
    kept = [name for name in (PIXELS, LABEL) if name in decoded.column_names]
    return PixelSplit(decoded.select_columns(kept), len(undecodable), ", ".join(formats) or None)
