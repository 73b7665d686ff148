# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversion of datasets of images to datasets of pixels, the gray levels that the model scores."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import Hasher
from PIL import Image

from .. import __version__
from ..model.configuration_jet import MAX_NUM_LEVELS
from ..model.image_processing_jet import JetImageProcessor
from ..model.validation_jet import check_whole
from .cache import cache_file, stamp_of
from .columns import find_image_column
from .decoding import (
    StoredImage,
    UndecodableImageError,
    check_levels,
    decode_image,
    file_name,
    image_name,
    pixel_converter,
    random_crops,
    stored_images,
)
from .fingerprints import digest_of_row, fingerprint_of_rows
from .layout import Images
from .releases import check_release
from .scan import NUM_EXAMPLES, name_some
from .sources import DataSource, first_label_of, known_release, label_column_of, open_split


logger = logging.getLogger(__name__)

PIXELS, LABEL, DIGEST = "pixels", "label", "digest"
LOSSY_FORMATS = {"AVIF", "JPEG", "JPEG2000", "MPO", "WEBP"}
NUM_NAMES_LOGGED = 100


@dataclass(frozen=True)
class ReadOptions:
    """
    Options for reading the images of a split.

    Args:
        num_classes: Number of classes, to read labels too; by default labels are not read.
        max_images: Number of images to read from the start of the split; by default all.
        max_undecodable_share: Share of undecodable images above which an error is raised. Fewer are skipped, counted
            and named in the log.
        random_crops_per_image: Number of crops at full resolution to cut out of each image at random positions,
            instead of resizing the image. Streams for training do not support it.
        seed: Seed of the crops, or of the order in which a stream is shuffled.

    Raises:
        ValueError: if `max_images` or `random_crops_per_image` is below 1.
    """

    num_classes: int | None = None
    max_images: int | None = None
    max_undecodable_share: float = 0.001
    random_crops_per_image: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("max_images", "random_crops_per_image"):
            if (number := getattr(self, name)) is not None:
                check_whole(name, number)

    def first_images(self, dataset: Images) -> Images:
        """Return the first `max_images` images of a dataset."""
        if self.max_images is None:
            return dataset
        if isinstance(dataset, datasets.IterableDataset):
            return dataset.take(self.max_images)
        return dataset.select(range(min(self.max_images, len(dataset))))


DEFAULT_OPTIONS = ReadOptions()


class UndecodableImagesError(RuntimeError):
    """More images than allowed cannot be decoded."""


@dataclass(frozen=True)
class UndecodableLimit:
    """The largest allowed share of undecodable images of a split, which is called `where` in messages."""

    share: float
    num_images: int
    where: str

    def check(self, undecodable: list[str]) -> None:
        """Raise an error if the named images exceed the share, or are all images of the split."""
        if len(undecodable) > self.share * self.num_images or len(undecodable) == self.num_images > 0:
            raise self.error(undecodable)

    def error(self, undecodable: list[str]) -> UndecodableImagesError:
        """Return the error for the named images."""
        return UndecodableImagesError(
            f"{len(undecodable)} of {self.num_images} images of {self.where} cannot be decoded, more than the allowed "
            f"share of {self.share:g}: repair or remove them (or raise `max_undecodable_share` to leave them "
            f"out); the first are: {'; '.join(undecodable[:5])}."
        )


