# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Downsamples a data set once and for all, into parquet shards of pixels: `scripts/prepare_imagenet.py`."""

import json
import logging
import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import filelock
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .. import __version__
from ..arguments import PreparationArguments
from ..model.image_processing_jet import JetImageProcessor
from ..model.validation_jet import check_whole
from ..utils.files import check_is_free, replace_file, replace_text, strict_json
from .columns import find_image_column, find_label_column
from .contents import PREPARATION_FILE, preparation_record
from .decoding import (
    UndecodableImageError,
    decode_image,
    image_name,
    pixel_converter,
    stored_images,
)
from .pixels import LOSSY_FORMATS, UndecodableLimit
from .releases import RELEASES, check_release
from .sources import DataSource, open_split, stream_fingerprint
from .splits import canonical_split


logger = logging.getLogger(__name__)

IMAGE, LABEL = "image", "label"
LABEL_COLUMNS = ("label", "labels", "cls")
ROWS_READ = 512
METADATA_KEY = b"jet_hf"
# What shards of one data set have in common, whatever their split.
COMMON_PARAMETERS = ("image_size", "center_crop", "dataset_release")
SECONDS_TO_LOCK = 10


@dataclass(frozen=True)
class Prepared:
    """
    What became of a split.

    Args:
        num_images: Images in the shards.
        num_skipped: Images that could not be decoded.
        num_shards, num_found: Shards, and how many of them were there already.
        source_format: Encoding of the source, such as "JPEG".
    """

    num_images: int
    num_skipped: int
    num_shards: int
    num_found: int
    source_format: str | None


def prepare(arguments: PreparationArguments) -> Prepared:
    """
    Writes the shards of a split that are not there yet, the counts, and a dataset card.

    Raises:
        ValueError: for arguments or data that do not fit, or other arguments than the folder was begun with.
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
        raise ValueError(f"split {arguments.split!r} of {source.name or source.path} holds no images.")
    num_shards = min(arguments.num_shards, dataset.num_shards if num_images is None else num_images)
    if num_images is not None:
        check_release(arguments.dataset_release, arguments.split, num_images)
    folder = Path(arguments.output_dir)
    paths = [folder / "data" / f"{arguments.split}-{i:05d}-of-{num_shards:05d}.parquet" for i in range(num_shards)]
    shards = _Shards(dataset, paths, arguments)
    fingerprint = stream_fingerprint(source, arguments.split, classes=shards.label is not None)
    with _only_one(folder):
        _begin(folder, arguments, num_shards, num_images, fingerprint)
        records = {i: record for i, path in enumerate(paths) if (record := _read_record(path))}
        num_found = len(records)
        _write_missing(shards, records, arguments, num_images)
        return _finish(folder, arguments, [records[i] for i in range(num_shards)], num_found)


def _check(arguments: PreparationArguments) -> None:
    for name in ("image_size", "num_shards", "num_proc"):
        check_whole(name, getattr(arguments, name))
    if not 0 <= arguments.max_undecodable_share <= 1:
        raise ValueError(f"`max_undecodable_share` must be from 0 to 1, got {arguments.max_undecodable_share}.")
    if not re.fullmatch(r"\w+", arguments.split):
        raise ValueError(f"`split` must be the name of a whole split, got {arguments.split!r}.")


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keeps a second process from writing to the folder."""
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


def _begin(
    folder: Path, arguments: PreparationArguments, num_shards: int, num_images: int | None, fingerprint: str
) -> None:
    """Record the parameters and the source's fingerprint, or compare them with those on record."""
    parameters = asdict(arguments)
    for name in ("output_dir", "num_proc", "max_undecodable_share"):
        del parameters[name]
    parameters |= {"num_shards": num_shards, "num_source_images": num_images}
    record = preparation_record(folder) or {"release": arguments.dataset_release, "splits": {}}
    for split, entry in record["splits"].items():
        compared = parameters if split == arguments.split else COMMON_PARAMETERS
        known = entry["parameters"]
        changed = [
            f"`{name}` was {known.get(name)!r}, is {parameters[name]!r}"
            for name in compared
            if known.get(name) != parameters[name]
        ]
        if changed:
            raise ValueError(
                f"{folder} was begun (split {split!r}) with other parameters: {'; '.join(changed)}. Go on with those "
                "of before, or write to another folder."
            )
    if entry := record["splits"].get(arguments.split):
        known = entry.get("source_fingerprint")
        if known is None:
            logger.warning(
                "%s was begun by an earlier version: whether split %r of the source is still the same is not known.",
                *(folder, arguments.split),
            )
        elif known != fingerprint:
            raise ValueError(
                f"{folder} was begun with other data: the files of the split {arguments.split!r} of the source, their "
                "names, sizes or bytes, have changed. Go on with those of before, or write to another folder."
            )
    versions = {"jet_hf": __version__, "pillow": PIL.__version__, "pyarrow": pa.__version__}
    new = {"parameters": parameters, "source_fingerprint": fingerprint, "versions": versions}
    record["splits"].setdefault(arguments.split, new)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    replace_text(folder / PREPARATION_FILE, strict_json(record, indent=2) + "\n")


