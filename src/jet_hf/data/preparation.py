# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Preparation of a dataset: images are downsampled once and written as parquet shards of pixels."""

import json
import logging
import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import filelock
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .. import __version__
from ..arguments import PreparationArguments
from ..model.configuration_jet import image_sides, level_dtype
from ..model.image_processing_jet import JetImageProcessor
from ..model.validation_jet import check_whole
from ..utils.files import check_is_free, replace_file, replace_text, strict_json
from ..utils.tables import markdown_table
from .columns import LABEL_COLUMNS, find_image_column, find_label_column, holds_labels
from .decoding import UndecodableImageError, decode_image, image_name, pixel_converter, stored_images
from .formats import PREPARATION_FILE, preparation_record
from .layout import Images
from .pixels import LOSSY_FORMATS, UndecodableLimit
from .releases import RELEASES, check_release
from .sources import DataSource, first_label_of, open_split, stream_fingerprint
from .splits import canonical_split


logger = logging.getLogger(__name__)

IMAGE, LABEL = "image", "label"
ROWS_READ = 512
METADATA_KEY = b"jet_hf"
# Parameters that all splits of a prepared folder share.
COMMON_PARAMETERS = ("image_size", "num_channels", "num_levels", "center_crop", "dataset_release", "first_label")
# Parameters that earlier versions did not record.
EARLIER_VERSIONS = {"num_channels": 3, "num_levels": 256}
SECONDS_TO_LOCK = 10


@dataclass(frozen=True)
class Prepared:
    """
    Result of a preparation.

    Args:
        num_images: Number of images in the shards.
        num_skipped: Number of images that could not be decoded.
        num_shards, num_found: Number of shards, and of those that already existed.
        source_format: Encoding of the source, such as "JPEG"; `None` for arrays.
    """

    num_images: int
    num_skipped: int
    num_shards: int
    num_found: int
    source_format: str | None


def prepare(arguments: PreparationArguments) -> Prepared:
    """
    Write the missing shards of a split, the record of the folder, and a dataset card.

    Raises:
        ValueError: if arguments or data are invalid, or differ from those that the folder was begun with.
        FileExistsError: if `output_dir` holds something else.
        UndecodableImagesError: if more than the allowed share of images cannot be decoded.
    """
    _check(arguments)
    source = DataSource.from_arguments(arguments)
    check_is_free(arguments.output_dir, PREPARATION_FILE)
    source.check_output(arguments.output_dir)
    dataset = open_split(source, arguments.split)
    num_images = None if isinstance(dataset, datasets.IterableDataset) else len(dataset)
    if num_images == 0:
        raise ValueError(f"split {arguments.split!r} of {source.where} holds no images.")
    num_shards = min(arguments.num_shards, dataset.num_shards if num_images is None else num_images)
    if num_images is not None:
        check_release(arguments.dataset_release, arguments.split, num_images)
    folder = Path(arguments.output_dir)
    paths = [folder / "data" / f"{arguments.split}-{i:05d}-of-{num_shards:05d}.parquet" for i in range(num_shards)]
    first_label = _first_label(source, folder)
    writer = _ShardWriter(dataset, paths, arguments, first_label)
    fingerprint = stream_fingerprint(source, arguments.split, labels=writer.label_column is not None)
    parameters = _parameters(arguments) | {
        "num_shards": num_shards,
        "num_source_images": num_images,
        "first_label": first_label or None,
    }
    with _locked(folder):
        _begin(folder, arguments, parameters, fingerprint)
        records = {i: record for i, path in enumerate(paths) if (record := _read_record(path))}
        num_found = len(records)
        _write_missing(writer, records, arguments, num_images)
        return _finish(folder, arguments.split, [records[i] for i in range(num_shards)], num_found)


def _check(arguments: PreparationArguments) -> None:
    for side in image_sides(arguments.image_size):
        check_whole("image_size", side)
    if not re.fullmatch(r"\w+", arguments.split):
        raise ValueError(f"`split` must be the name of a whole split, got {arguments.split!r}.")


def _parameters(arguments: PreparationArguments) -> dict:
    """Return the arguments that determine the bytes of the shards."""
    others = ("output_dir", "num_proc", "max_undecodable_share")
    return {name: value for name, value in asdict(arguments).items() if name not in others}


def _first_label(source: DataSource, folder: Path) -> int:
    """Return the smallest class in the source, by default the one that the folder was begun with."""
    begun = preparation_record(folder).get("splits")
    if source.first_label is None and begun:
        return next(iter(begun.values()))["parameters"].get("first_label") or 0
    return first_label_of(source)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock that keeps other processes from writing to the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=SECONDS_TO_LOCK)
    try:
        with lock:
            try:
                yield
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except filelock.Timeout:
        raise ValueError(f"another process is writing to {folder}.") from None


