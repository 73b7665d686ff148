# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""From data sets of images to data sets of pixels: the bytes that the model scores."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import Hasher

from .. import __version__
from ..model.image_processing_jet import JetImageProcessor
from ..model.validation_jet import check_whole
from .columns import find_image_column
from .contents import preparation_record
from .decoding import (
    UndecodableImageError,
    decode_image,
    image_name,
    pixel_converter,
    random_crops,
    stored_images,
)
from .fingerprints import digest_of_row, fingerprint_of_rows
from .folders import NUM_EXAMPLES, Stamp, name_some
from .releases import check_release
from .sources import DataSource, known_release, label_column_of, open_split


logger = logging.getLogger(__name__)

PIXELS, LABEL, DIGEST = "pixels", "label", "digest"
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
        """Raise an error if these, named, are more than the share, or all that there are."""
        if len(undecodable) > self.share * self.num_images or len(undecodable) == self.num_images > 0:
            raise self.error(undecodable)

    def error(self, undecodable: list[str]) -> UndecodableImagesError:
        """The error that these, named, are."""
        return UndecodableImagesError(
            f"{len(undecodable)} of {self.num_images} images of {self.where} cannot be decoded, more than the share "
            f"of {self.share:g} that is allowed: repair or remove them (or, to train or to prepare data without them, "
            f"raise `max_undecodable_share`); the first are: {'; '.join(undecodable[:5])}."
        )


@dataclass(frozen=True)
class PixelSplit:
    """
    A split as pixels.

    Args:
        dataset: Column `pixels`: uint8 arrays (C, S, S); where they were asked for, column `label`: int64.
        num_skipped: Images that could not be decoded.
        source_format: Encoding of the source, such as "JPEG", or "JPEG, PNG" if mixed; `None` for raw bytes.
        fingerprint: Short text that differs for other pixels, classes or another order of them.
    """

    dataset: datasets.Dataset
    num_skipped: int
    source_format: str | None
    fingerprint: str | None = None

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
    keep_in_memory: bool = False,
) -> PixelSplit:
    """
    Decode, crop and resize every image of a split once, as the processor is configured.

    The pixels are cached on the disk by `datasets`; those of a stream are read through and held in memory. The number
    of images that are used is logged, beside the number of those that are not.

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
        keep_in_memory: Whether to hold the pixels in memory instead of caching them on the disk.

    Raises:
        ValueError: see [`open_split`], [`check_release`] and [`label_column_of`]; also if there is no image, or a
            class that there should not be, or a number below 1 of images or crops.
        UndecodableImagesError: if more than the allowed share of images cannot be decoded.
    """
    for name, number in {"max_images": max_images, "random_crops_per_image": random_crops_per_image}.items():
        check_whole(name, 1 if number is None else number)
    dataset = open_split(source, split)
    column = find_image_column(dataset.features, source.image_column)
    is_stream = isinstance(dataset, datasets.IterableDataset)
    release = known_release(source)
    where = f"split {split!r} of {source.name or source.path}"
    prepared = preparation_record(source.path).get("splits", {}) if source.path else {}
    prepared = prepared.get(source.contents.resolve(split).split("[")[0], {}) if prepared else {}
    num_left_out = prepared.get("num_skipped", 0) if max_images is None and "[" not in split else 0
    num_found = None if is_stream else len(dataset)
    if max_images is not None:
        dataset = dataset.take(max_images) if is_stream else dataset.select(range(min(max_images, len(dataset))))
    elif not is_stream:
        check_release(release, split, len(dataset) + num_left_out)
    labels = None if num_classes is None else label_column_of(source, dataset.features)
    decoder = _Decoder(processor, column, random_crops_per_image, seed, labels)
    if is_stream:
        decoded, num_images = _read_through(dataset, decoder)
        if max_images is None:
            check_release(release, split, num_images + num_left_out)
        pixels = _keep_decoded(decoded, UndecodableLimit(max_undecodable_share, num_images, where))
        if labels is not None:
            check_classes(pixels.dataset.with_format("arrow")[:][LABEL], num_classes, where)
    else:
        num_images = len(dataset)
        if labels is not None:  # before hours of decoding
            stored = dataset.with_format("arrow").select_columns([labels])[:][labels]
            check_classes(stored, num_classes, where, lambda row: image_name(dataset[row][column], row))
        pixels = _decode_all(dataset, decoder, max_undecodable_share, num_proc, where, keep_in_memory)
    logger.info(_describe_use(where, num_images, num_found, pixels))
    return replace(
        pixels,
        num_skipped=pixels.num_skipped + num_left_out,
        source_format=pixels.source_format or prepared.get("source_format"),
    )