@dataclass(frozen=True)
class PixelSplit:
    """
    A split as pixels.

    Args:
        dataset: Column `pixels`: uint8 arrays (C, H, W), or uint16 for more than 256 gray levels; column `label`:
            int64, if labels were read.
        num_skipped: Number of images that could not be decoded.
        source_format: Encoding of the source, such as "JPEG", or "JPEG, PNG" if mixed; `None` for arrays.
        fingerprint: Short text that changes with the pixels, the labels and their order.
        images: Images of the split as they are stored, of one column; `None` for those of a stream.
        rows: Index into `images` of the image of each row of `dataset`; by default they are the same.
    """

    dataset: datasets.Dataset
    num_skipped: int
    source_format: str | None
    fingerprint: str | None = None
    images: datasets.Dataset | None = None
    rows: np.ndarray | None = None

    def names(self) -> list[str]:
        """Return the file name, or else the index in the split, of the image of each row; crops share a name."""
        rows = np.arange(len(self.dataset)) if self.rows is None else self.rows
        if self.images is None or isinstance(next(iter(self.images.features.values())), datasets.Array3D):
            return list(map(str, rows))
        (column,) = self.images.column_names
        tables = self.images.select(rows).with_format("arrow").iter(batch_size=1000)
        names = [file_name(image) for table in tables for image in stored_images(table[column])]
        return [name or str(row) for name, row in zip(names, rows, strict=True)]

    @property
    def lossy(self) -> bool:
        """Whether the source's encoding is lossy. WebP counts as lossy, since few files are not."""
        return not LOSSY_FORMATS.isdisjoint((self.source_format or "").split(", "))


def load_pixels(
    source: DataSource,
    split: str,
    processor: JetImageProcessor,
    options: ReadOptions = DEFAULT_OPTIONS,
    *,
    num_proc: int | None = None,
    keep_in_memory: bool = False,
) -> PixelSplit:
    """
    Decode, crop and resize every image of a split once, as the image processor is configured.

    `datasets` caches the pixels on the disk; those of a stream are read sequentially and kept in memory. The numbers
    of images that are used and skipped are logged.

    Args:
        source, split: Data to read.
        processor: Image processor that makes the pixels.
        options: Images to read.
        num_proc: Number of processes that decode.
        keep_in_memory: Whether to keep the pixels in memory instead of caching them on the disk.

    Raises:
        ValueError: see [`open_split`], [`check_release`], [`label_column_of`] and [`check_classes`]; also if there are
            no images, or some contradict the processor's `num_levels`.
        UndecodableImagesError: if more than the allowed share of images cannot be decoded.
    """
    dataset = open_split(source, split)
    is_stream = isinstance(dataset, datasets.IterableDataset)
    num_found = None if is_stream else len(dataset)
    dataset = options.first_images(dataset)
    decoder = _Decoder(
        processor,
        find_image_column(dataset.features, source.image_column),
        None if options.num_classes is None else label_column_of(source, dataset.features),
        0 if options.num_classes is None else first_label_of(source, options.num_classes),
        options,
    )
    where = f"split {split!r} of {source.where}"
    decoded, num_images = _read_stream(dataset, decoder) if is_stream else (None, len(dataset))
    if num_images == 0:
        raise ValueError(f"{where} holds no images.")
    prepared = source.layout.records.get(source.layout.resolve(split).split("[")[0], {})
    check_prepared_levels(prepared, processor, where)
    num_left_out = 0
    if options.max_images is None:
        num_left_out = prepared.get("num_skipped", 0) if "[" not in split else 0
        check_release(known_release(source), split, num_images + num_left_out)
    limit = UndecodableLimit(options.max_undecodable_share, num_images, where)
    if decoded is not None:
        pixels = _keep_decodable(decoded, limit, decoder.num_crops or 1)
        if options.num_classes is not None:
            check_classes(_column(pixels.dataset, LABEL), options.num_classes, where)
    else:
        if options.num_classes is not None:  # before decoding, which may take hours
            labels = pc.subtract(_column(dataset, decoder.label_column), decoder.first_label)
            check_classes(labels, options.num_classes, where, lambda row: dataset[row][decoder.image_column])
            if source.first_label is None and not decoder.first_label and pc.min(labels).as_py() > 0:
                logger.warning(
                    f"no image of {where} has the class 0: if the classes are numbered from 1, pass `first_label` 1."
                )
        pixels = _decode_all(dataset, decoder, limit, num_proc, keep_in_memory)
    logger.info(_describe_use(where, num_images, num_found, pixels.num_skipped))
    return replace(
        pixels,
        num_skipped=pixels.num_skipped + num_left_out,
        source_format=pixels.source_format or prepared.get("source_format"),
        images=None if is_stream else dataset.select_columns([decoder.image_column]),
    )