class _Shards:
    """The shards of a split, written one by one, each the same whoever writes it."""

    def __init__(self, dataset, paths: list[Path], arguments: PreparationArguments):
        self.dataset, self.paths = dataset, paths
        self.column = find_image_column(dataset.features, arguments.image_column)
        self.processor = JetImageProcessor(size=arguments.image_size, do_center_crop=arguments.center_crop)
        size = arguments.image_size
        self.features = datasets.Features({IMAGE: datasets.Array3D((3, size, size), "uint8")})
        if arguments.label_column is not None:
            self.label = find_label_column(dataset.features, arguments.label_column)
        else:
            self.label = next((name for name in LABEL_COLUMNS if _is_label(dataset.features.get(name))), None)
        if self.label:
            self.features[LABEL] = dataset.features[self.label]

    def write(self, index: int) -> dict:
        """
        Writes a shard.

        Returns:
            Its record: how many images it holds, the names of those that were skipped, and how many had which format.
        """
        record = {"num_images": 0, "skipped": [], "formats": Counter()}
        replace_file(self.paths[index], lambda draft: self._write(draft, index, record))
        return record

    def _write(self, draft: Path, index: int, record: dict) -> None:
        with pq.ParquetWriter(draft, self.features.arrow_schema, write_statistics=False) as writer:
            for table in self._tables(index, record):
                writer.write_table(table)
            writer.add_key_value_metadata({METADATA_KEY: strict_json(record, sort_keys=True)})

    def _tables(self, index: int, record: dict) -> Iterator[pa.Table]:
        """Pixels and labels of a shard, a few hundred at a time."""
        if isinstance(self.dataset, datasets.Dataset):
            edges = [i * len(self.dataset) // len(self.paths) for i in (index, index + 1)]
            rows = self.dataset.select(range(*edges))
            place = edges[0]
        else:
            rows = self.dataset.shard(num_shards=len(self.paths), index=index)
            place = 0
        for stored in rows.with_format("arrow").iter(batch_size=ROWS_READ):
            pixels, kept = [], []
            convert = pixel_converter(self.processor)
            for i, image in enumerate(stored_images(stored[self.column])):
                try:
                    array, kind = decode_image(image, convert)
                except UndecodableImageError as error:
                    name = "/".join(Path(image_name(image, place + i)).parts[-2:])
                    record["skipped"].append(f"{name}: {error}")
                    continue
                pixels.append(array)
                kept.append(i)
                record["formats"][str(kind)] += 1
            place += len(stored)
            record["num_images"] += len(kept)
            if kept:
                yield self._table(pixels, stored[self.label].take(kept) if self.label else None)

    def _table(self, pixels: list[np.ndarray], labels: pa.ChunkedArray | None) -> pa.Table:
        features = datasets.Features({IMAGE: self.features[IMAGE]})
        images = datasets.Dataset.from_dict({IMAGE: np.stack(pixels)}, features=features).with_format("arrow")[:]
        columns = [images[IMAGE]] if labels is None else [images[IMAGE], labels]
        return pa.Table.from_arrays(columns, schema=self.features.arrow_schema)


def _is_label(feature) -> bool:
    if isinstance(feature, datasets.ClassLabel):  # datasets takes the subfolders of splits for classes
        return not all(map(canonical_split, feature.names))
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint"))


def _read_record(path: Path) -> dict | None:
    """The record of a shard that is there."""
    if not path.is_file():
        return None
    try:
        return json.loads(pq.read_metadata(path).metadata[METADATA_KEY])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        logger.warning("%s is damaged and is written anew.", path)
        return None


_shards: _Shards | None = None


def _start_worker(shards: _Shards) -> None:
    global _shards
    _shards = shards
    datasets.disable_progress_bars()

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_shard(index: int) -> dict:
    return _shards.write(index)


def _write_missing(
    shards: _Shards, records: dict[int, dict], arguments: PreparationArguments, num_images: int | None
) -> None:
    """Writes the shards that have no record, in several processes, and adds theirs to `records`."""
    missing = [i for i in range(len(shards.paths)) if i not in records]
    where = f"split {arguments.split!r} of {arguments.dataset_name or arguments.dataset_path}"
    with tqdm(total=len(shards.paths), initial=len(records), unit="shard", desc=arguments.split) as bar:

        def add(index: int, record: dict) -> None:
            records[index] = record
            bar.update()
            if num_images is not None:
                UndecodableLimit(arguments.max_undecodable_share, num_images, where).check(_skipped(records))

        if arguments.num_proc == 1 or len(missing) < 2:
            for index in missing:
                add(index, shards.write(index))
        else:
            num_workers = min(arguments.num_proc, len(missing))
            with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(shards,)) as pool:
                futures = {pool.submit(_write_shard, index): index for index in missing}
                try:
                    for future in as_completed(futures):
                        add(futures[future], future.result())
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    total = sum(record["num_images"] + len(record["skipped"]) for record in records.values())
    UndecodableLimit(arguments.max_undecodable_share, total, where).check(_skipped(records))
    check_release(arguments.dataset_release, arguments.split, total)