def _describe_use(where: str, num_images: int, num_found: int | None, pixels: PixelSplit) -> str:
    used = f"{num_images - pixels.num_skipped:,}"
    sentence = f"{where}: using {used} of {num_images if num_found is None else num_found:,} images"
    if num_found is not None and num_images < num_found:
        sentence += f"; only the first {num_images:,} were asked for"
    if pixels.num_skipped:
        sentence += f"; {pixels.num_skipped:,} cannot be decoded"
    return sentence + "."


def check_classes(
    labels: pa.ChunkedArray | pa.Array,
    num_classes: int,
    where: str,
    name: Callable[[int], str] = "image {}".format,
) -> None:
    """
    Raise an error unless all labels are there, from 0 to below `num_classes`.

    Args:
        labels: Classes of the images, null where one is missing.
        num_classes: Number of classes of the model.
        where: Name of the split in messages.
        name: From the place of an image to its name in messages.

    Raises:
        ValueError: if a label is missing or out of range; the message names some of these images.
    """
    wrong = pc.fill_null(pc.or_(pc.less(labels, 0), pc.greater_equal(labels, num_classes)), True)
    rows = np.flatnonzero(wrong.to_numpy(zero_copy_only=False) if isinstance(wrong, pa.Array) else wrong.to_numpy())
    if len(rows):
        span = pc.min_max(labels).as_py()
        found = "none" if span["min"] is None else f"{span['min']} to {span['max']}"
        missing = f", {labels.null_count} missing" if labels.null_count else ""
        names = name_some([name(int(row)) for row in rows[:NUM_EXAMPLES]], len(rows))
        raise ValueError(
            f"the classes of {where} must lie from 0 to below `num_classes` {num_classes}, got {found}{missing}; the "
            f"first wrong ones are of {names}."
        )


