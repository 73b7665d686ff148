"""Data sources: every kind of folder and file, and what is refused."""

import io
import logging
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jet_hf import JetImageProcessor
from jet_hf.data import (
    RELEASES,
    BatchSharding,
    DataSource,
    ReadOptions,
    UnknownSplitError,
    check_release,
    find_image_column,
    known_release,
    load_pixels,
    open_split,
    stream_batches,
)
from jet_hf.data.chrabaszcz import read_batch


SIZE = 6
PROCESSOR = JetImageProcessor(size=SIZE)
COUNTS = {"train": 5, "validation": 2}


def images_of(split: str) -> np.ndarray:
    """Random images (n, SIZE, SIZE, 3)."""
    rng = np.random.default_rng(split == "train")
    return rng.integers(0, 256, (COUNTS[split], SIZE, SIZE, 3), dtype=np.uint8)


def chw(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2)


def rows_of(dataset: datasets.Dataset, column: str) -> np.ndarray:
    return dataset.with_format("numpy", dtype=np.uint8)[column][:]


def encode(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for folder in sorted({str(Path(name).parent) for name in files} - {"."}):
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def write_folder(path: Path, split: str, kind: str = "png", **options) -> None:
    path.mkdir(parents=True)
    for i, image in enumerate(images_of(split)):
        (path / f"{i:03d}.{kind}").write_bytes(encode(image, kind, **options))


def as_dataset(split: str) -> datasets.Dataset:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"img": [Image.fromarray(image) for image in images_of(split)], "label": list(range(COUNTS[split]))}
    return datasets.Dataset.from_dict(rows, features=features)


def image_folders(path: Path) -> None:
    write_folder(path / "train", "train")
    write_folder(path / "validation", "validation", "webp", lossless=True)


def van_den_oord_tars(path: Path) -> None:
    path.mkdir()
    for split, name in (("train", "train_64x64"), ("validation", "valid_64x64")):
        files = {f"{name}/{i + 1:07d}.png": encode(image) for i, image in enumerate(images_of(split))}
        write_tar(path / f"{name}.tar", files)


def parquet_shards(path: Path) -> None:
    (path / "data").mkdir(parents=True)
    for split, num_shards in (("train", 2), ("validation", 1)):
        for i in range(num_shards):
            shard = as_dataset(split).shard(num_shards, i, contiguous=True)
            shard.to_parquet(path / "data" / f"{split}-{i:05d}-of-{num_shards:05d}.parquet")


def parquet_of_bytes(path: Path) -> None:
    path.mkdir()
    for split in COUNTS:
        table = pa.table(
            {"png": [encode(image) for image in images_of(split)], "other": [b"no image"] * COUNTS[split]}
        )
        pq.write_table(table, path / f"{split}.parquet")


def saved_to_disk(path: Path) -> None:
    datasets.DatasetDict({split: as_dataset(split) for split in COUNTS}).save_to_disk(path)


def arrays(path: Path, channels_first: bool) -> None:
    shape = (3, SIZE, SIZE) if channels_first else (SIZE, SIZE, 3)
    features = datasets.Features({"pixels": datasets.Array3D(shape, "uint8")})
    rows = {split: chw(images_of(split)) if channels_first else images_of(split) for split in COUNTS}
    saved = {
        split: datasets.Dataset.from_dict({"pixels": list(row)}, features=features) for split, row in rows.items()
    }
    datasets.DatasetDict(saved).save_to_disk(path)


def chrabaszcz_batches(path: Path, pickled: bool = False, mean: bool = True) -> None:
    path.mkdir()
    train = images_of("train")
    for name, images in (
        ("train_data_batch_1", train[:2]),
        ("train_data_batch_2", train[2:]),
        ("val_data", images_of("validation")),
    ):
        data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        batch = {"data": data, "labels": np.arange(1, len(images) + 1), "mean": data.mean(0)}
        if pickled:
            (path / name).write_bytes(pickle.dumps(batch | {"labels": batch["labels"].tolist()}))
        else:
            np.savez(path / f"{name}.npz", **batch)