def _begin(folder: Path, arguments: PreparationArguments, parameters: dict, fingerprint: str) -> None:
    """Record the parameters and the fingerprint of the source, or compare them with the recorded ones."""
    record = preparation_record(folder) or {"release": arguments.dataset_release, "splits": {}}
    advice = "Restore them, or write to another folder."
    for split, entry in record["splits"].items():
        known = EARLIER_VERSIONS | entry["parameters"]
        changed = [
            f"`{name}` was {known.get(name)!r} and is now {parameters[name]!r}"
            for name in (parameters if split == arguments.split else COMMON_PARAMETERS)
            if known.get(name) != parameters[name]
        ]
        if changed:
            raise ValueError(
                f"{folder} was begun (split {split!r}) with other parameters: {'; '.join(changed)}. {advice}"
            )
    if entry := record["splits"].get(arguments.split):
        known = entry.get("source_fingerprint")
        if known is None:
            logger.warning(
                f"{folder} was begun by an earlier version, so changes of the source of split {arguments.split!r} "
                "cannot be detected."
            )
        elif known != fingerprint:
            raise ValueError(
                f"{folder} was begun with other data: the names, sizes or bytes of the files of the split "
                f"{arguments.split!r} of the source have changed. {advice}"
            )
    versions = {"jet_hf": __version__, "pillow": PIL.__version__, "pyarrow": pa.__version__}
    new = {"parameters": parameters, "source_fingerprint": fingerprint, "versions": versions}
    record["splits"].setdefault(arguments.split, new)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    _write_record(folder, record)


def _write_record(folder: Path, record: dict) -> None:
    replace_text(folder / PREPARATION_FILE, strict_json(record, indent=2) + "\n")