def _skipped(records: dict[int, dict]) -> list[str]:
    return [name for index in sorted(records) for name in records[index]["skipped"]]


def _finish(folder: Path, arguments: PreparationArguments, records: list[dict], num_found: int) -> Prepared:
    """Records the counts and writes the card."""
    formats = sum((Counter(record["formats"]) for record in records), Counter())
    skipped = [name for record in records for name in record["skipped"]]
    kinds = [kind for kind, _ in formats.most_common() if kind != "None"]
    result = Prepared(
        num_images=sum(record["num_images"] for record in records),
        num_skipped=len(skipped),
        num_shards=len(records),
        num_found=num_found,
        source_format=", ".join(kinds) or None,
    )
    record = preparation_record(folder)
    record["splits"][arguments.split] |= {
        "num_images": result.num_images,
        "num_skipped": result.num_skipped,
        "skipped": skipped,
        "source_format": result.source_format,
    }
    replace_text(folder / PREPARATION_FILE, strict_json(record, indent=2) + "\n")
    replace_text(folder / "README.md", dataset_card(record))
    if skipped:
        logger.warning("%d images cannot be decoded and were skipped: %s.", len(skipped), "; ".join(skipped))
    return result


def dataset_card(record: dict) -> str:
    """The README of a prepared data set, with the splits that are finished."""
    splits = {name: entry for name, entry in record["splits"].items() if "num_images" in entry}
    parameters = next(iter(splits.values()))["parameters"]
    size = parameters["image_size"]
    crop = "the central square of each image" if parameters["center_crop"] else "each whole image, squeezed,"
    # Without `configs`: with them the cache of `datasets` does not tell folders of one name apart.
    lines = ["---", "license: other", "task_categories: [unconditional-image-generation]"]
    source = parameters["dataset_name"] or Path(parameters["dataset_path"]).resolve().name
    config = f" ({parameters['dataset_config']})" if parameters["dataset_config"] else ""
    lines += ["---", "", f"# {source} at {size} x {size}", ""]
    lines += [
        f"Made from {source}{config}: {crop} averaged over areas to {size} x {size} pixels, as TensorFlow's "
        f"`ResizeMethod.AREA` does. Column `{IMAGE}`: uint8 arrays (3, {size}, {size}); the licence is the source's.",
        "",
    ]
    if record["release"]:
        lines += [f"Release `{record['release']}`. {RELEASES[record['release']].note}", ""]
    lines += ["| split | images | skipped as undecodable | format of the source |", "|---|---:|---:|---|"]
    for name, entry in splits.items():
        kinds = entry["source_format"] or "arrays"
        lossy = "" if LOSSY_FORMATS.isdisjoint(kinds.split(", ")) else " (lossy)"
        lines.append(f"| {name} | {entry['num_images']:,} | {entry['num_skipped']:,} | {kinds}{lossy} |")
    return "\n".join(lines) + "\n"