def check_prepared_levels(record: dict, processor: JetImageProcessor, where: str) -> None:
    """Raise ValueError if a split, with its record of `jet-hf prepare`, has another number of levels."""
    found = record.get("parameters", {}).get("num_levels", 256 if record else processor.num_levels)
    if found != processor.num_levels:
        raise ValueError(f"{where} was prepared with `num_levels` {found}, but the model has {processor.num_levels}.")


def _describe_use(where: str, num_images: int, num_found: int | None, num_skipped: int) -> str:
    total = num_images if num_found is None else num_found
    sentence = f"{where}: using {num_images - num_skipped:,} of {total:,} images"
    if num_images < total:
        sentence += f"; only the first {num_images:,} were requested"
    if num_skipped:
        sentence += f"; {num_skipped:,} cannot be decoded"
    return sentence + "."


def check_classes(
    labels: pa.ChunkedArray | pa.Array,
    num_classes: int,
    where: str,
    image: Callable[[int], StoredImage] = lambda row: None,
) -> None:
    """
    Check that every image has a label from 0 to below `num_classes`.

    Args:
        labels: Labels of the images, null where one is missing.
        num_classes: Number of classes of the model.
        where: Name of the split, for messages.
        image: Function from a row to the stored image, for messages.

    Raises:
        ValueError: if a label is missing or out of range; the message names some of these images.
    """
    wrong = pc.fill_null(pc.or_(pc.less(labels, 0), pc.greater_equal(labels, num_classes)), True)
    rows = np.flatnonzero(np.asarray(wrong)).tolist()
    if rows:
        span = pc.min_max(labels).as_py()
        found = "none" if span["min"] is None else f"{span['min']} to {span['max']}"
        missing = f", {labels.null_count} missing" if labels.null_count else ""
        names = name_some([image_name(image(row), row) for row in rows[:NUM_EXAMPLES]], len(rows))
        advice = " If the classes are numbered from 1, pass `first_label` 1." if span["max"] == num_classes else ""
        raise ValueError(
            f"the classes of {where} must lie from 0 to below `num_classes` {num_classes}, got {found}{missing}; the "
            f"first wrong ones are of {names}.{advice}"
        )


def _column(dataset: datasets.Dataset, name: str | None) -> pa.ChunkedArray:
    return dataset.with_format("arrow").select_columns([name])[:][name]