class _ShardWriter:
    """Writer of the shards of a split. The bytes of a shard do not depend on the process that writes it."""

    def __init__(self, dataset: Images, paths: list[Path], arguments: PreparationArguments, first_label: int):
        self.dataset, self.paths, self.first_label = dataset, paths, first_label
        self.image_column = find_image_column(dataset.features, arguments.image_column)
        self.label_column = _find_label_column(dataset.features, arguments.label_column)
        height, width = image_sides(arguments.image_size)
        self.processor = JetImageProcessor(
            size=(height, width),
            num_channels=arguments.num_channels,
            num_levels=arguments.num_levels,
            do_center_crop=arguments.center_crop,
        )
        shape = (arguments.num_channels, height, width)
        self.features = datasets.Features({IMAGE: datasets.Array3D(shape, self.processor.level_dtype)})
        if self.label_column:
            self.features[LABEL] = dataset.features[self.label_column]

    def write(self, index: int) -> dict:
        """Write a shard; return its record: the number of images, the names of skipped ones, counts of formats."""
        record: dict = {"num_images": 0, "skipped": [], "formats": Counter()}
        replace_file(self.paths[index], lambda draft: self._write(draft, index, record))
        return record

    def _write(self, draft: Path, index: int, record: dict) -> None:
        with pq.ParquetWriter(draft, self.features.arrow_schema, write_statistics=False) as writer:
            for table in self._tables(index, record):
                writer.write_table(table)
            writer.add_key_value_metadata({METADATA_KEY: strict_json(record, sort_keys=True)})

    def _tables(self, index: int, record: dict) -> Iterator[pa.Table]:
        """Yield the pixels and labels of a shard, a few hundred at a time."""
        first = 0
        if isinstance(self.dataset, datasets.Dataset):
            first, end = (i * len(self.dataset) // len(self.paths) for i in (index, index + 1))
            rows = self.dataset.select(range(first, end))
        else:
            rows = self.dataset.shard(num_shards=len(self.paths), index=index)
        convert = pixel_converter(self.processor)
        for stored in rows.with_format("arrow").iter(batch_size=ROWS_READ):
            pixels: list[np.ndarray] = []
            kept: list[int] = []
            for i, image in enumerate(stored_images(stored[self.image_column])):
                try:
                    array, kind = decode_image(image, convert, first + i)
                except UndecodableImageError as error:
                    name = "/".join(Path(image_name(image, first + i)).parts[-2:])
                    record["skipped"].append(f"{name}: {error}")
                    continue
                pixels.append(array)
                kept.append(i)
                record["formats"][str(kind)] += 1
            first += len(stored)
            record["num_images"] += len(kept)
            if kept:
                columns: dict = {IMAGE: np.stack(pixels)}
                if self.label_column:
                    columns[LABEL] = self._labels(stored[self.label_column].take(kept))
                yield datasets.Dataset.from_dict(columns, features=self.features).with_format("arrow")[:]

    def _labels(self, stored: pa.ChunkedArray) -> list[int | None]:
        """Return labels that count from 0."""
        if self.first_label and (smallest := pc.min(stored).as_py()) is not None and smallest < self.first_label:
            raise ValueError(
                f"`first_label` is {self.first_label}, but `{self.label_column}` has the class {smallest}."
            )
        return pc.subtract(stored, self.first_label).to_pylist()


def _find_label_column(features: datasets.Features, label_column: str | None) -> str | None:
    """Return the given column, checked, or else a column of labels with a usual name, if there is one."""
    if label_column is not None:
        return find_label_column(features, label_column)
    return next((name for name in LABEL_COLUMNS if _holds_labels(features.get(name))), None)


def _holds_labels(feature) -> bool:
    if isinstance(feature, datasets.ClassLabel):  # `datasets` takes the folders of splits for classes
        return not all(map(canonical_split, feature.names))
    return holds_labels(feature)


def _read_record(path: Path) -> dict | None:
    """Return the record of a shard, or `None` if the shard is missing or damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(pq.read_metadata(path).metadata[METADATA_KEY])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        logger.warning(f"{path} is damaged and will be written again.")
        return None


def _write_missing(
    writer: _ShardWriter, records: dict[int, dict], arguments: PreparationArguments, num_images: int | None
) -> None:
    """Write the shards that have no record, and add their records to `records`."""
    missing = [i for i in range(len(writer.paths)) if i not in records]
    where = f"split {arguments.split!r} of {arguments.dataset_name or arguments.dataset_path}"

    def check(total: int) -> None:
        UndecodableLimit(arguments.max_undecodable_share, total, where).check(_skipped(records.values()))

    with (
        tqdm(total=len(writer.paths), initial=len(records), unit="shard", desc=arguments.split) as bar,
        closing(_write_shards(writer, missing, arguments.num_proc)) as written,
    ):
        for index, record in written:
            records[index] = record
            bar.update()
            if num_images is not None:
                check(num_images)
    total = sum(record["num_images"] + len(record["skipped"]) for record in records.values())
    check(total)
    check_release(arguments.dataset_release, arguments.split, total)


def _write_shards(writer: _ShardWriter, indices: list[int], num_proc: int) -> Generator[tuple[int, dict], None, None]:
    """Write shards, in several processes if requested, and yield the index and record of each finished one."""
    if num_proc == 1 or len(indices) < 2:
        for index in indices:
            yield index, writer.write(index)
        return
    pool = ProcessPoolExecutor(min(num_proc, len(indices)), initializer=_start_worker, initargs=(writer,))
    try:
        futures = {pool.submit(_write_shard, index): index for index in indices}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_worker_writer: _ShardWriter


def _start_worker(writer: _ShardWriter) -> None:
    global _worker_writer
    _worker_writer = writer
    datasets.disable_progress_bars()

    def end_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_shard(index: int) -> dict:
    return _worker_writer.write(index)


def _skipped(records: Iterable[dict]) -> list[str]:
    return [name for record in records for name in record["skipped"]]


def _finish(folder: Path, split: str, records: list[dict], num_found: int) -> Prepared:
    """Record the counts and write the card."""
    formats = sum((Counter(record["formats"]) for record in records), Counter())
    skipped = _skipped(records)
    num_images = sum(record["num_images"] for record in records)
    source_format = ", ".join(kind for kind, _ in formats.most_common() if kind != "None") or None
    record = preparation_record(folder)
    counts = {
        "num_images": num_images,
        "num_skipped": len(skipped),
        "skipped": skipped,
        "source_format": source_format,
    }
    record["splits"][split] |= counts
    _write_record(folder, record)
    replace_text(folder / "README.md", dataset_card(record))
    if skipped:
        logger.warning(f"{len(skipped)} images cannot be decoded and were skipped: {'; '.join(skipped)}.")
    return Prepared(num_images, len(skipped), len(records), num_found, source_format)


def dataset_card(record: dict) -> str:
    """Return the README of a prepared dataset, which covers the finished splits."""
    splits = {name: entry for name, entry in record["splits"].items() if "num_images" in entry}
    parameters = EARLIER_VERSIONS | next(iter(splits.values()))["parameters"]
    channels, levels = parameters["num_channels"], parameters["num_levels"]
    dtype = level_dtype(levels)
    holds = "" if levels == 256 else f", with levels from 0 to {levels - 1}"
    height, width = image_sides(parameters["image_size"])
    part = "square" if height == width else f"{height} : {width} part"
    crop = f"the central {part} of each image" if parameters["center_crop"] else "each whole image, squeezed,"
    source = parameters["dataset_name"] or Path(parameters["dataset_path"]).resolve().name
    config = f" ({parameters['dataset_config']})" if parameters["dataset_config"] else ""
    release = record["release"]
    table = [["split", "format of the source", "images", "skipped as undecodable"]]
    for name, entry in splits.items():
        kinds = entry["source_format"] or "arrays"
        lossy = "" if LOSSY_FORMATS.isdisjoint(kinds.split(", ")) else " (lossy)"
        table.append([name, f"{kinds}{lossy}", f"{entry['num_images']:,}", f"{entry['num_skipped']:,}"])
    # The header has no `configs`: with them the cache of `datasets` confuses folders of the same name.
    sections = [
        "---\nlicense: other\ntask_categories: [unconditional-image-generation]\n---",
        f"# {source} at {height} x {width}",
        f"Made from {source}{config}: {crop} averaged over areas to {height} x {width} pixels, as TensorFlow's "
        f"`ResizeMethod.AREA` does. Column `{IMAGE}`: {dtype} arrays ({channels}, {height}, {width}){holds}. The "
        "license is that of the source.",
        f"Release `{release}`. {RELEASES[release].note}" if release else "",
        markdown_table(table, left=2),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"