LAYOUTS = {
    "image folders": (image_folders, {"train": "PNG", "validation": "WEBP"}),
    "tars of van den Oord": (van_den_oord_tars, "PNG"),
    "parquet shards": (parquet_shards, "PNG"),
    "parquet of bytes": (parquet_of_bytes, "PNG"),
    "save_to_disk": (saved_to_disk, "PNG"),
    "arrays, channels first": (lambda path: arrays(path, True), None),
    "arrays, channels last": (lambda path: arrays(path, False), None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_images_of_its_splits_in_order(tmp_path, layout):
    write, formats = LAYOUTS[layout]
    write(tmp_path / "data")
    for streaming in (False, True):
        source = DataSource(path=str(tmp_path / "data"), streaming=streaming)
        for split in COUNTS:
            pixels = load_pixels(source, split, PROCESSOR)
            assert pixels.dataset.features == {"pixels": datasets.Array3D((3, SIZE, SIZE), "uint8")}
            np.testing.assert_array_equal(rows_of(pixels.dataset, "pixels"), chw(images_of(split)))
            kind = formats[split] if isinstance(formats, dict) else formats
            assert (pixels.num_skipped, pixels.source_format, pixels.lossy) == (0, kind, kind == "WEBP")
    with pytest.raises(UnknownSplitError, match=r"no split 'test'; it has train, validation(, all)?\."):
        open_split(source, "test")
    if layout == "image folders":
        source = DataSource(path=str(tmp_path / "data"))
        assert len(open_split(source, "train[:60%]")) == 3
        with pytest.raises(UnknownSplitError, match="no split 'tets'"):
            open_split(source, "tets[:60%]")


@pytest.mark.parametrize("pickled", [False, True])
def test_batches_of_chrabaszcz(tmp_path, pickled):
    chrabaszcz_batches(tmp_path / "data", pickled)
    source = DataSource(path=str(tmp_path / "data"), streaming=pickled)
    assert known_release(source) == "imagenet1k_chrabaszcz"
    for split, labels in (("train", [1, 2, 1, 2, 3]), ("validation", [1, 2])):
        dataset = open_split(source, split)
        assert dataset.features["image"] == datasets.Array3D((3, SIZE, SIZE), "uint8")
        np.testing.assert_array_equal(rows_of(dataset, "image"), chw(images_of(split)))
        assert dataset["label"][:] == labels
    assert load_pixels(source, "validation", PROCESSOR, ReadOptions(max_images=1)).dataset.num_rows == 1
    stated = DataSource(path=source.path, release="imagenet1k_chrabaszcz")
    with pytest.raises(ValueError, match=r"imagenet1k_chrabaszcz .* 50,000 images, but the split 'validation' has 2,"):
        load_pixels(stated, "validation", PROCESSOR)
    with pytest.raises(UnknownSplitError, match="no split 'test'; it has train, validation"):
        open_split(source, "test")
    other = DataSource(path=source.path, release="imagenet1k_vandenoord")
    with pytest.raises(ValueError, match=r"`dataset_release` is imagenet1k_vandenoord, but .* holds imagenet1k_chrab"):
        open_split(other, "train")


def test_a_subset_of_the_batches_is_read_but_not_named_after_the_release(tmp_path, caplog):
    chrabaszcz_batches(tmp_path / "data")
    (tmp_path / "data" / "train_data_batch_1.npz").unlink()
    source = DataSource(path=str(tmp_path / "data"))
    for split, images in (("train", images_of("train")[2:]), ("validation", images_of("validation"))):
        caplog.clear()
        pixels = load_pixels(source, split, PROCESSOR)
        np.testing.assert_array_equal(rows_of(pixels.dataset, "pixels"), chw(images))
        assert f"the split '{split}' has {len(images)} images in " in caplog.text and known_release(source) is None
    assert open_split(DataSource(path=source.path, release="imagenet1k_chrabaszcz"), "train").num_rows == 3


def read_labels(source: DataSource, split: str, num_classes: int) -> list[int]:
    """Return the labels of a split, which are the same from a stream."""
    options, count = ReadOptions(num_classes=num_classes), COUNTS[split]
    labels = load_pixels(source, split, PROCESSOR, options).dataset["label"][:]
    stream = stream_batches(source, split, PROCESSOR, options, BatchSharding(count), range(1), shuffle_buffer_size=1)
    assert [batch.labels.tolist() for batch in stream] == [labels]
    return labels


def test_classes_that_are_numbered_from_1(tmp_path):
    chrabaszcz_batches(tmp_path / "batches")
    batches = DataSource(path=str(tmp_path / "batches"))
    assert read_labels(batches, "train", num_classes=3) == [0, 1, 0, 1, 2]
    assert read_labels(batches, "train", num_classes=1001) == [1, 2, 1, 2, 3]  # as earlier commits read them
    assert read_labels(replace(batches, first_label=0), "train", num_classes=4) == [1, 2, 1, 2, 3]

    def number_from_1(row: dict) -> dict:
        return row | {"label": row["label"] + 1}

    as_dataset("train").map(number_from_1).to_parquet(tmp_path / "train.parquet")  # encoded files
    column = DataSource(path=str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match=r"got 1 to 5; .* If the classes are numbered from 1, pass `first_label` 1"):
        read_labels(column, "train", num_classes=5)
    assert read_labels(replace(column, first_label=1), "train", num_classes=5) == [0, 1, 2, 3, 4]


def test_changed_batches_are_read_again(tmp_path):
    chrabaszcz_batches(tmp_path / "data")
    source = DataSource(path=str(tmp_path / "data"))
    open_split(source, "validation")
    for level in (7, 8):
        np.savez(tmp_path / "data" / "val_data.npz", data=np.full((1, 48), level, np.uint8))
        changed = open_split(source, "validation")
        assert changed.column_names == ["image"] and changed["image"][:] == np.full((1, 3, 4, 4), level).tolist()


class Python2Pickler(pickle._Pickler):
    """Bytes as Python 2 pickled them, which the release does."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, data: bytes) -> None:
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)

    dispatch[bytes] = save_bytes


def test_pickles_of_every_age(tmp_path):
    images = chw(images_of("train"))
    batch = {"data": images.reshape(len(images), -1), "labels": [np.int64(1), 2, 3, 4, 5]}
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(batch)
    pickles = [file.getvalue(), *(pickle.dumps(batch, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1))]
    # Up to protocol 3 names are not preceded by their lengths, so NumPy's old one can be put in.
    pickles += [data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray") for data in pickles[:5]]
    for data in pickles:
        (tmp_path / "train_data_batch_1").write_bytes(data)
        found, labels = read_batch(tmp_path / "train_data_batch_1")
        np.testing.assert_array_equal(found, images)
        assert labels == [1, 2, 3, 4, 5]


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_batch_is_refused_and_not_executed(tmp_path):
    trap = Malicious(tmp_path / "executed")
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": trap, "labels": []}))
    np.savez(tmp_path / "val_data.npz", data=np.array([trap], dtype=object))
    for name in ("val_data", "val_data.npz"):
        with pytest.raises(
            ValueError, match=r"val_data.* is not a batch of images: .*(mkdir is refused|allow_pickle)"
        ):
            open_split(DataSource(path=str(tmp_path / name)), "validation")
    assert not (tmp_path / "executed").exists()


def test_other_npz_files_are_refused(tmp_path):
    for batch, message in (
        ({"data": np.zeros((2, 48), np.float32)}, r"must be uint8 of shape .*, got float32 of shape \(2, 48\)"),
        ({"data": np.zeros((2, 50), np.uint8)}, r"got uint8 of shape \(2, 50\)"),
        ({"data": np.zeros((2, 48), np.uint8), "labels": np.zeros(3)}, "has 2 images but 3 labels"),
        ({"images": np.zeros((2, 48), np.uint8)}, "is not a batch of images: KeyError: 'data'"),
    ):
        np.savez(tmp_path / "train.npz", **batch)
        with pytest.raises(ValueError, match=message):
            open_split(DataSource(path=str(tmp_path / "train.npz")), "train")


@pytest.mark.parametrize("name", ["train_64x64.tar", "odd [name]*.parquet", "val_data.npz"])
def test_single_files(tmp_path, name):
    path = tmp_path / name
    split = "validation" if "val" in name else "train"
    if name.endswith(".tar"):
        write_tar(path, {f"train_64x64/{i:07d}.png": encode(image) for i, image in enumerate(images_of("train"))})
    elif name.endswith(".parquet"):
        as_dataset("train").to_parquet(path)
    else:
        np.savez(path, data=chw(images_of(split)).reshape(COUNTS[split], -1))
    source = DataSource(path=str(path))
    dataset = load_pixels(source, split, PROCESSOR, ReadOptions(max_images=2)).dataset
    np.testing.assert_array_equal(rows_of(dataset, "pixels"), chw(images_of(split)[:2]))
    with pytest.raises(UnknownSplitError, match=f"no split 'test'; it has {split}"):
        open_split(source, "test")


CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.parquet\n---\n"


def test_folders_of_equal_names_with_equal_cards_are_not_mixed_up(tmp_path):
    images = images_of("train")
    for parent in ("a", "b", "a"):  # the last one replaces the first
        folder = tmp_path / parent / "data"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(CARD)
        image, images = encode(images[0]), images[1:]
        pq.write_table(pa.table({"image": [image]}), folder / "train.parquet")
        (row,) = open_split(DataSource(path=str(folder)), "train")
        assert row["image"]["bytes"] == image


def test_a_truncated_tar_is_reported(tmp_path, caplog):
    van_den_oord_tars(tmp_path / "data")
    path = tmp_path / "data" / "train_64x64.tar"
    source = DataSource(path=str(tmp_path / "data"), streaming=True)
    with caplog.at_level(logging.WARNING):
        open_split(source, "train")
        assert "lacks the end" not in caplog.text
        path.write_bytes(path.read_bytes()[: 512 * 5])
        open_split(source, "train")
    assert "train_64x64.tar lacks the end of a tar file" in caplog.text


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: None, "the dataset .* does not exist"),
        (lambda data: data.mkdir(), "holds no readable images, .* it is empty"),
        (lambda data: write(data / "notes.foo", b"x"), r"holds no readable images, .* \(1 .foo\): notes.foo\."),
        (lambda data: write(data / "table.csv", b"a,b\n1,2\n"), "holds no readable images, .* table.csv"),
        (lambda data: write(data, b"x"), "must be a folder or a parquet, tar or npz file"),
        (lambda data: write(data / "train.parquet", b"PAR1junk"), "cannot be read"),
        (lambda data: write(data / "train.tar", b"no tar at all"), "cannot be read"),
    ],
)
def test_a_path_without_images_is_named(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(ValueError, match=message) as error:
        open_split(DataSource(path=str(tmp_path / "data")), "train")
    assert str(tmp_path / "data") in str(error.value)


def test_sources_that_name_no_dataset_are_refused():
    for fields, message in (
        ({}, "one of `dataset_name` and `dataset_path`, got neither"),
        ({"name": "a", "path": "b"}, "got 'a' and 'b'"),
        ({"path": "b", "release": "imagenet"}, "`dataset_release` must be one of cifar10, .*, got 'imagenet'"),
    ):
        with pytest.raises(ValueError, match=message):
            DataSource(**fields)


def test_a_missing_path_that_may_be_a_name_of_the_hub_is_named_as_both(monkeypatch):
    def fail(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'photos/new' doesn't exist on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = "^there is no path photos/new, and no dataset of this name can be opened on the Hub: .* doesn't exist"
    with pytest.raises(ValueError, match=message):
        open_split(DataSource.at("photos/new"), "train")


BINARY = datasets.Value("binary")


def test_the_image_column_is_found():
    for columns, expected in (
        ({"img": datasets.Image(), "label": datasets.Value("int64")}, "img"),
        ({"photo": datasets.Image()}, "photo"),
        ({"mask": datasets.Image(), "image": datasets.Image()}, "image"),
        ({"x": datasets.Array3D((32, 32, 3), "uint8"), "y": datasets.Array3D((2, 2, 2), "float32")}, "x"),
        *(({"key": BINARY, name: BINARY}, name) for name in ("image", "img", "jpg", "png", "webp")),
        ({"jpg": {"bytes": BINARY, "path": datasets.Value("string")}, "cls": datasets.Value("int64")}, "jpg"),
    ):
        assert find_image_column(datasets.Features(columns)) == expected
        assert find_image_column(datasets.Features(columns), expected) == expected


def test_an_ambiguous_image_column_is_refused():
    for columns, image_column, message in (
        ({"text": datasets.Value("string")}, None, "expected one column of images, got none among"),
        ({"a": datasets.Image(), "b": datasets.Image()}, None, "expected one column of images, got .*'a', 'b'"),
        ({"data": BINARY}, None, "expected one column of images"),
        ({"a": datasets.Image()}, "c", "`image_column` is 'c', but the columns are a"),
        ({"a": datasets.Image(), "n": datasets.Value("int64")}, "n", "`image_column` 'n' holds no images"),
    ):
        with pytest.raises(ValueError, match=message):
            find_image_column(datasets.Features(columns), image_column)


def test_an_image_count_of_another_release_is_refused():
    for release, split, count, message in (
        ("imagenet1k_vandenoord", "validation", 50_000, r"has 50,000, the number of imagenet1k_chrabaszcz \(.*_area"),
        ("imagenet1k_chrabaszcz", "valid", 49_999, r"has 49,999, the number of imagenet1k_vandenoord \("),
        ("cifar10", "test", 9_999, "has 9,999, the number of no known release"),
    ):
        with pytest.raises(ValueError, match=message):
            check_release(release, split, count)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_release_is_checked_where_a_whole_split_is_loaded(tmp_path, streaming):
    image_folders(tmp_path / "data")
    source = DataSource(path=str(tmp_path / "data"), release="cifar10", streaming=streaming)
    with pytest.raises(ValueError, match="10,000 images, but the split 'validation' has 2"):
        load_pixels(source, "validation", PROCESSOR)
    assert len(load_pixels(source, "validation", PROCESSOR, ReadOptions(max_images=2)).dataset) == 2
    assert len(load_pixels(source, "train", PROCESSOR).dataset) == 5


def test_counts_of_a_release(caplog):
    for name, release in RELEASES.items():
        check_release(name, "train", release.num_train_images)
        check_release(name, "validation", release.num_validation_images or 5)
    check_release(None, "validation", 1)
    check_release("cifar10", "test[:10]", 10)
    assert not caplog.records
    check_release("cifar10", "train", 49_000)
    assert "the training split has 49,000 images, but cifar10 (CIFAR-10) has 50,000" in caplog.text
    counts = [(each.num_train_images, each.num_validation_images) for each in RELEASES.values()]
    assert counts == [
        (50_000, 10_000),
        (1_281_149, 49_999),
        (1_281_167, 50_000),
        (1_281_167, 50_000),
        (14_197_122, None),
    ]