class _Decoder:
    """
    Function for `Dataset.map` from stored images to pixels, digests, formats, and errors of undecodable images.

    `datasets` caches the result by the attributes, which is why the versions are among them.
    """

    first_label = 0

    def __init__(
        self,
        processor: JetImageProcessor,
        image_column: str,
        label_column: str | None,
        first_label: int,
        options: ReadOptions,
    ):
        self.processor, self.image_column, self.label_column = processor, image_column, label_column
        if first_label:  # results that are cached without this attribute stay valid
            self.first_label = first_label
        self.num_crops = options.random_crops_per_image
        self.seed = options.seed if self.num_crops else 0
        self.shape = (processor.num_channels, processor.size["height"], processor.size["width"])
        self.versions = {"jet_hf": __version__, "pillow": PIL.__version__}
        self.limit: UndecodableLimit | None = None
        self.undecodable: list[str] = []

    @property
    def features(self) -> datasets.Features:
        """Features of the result."""
        text, binary = datasets.Value("string"), datasets.Value("binary")
        pixels = datasets.Array3D(self.shape, self.processor.level_dtype)
        features = {PIXELS: pixels, "format": text, "error": text, DIGEST: binary}
        return datasets.Features(features | ({LABEL: datasets.Value("int64")} if self.label_column else {}))

    @property
    def columns(self) -> list[str]:
        """Columns to read."""
        return [self.image_column] if self.label_column is None else [self.image_column, self.label_column]

    def __call__(self, table: pa.Table, indices: Sequence[int]) -> dict[str, list]:
        rows: list[tuple] = []
        images = stored_images(table[self.image_column])
        labels = _labels_of(table, self.label_column, self.first_label)
        for image, label, index in zip(images, labels, indices, strict=True):
            error = None
            try:
                arrays, kind = self._decode(image, index)
            except UndecodableImageError as reason:
                arrays, kind = [np.zeros(self.shape, self.processor.level_dtype)], None
                error = f"{image_name(image, index)}: {reason}"
                self.undecodable.append(error)
            rows += [(array, kind, error, digest_of_row(array, label), label) for array in arrays]
        if self.limit is not None:  # not only at the end, which may be hours away
            self.limit.check(self.undecodable)
        return dict(zip(self.features, map(list, zip(*rows, strict=True)), strict=False))

    def _decode(self, image: StoredImage, index: int) -> tuple[list[np.ndarray], str | None]:
        processor = self.processor
        if self.num_crops:
            array, kind = decode_image(image, self._read_whole, index)
            return random_crops(array, *self.shape[1:], self.num_crops, self.seed, index), kind
        array, kind = decode_image(image, pixel_converter(processor), index)
        if array.shape != self.shape:
            raise ValueError(f"image {index} was converted to shape {array.shape}, expected {self.shape}.")
        return [array], kind

    def _read_whole(self, image: Image.Image | np.ndarray) -> np.ndarray:
        processor = self.processor
        return np.asarray(processor.process_image(image, **vars(processor))).astype(processor.level_dtype)


def _digests(
    table: pa.Table, indices: list[int], first_label: int = 0, num_levels: int | None = None
) -> dict[str, list]:
    """
    Return the digests of pixels and their labels, and labels that change, for `Dataset.map`.

    Raises:
        ValueError: for pixels that are not below `num_levels`, if it is given.
    """
    arrays = [np.asarray(image) for image in stored_images(table[PIXELS])]
    if num_levels is not None:
        for array, index in zip(arrays, indices, strict=True):
            decode_image(array, partial(check_levels, num_levels=num_levels), index)
    labels = _labels_of(table, LABEL, first_label)
    digests = {DIGEST: list(map(digest_of_row, arrays, labels))}
    return digests | {LABEL: labels} if first_label else digests


def _labels_of(table: pa.Table, label_column: str | None, first_label: int) -> list[int | None]:
    if label_column not in table.column_names:
        return [None] * len(table)
    return pc.subtract(table[label_column], first_label).to_pylist()


def _decode_all(
    dataset: datasets.Dataset,
    decoder: _Decoder,
    limit: UndecodableLimit,
    num_proc: int | None,
    keep_in_memory: bool,
) -> PixelSplit:
    dataset = dataset.select_columns(decoder.columns)
    options = {"num_proc": num_proc, "keep_in_memory": keep_in_memory}
    is_pixels = dataset.features[decoder.image_column] == decoder.features[PIXELS] and not decoder.num_crops
    if is_pixels and not dataset.data[decoder.image_column].null_count:  # without a second copy on the disk
        dataset = dataset.rename_columns(dict(zip(decoder.columns, (PIXELS, LABEL), strict=False)))
        function, features = _digests, datasets.Features({DIGEST: datasets.Value("binary")})
        # Results that are cached without these arguments stay valid.
        if decoder.processor.num_levels not in (256, MAX_NUM_LEVELS):
            function = partial(function, num_levels=decoder.processor.num_levels)
        if decoder.first_label:
            function = partial(function, first_label=decoder.first_label)
            features[LABEL] = datasets.Value("int64")
        digests = _map(dataset, function, features, f"reading {limit.where}", **options)
        if decoder.first_label:
            columns = [dataset.select_columns([PIXELS]), digests.select_columns([LABEL])]
            dataset = datasets.concatenate_datasets(columns, axis=1)
        return PixelSplit(dataset, 0, None, fingerprint_of_rows(_column(digests, DIGEST)))
    decoder.limit = limit
    decoded = _map(dataset, decoder, decoder.features, f"decoding {limit.where}", **options)
    return _keep_decodable(decoded.with_format(None), limit, decoder.num_crops or 1)