class _Decoder:
    """
    Function for `Dataset.map`: from images as stored to pixels, their digests and formats, or the reason of a failure.

    The result is cached by its fields, versions among them.
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
            {PIXELS: datasets.Array3D(self.shape, "uint8"), "format": text, "error": text}
            | {DIGEST: datasets.Value("binary")}
            | labels
        )

    @property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        return [self.column] if self.label_column is None else [self.column, self.label_column]

    def __call__(self, table: pa.Table, indices: list[int]) -> dict[str, list]:
        pixels, formats, errors, rows = [], [], [], []
        for row, (image, index) in enumerate(zip(stored_images(table[self.column]), indices, strict=True)):
            try:
                arrays, kind = self._decode(image, index)
                error = None
            except UndecodableImageError as reason:
                arrays, kind, error = [np.zeros(self.shape, np.uint8)], None, f"{image_name(image, index)}: {reason}"
                self.undecodable.append(error)
            pixels += arrays
            formats += [kind] * len(arrays)
            errors += [error] * len(arrays)
            rows += [row] * len(arrays)
        if self.limit is not None:  # not only at the end, which may be hours away
            self.limit.check(self.undecodable)
        decoded = {PIXELS: pixels, "format": formats, "error": errors}
        labels = [None] * len(pixels)
        if self.label_column is not None:
            labels = [table[self.label_column][i].as_py() for i in rows]
            decoded[LABEL] = labels
        decoded[DIGEST] = [digest_of_row(array, label) for array, label in zip(pixels, labels, strict=True)]
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


class _Digester:
    """Function for `Dataset.map`: from pixels, and their classes, to digests."""

    def __init__(self, label_column: str | None):
        self.label_column = label_column

    def __call__(self, table: pa.Table, indices: list[int]) -> dict[str, list[bytes]]:
        labels = [None] * len(table) if self.label_column is None else table[self.label_column].to_pylist()
        return {DIGEST: list(map(digest_of_row, stored_images(table[PIXELS]), labels))}


def _decode_all(
    dataset: datasets.Dataset,
    decoder: _Decoder,
    share: float,
    num_proc: int | None,
    where: str,
    keep_in_memory: bool,
) -> PixelSplit:
    dataset = dataset.select_columns(decoder.columns)
    limit = UndecodableLimit(share, len(dataset), where)
    is_pixels = dataset.features[decoder.column] == decoder.features[PIXELS] and not decoder.crops
    if is_pixels and not dataset.data[decoder.column].null_count:  # no second copy on the disk
        names = {decoder.column: PIXELS} | ({decoder.label_column: LABEL} if decoder.label_column else {})
        if changed := {old: new for old, new in names.items() if old != new}:
            dataset = dataset.rename_columns(changed)
        digester = _Digester(LABEL if decoder.label_column else None)
        digests = _map(
            dataset,
            digester,
            datasets.Features({DIGEST: datasets.Value("binary")}),
            num_proc,
            f"reading {where}",
            keep_in_memory,
        )
        return _keep_decoded(dataset, limit, digests)
    decoder.limit = limit
    decoded = _map(dataset, decoder, decoder.features, num_proc, f"decoding {where}", keep_in_memory)
    return _keep_decoded(decoded.with_format(None), limit)


def _map(
    dataset: datasets.Dataset,
    function: Callable,
    features: datasets.Features,
    num_proc: int | None,
    desc: str,
    keep_in_memory: bool,
) -> datasets.Dataset:
    """
    Apply a function to all rows, once for all runs.

    The result lies in the cache of `datasets`, not beside the data, whose folder may be read-only, and is found by the
    stamps of the data's files as well: a saved data set that is replaced may have the fingerprint of the old one.
    """
    stamps = [(file["filename"], Stamp.of(os.stat(file["filename"]))) for file in dataset.cache_files]
    key = Hasher.hash((dataset._fingerprint, stamps, function, features))
    file = Path(datasets.config.HF_DATASETS_CACHE) / "jet_hf" / f"pixels-{key}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    return dataset.with_format("arrow").map(
        function,
        with_indices=True,
        batched=True,
        batch_size=100,
        writer_batch_size=1000,
        remove_columns=dataset.column_names,
        features=features,
        num_proc=num_proc,
        cache_file_name=None if keep_in_memory else str(file),
        keep_in_memory=keep_in_memory,
        desc=desc,
    )


def _read_through(dataset: datasets.IterableDataset, decoder: _Decoder) -> tuple[datasets.Dataset, int]:
    """All of a stream, decoded in memory, and the number of its images."""
    parts, num_images = [], 0
    for table in dataset.select_columns(decoder.columns).with_format("arrow").iter(batch_size=100):
        indices = range(num_images, num_images + len(table))
        parts.append(datasets.Dataset.from_dict(decoder(table, indices), features=decoder.features))
        num_images += len(table)
    empty = {name: [] for name in decoder.features}
    return datasets.concatenate_datasets(parts or [datasets.Dataset.from_dict(empty, decoder.features)]), num_images


def _keep_decoded(
    decoded: datasets.Dataset, limit: UndecodableLimit, digests: datasets.Dataset | None = None
) -> PixelSplit:
    """Leave out, count and log the images that could not be decoded."""
    if limit.num_images == 0:
        raise ValueError(f"{limit.where} holds no images.")
    if digests is not None:
        return PixelSplit(decoded, 0, None, fingerprint_of_rows(digests.with_format("arrow")[:][DIGEST]))
    table = decoded.with_format("arrow").select_columns(["format", "error", DIGEST])[:]
    undecodable = table["error"].drop_null().to_pylist()
    limit.check(undecodable)
    whole = table["error"].is_null()
    if undecodable:
        decoded = decoded.select(np.flatnonzero(whole.to_numpy()))
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
    fingerprint = fingerprint_of_rows(table[DIGEST].filter(whole))
    return PixelSplit(decoded.select_columns(kept), len(undecodable), ", ".join(formats) or None, fingerprint)