def _map(
    dataset: datasets.Dataset, function: Callable, features: datasets.Features, desc: str, **options
) -> datasets.Dataset:
    """
    Apply a function to all rows, and cache the result for later runs.

    It lies in the cache of `datasets` instead of beside the data, whose folder may be read-only. Its key contains the
    stamps of the data's files: a saved dataset may keep its fingerprint when it is replaced.
    """
    stamps = [(file["filename"], stamp_of(os.stat(file["filename"]))) for file in dataset.cache_files]
    key = Hasher.hash((dataset._fingerprint, stamps, function, features))
    if not options["keep_in_memory"]:
        options["cache_file_name"] = str(cache_file(f"pixels-{key}.arrow"))
    return dataset.with_format("arrow").map(
        function,
        with_indices=True,
        batched=True,
        batch_size=100,
        writer_batch_size=1000,
        remove_columns=dataset.column_names,
        features=features,
        desc=desc,
        **options,
    )


def _read_stream(dataset: datasets.IterableDataset, decoder: _Decoder) -> tuple[datasets.Dataset, int]:
    """Return all of a stream, decoded in memory, and the number of its images."""
    parts, num_images = [], 0
    for table in dataset.select_columns(decoder.columns).with_format("arrow").iter(batch_size=100):
        indices = range(num_images, num_images + len(table))
        parts.append(datasets.Dataset.from_dict(decoder(table, indices), features=decoder.features))
        num_images += len(table)
    empty: dict[str, list] = {name: [] for name in decoder.features}
    return datasets.concatenate_datasets(parts or [datasets.Dataset.from_dict(empty, decoder.features)]), num_images


def _keep_decodable(decoded: datasets.Dataset, limit: UndecodableLimit, num_crops: int) -> PixelSplit:
    """Drop, count and log the images that could not be decoded."""
    table = decoded.with_format("arrow").select_columns(["format", "error", DIGEST])[:]
    undecodable = table["error"].drop_null().to_pylist()
    limit.check(undecodable)
    decodable = table["error"].is_null()
    if undecodable:
        decoded = decoded.select(np.flatnonzero(decodable.to_numpy()))
        more = len(undecodable) - NUM_NAMES_LOGGED
        logger.warning(
            f"{len(undecodable)} of {limit.num_images} images of {limit.where} cannot be decoded and are skipped: "
            f"{'; '.join(undecodable[:NUM_NAMES_LOGGED])}{f'; and {more} more' if more > 0 else ''}."
        )
    counts = pc.value_counts(table["format"].drop_null()).to_pylist()
    formats = [count["values"] for count in sorted(counts, key=lambda count: -count["counts"])]
    columns = [name for name in (PIXELS, LABEL) if name in decoded.column_names]
    fingerprint = fingerprint_of_rows(table[DIGEST].filter(decodable))
    return PixelSplit(
        decoded.select_columns(columns),
        len(undecodable),
        ", ".join(formats) or None,
        fingerprint,
        rows=_image_rows(decodable.to_numpy(), num_crops) if undecodable or num_crops > 1 else None,
    )


def _image_rows(decodable: np.ndarray, num_crops: int) -> np.ndarray:
    """Return the index of the image of each decodable row: an image has `num_crops` such rows, or one other row."""
    rows = np.flatnonzero(decodable)
    num_skipped = np.cumsum(~decodable)[rows]
    return num_skipped + np.arange(len(rows)) // num_crops
