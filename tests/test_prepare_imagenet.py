"""scripts/prepare_imagenet.py: the bytes it writes, how it continues after a kill, what it refuses and reports."""

import dataclasses
import json
import logging
import multiprocessing
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import datasets
import filelock
import numpy as np
import psutil
import pytest
from conftest import ROOT
from PIL import Image

from jet_hf import JetImageProcessor
from jet_hf.data import (
    RELEASES,
    DataSource,
    ReadOptions,
    UndecodableImagesError,
    load_pixels,
    open_split,
    preparation,
)
from jet_hf.data.preparation import PreparationArguments, Prepared, prepare


SCRIPT = ROOT / "scripts" / "prepare_imagenet.py"
SIZE = 6
PROCESSOR = JetImageProcessor(size=SIZE)


def photograph(number: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_classes(path: Path, broken: tuple[str, ...] = ()) -> Path:
    """Two splits of JPEG images, in one folder a class."""
    for split, count in (("train", 7), ("validation", 2)):
        for i in range(count):
            file = path / split / ("cat", "dog")[i % 2] / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photograph(i, 9 + i, 11).save(file, quality=95)
            if file.name in broken:
                file.write_bytes(b"broken")
    return path


def shards_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "data").iterdir())}


def prepare_folder(source: Path, output: Path, **options) -> Prepared:
    options = {"image_size": SIZE, "num_shards": 3} | options
    return prepare(PreparationArguments(output_dir=str(output), dataset_path=str(source), **options))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def prepared(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    assert prepare_folder(photographs, folder) == Prepared(7, 0, 3, 0, "JPEG")
    assert prepare_folder(photographs, folder, split="validation", num_shards=64) == Prepared(2, 0, 2, 0, "JPEG")
    return folder


def test_a_prepared_folder_is_a_data_set(prepared, photographs):
    assert list(shards_of(prepared)) == [
        *(f"train-{i:05d}-of-00003.parquet" for i in range(3)),
        *(f"validation-{i:05d}-of-00002.parquet" for i in range(2)),
    ]
    loaded = datasets.load_dataset(str(prepared))
    source = datasets.load_dataset("imagefolder", data_dir=str(photographs))
    assert list(loaded) == ["train", "validation"]
    for split, dataset in loaded.items():
        assert dataset.features == {
            "image": datasets.Array3D((3, SIZE, SIZE), "uint8"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
        assert dataset["label"][:] == source[split]["label"][:]
        expected = np.stack([PROCESSOR.to_uint8(image) for image in source[split]["image"]])
        np.testing.assert_array_equal(dataset.with_format("numpy", dtype=np.uint8)["image"][:], expected)


def test_the_record_and_the_card(prepared, photographs):
    record = json.loads((prepared / "preparation.json").read_text())["splits"]["train"]
    assert record["parameters"]["image_size"] == SIZE and record["parameters"]["num_source_images"] == 7
    assert (record["num_images"], record["num_skipped"], record["source_format"]) == (7, 0, "JPEG")
    card = (prepared / "README.md").read_text()
    for part in (
        f"# {photographs.name} at 6 x 6",
        "the central square of each image averaged over areas to 6 x 6 pixels, as TensorFlow's `ResizeMethod.AREA`",
        "| train | JPEG (lossy) | 7 | 0 |",
        "| validation | JPEG (lossy) | 2 | 0 |",
    ):
        assert part in card


def test_prepared_pixels_are_used_as_they_are(prepared):
    for streaming in (False, True):
        source = DataSource(path=str(prepared), streaming=streaming)
        result = load_pixels(source, "train", PROCESSOR)
        assert len(result.dataset) == 7 and result.source_format == "JPEG" and result.lossy
    assert load_pixels(DataSource(path=str(prepared)), "train[:3]", PROCESSOR).lossy


def test_the_shards_do_not_depend_on_the_processes(prepared, photographs, tmp_path):
    prepare_folder(photographs, tmp_path / "out", num_proc=2)
    shards = shards_of(prepared)
    assert shards_of(tmp_path / "out") == {name: shards[name] for name in shards if name.startswith("train")}


def test_a_stream_has_no_more_shards_than_files(prepared, tmp_path):
    result = prepare_folder(prepared, tmp_path / "out", streaming=True, image_size=3, num_shards=64)
    assert result == Prepared(7, 0, 3, 0, None)
    images = datasets.load_dataset(str(tmp_path / "out"), split="train").with_format("numpy", dtype=np.uint8)["image"]
    source = datasets.load_dataset(str(prepared), split="train").with_format("numpy", dtype=np.uint8)["image"]
    expected = source[:].reshape(7, 3, 3, 2, 3, 2).sum(axis=(3, 5), dtype=int)
    np.testing.assert_array_equal(images[:], (expected + 2) // 4)


# Columns of a 5 x 3 image; averaged by hand over 1.5 x 1.5 pixels of its central square, and over 2.5 x 1.5 of all.
LEVELS = np.array([[0, 9, 18, 27, 90], [0, 36, 45, 54, 0], [0, 63, 72, 81, 45]], np.uint8)
SQUARE = [[21, 33], [57, 69]]  # such as (9 + 18 / 2 + 36 / 2 + 45 / 4) / 2.25
SQUEEZED = [[13, 44], [34, 53]]  # of 12.6, 43.8, 34.2, 53.4
SQUEEZED_NEGATIVE = [[242, 211], [221, 202]]


@pytest.mark.parametrize("center_crop", [True, False])
def test_averages_computed_by_hand(tmp_path, monkeypatch, capsys, center_crop):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.stack([LEVELS, 255 - LEVELS, 0 * LEVELS], axis=-1)).save(tmp_path / "images" / "a.png")
    run_script(
        monkeypatch,
        *("--dataset_path", tmp_path / "images", "--output_dir", tmp_path / "out"),
        *("--image_size", 2, "--center_crop", str(center_crop).lower()),
    )
    assert re.search(r"1 images? of train in 1 shards?", capsys.readouterr().out)
    (image,) = datasets.load_dataset(str(tmp_path / "out"), split="train")["image"][:]
    negative = [[255 - level for level in row] for row in SQUARE] if center_crop else SQUEEZED_NEGATIVE
    assert image == [SQUARE if center_crop else SQUEEZED, negative, [[0, 0], [0, 0]]]
    crop = "the central square of each image" if center_crop else "each whole image, squeezed,"
    assert f"{crop} averaged over areas" in (tmp_path / "out" / "README.md").read_text()


def run_script(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_only_what_is_missing_or_damaged_is_written_again(prepared, photographs, tmp_path):
    folder = tmp_path / "out"
    prepare_folder(photographs, folder)
    names = list(shards_of(folder))
    assert prepare_folder(photographs, folder, num_proc=2).num_found == 3
    inodes = {name: (folder / "data" / name).stat().st_ino for name in names}
    (folder / "data" / names[0]).unlink()
    whole = (folder / "data" / names[1]).read_bytes()
    (folder / "data" / names[1]).write_bytes(whole[: len(whole) // 2])
    assert prepare_folder(photographs, folder) == Prepared(7, 0, 3, 1, "JPEG")
    assert shards_of(folder) == {name: shards_of(prepared)[name] for name in names}
    assert (folder / "data" / names[2]).stat().st_ino == inodes[names[2]]


def test_other_parameters_are_refused_by_name(prepared, photographs):
    before = {file: file.stat().st_mtime_ns for file in prepared.rglob("*")}
    for options, message in (
        ({"image_size": 5}, r"`image_size` was 6 and is now 5"),
        ({"center_crop": False}, r"`center_crop` was True and is now False"),
        ({"num_shards": 2}, r"`num_shards` was 3 and is now 2"),
        ({"split": "test", "image_size": 5}, r"no split 'test'"),
        ({"split": "validation", "image_size": 2}, r"\(split 'train'\) with other parameters: `image_size` was 6"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_folder(photographs, prepared, **options)
    assert {file: file.stat().st_mtime_ns for file in prepared.rglob("*")} == before


def replace_an_image(source: Path) -> None:
    (source / "train" / "cat" / "0.jpg").rename(source / "train" / "cat" / "8.jpg")


def change_all_images(source: Path) -> None:
    for file in source.rglob("*.jpg"):
        whole = bytearray(file.read_bytes())
        whole[-9] ^= 1
        file.write_bytes(whole)


def change_the_labels(source: Path) -> None:
    (source / "metadata.csv").write_text("file_name,label\ntrain/cat/0.jpg,1\n")


@pytest.mark.parametrize("change", [replace_an_image, change_all_images, change_the_labels])
def test_a_preparation_does_not_continue_with_other_data(tmp_path, caplog, change):
    source = write_classes(tmp_path / "source")
    (source / "metadata.csv").write_text("file_name,label\ntrain/cat/0.jpg,0\n")
    folder, streaming = tmp_path / "out", change is change_all_images
    prepare_folder(source, folder, streaming=streaming)
    (folder / "data" / "train-00002-of-00003.parquet").unlink()
    change(source)
    before = shards_of(folder)
    with pytest.raises(
        ValueError, match="was begun with other data: the names, sizes or bytes of the files of the sp"
    ):
        prepare_folder(source, folder, streaming=streaming)
    assert shards_of(folder) == before
    record = json.loads((folder / "preparation.json").read_text())
    del record["splits"]["train"]["source_fingerprint"]  # as earlier versions wrote it
    (folder / "preparation.json").write_text(json.dumps(record))
    assert prepare_folder(source, folder, streaming=streaming).num_found == 2
    assert "so changes of the source of split 'train' cannot be detected" in caplog.text


def wait_for_end(processes: list[psutil.Process], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while running := [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]:
        if time.monotonic() > end:
            for each in running:
                each.kill()
            return False
        time.sleep(0.05)
    return True


def test_a_killed_preparation_continues_to_the_same_bytes(tmp_path):
    for i in range(40):
        file = tmp_path / "images" / f"{i:02d}.png"
        file.parent.mkdir(exist_ok=True)
        photograph(i, 500, 400).save(file, compress_level=1)
    options = {"dataset_path": str(tmp_path / "images"), "image_size": 30, "num_shards": 20, "num_proc": 2}
    folder = tmp_path / "killed"
    arguments = PreparationArguments(output_dir=str(folder), **options)
    process = multiprocessing.get_context("fork").Process(target=prepare, args=(arguments,))
    process.start()
    while process.is_alive() and len(list(folder.glob("data/train-*"))) < 3:
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
    assert len(workers) == 2 and wait_for_end(workers)
    found = len(list(folder.glob("data/train-*")))
    assert 3 <= found < 20
    with pytest.raises(ValueError, match="the split 'train' is not finished"):
        open_split(DataSource(path=str(folder)), "train")

    result = prepare(arguments)
    assert result.num_images == 40 and found <= result.num_found < 20
    prepare(PreparationArguments(output_dir=str(tmp_path / "straight"), **options | {"num_proc": 1}))
    shards = shards_of(folder)
    assert len(shards) == 20 and shards == shards_of(tmp_path / "straight")
    for name in ("preparation.json", "README.md"):
        assert (folder / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert len(datasets.load_dataset(str(folder), split="train")) == 40


def test_undecodable_images_are_skipped_counted_and_named(tmp_path, caplog):
    source = write_classes(tmp_path / "source", broken=("2.jpg",))
    folder = tmp_path / "out"
    message = r"1 of 7 images of split 'train' of .*first are: cat/2\.jpg: Pillow"
    with pytest.raises(UndecodableImagesError, match=message):
        prepare_folder(source, tmp_path / "processes", max_undecodable_share=0.1, num_proc=2)
    with pytest.raises(UndecodableImagesError, match=message):
        prepare_folder(source, folder, max_undecodable_share=0.1, num_shards=1)
    with pytest.raises(ValueError, match="the split 'train' is not finished"):
        open_split(DataSource(path=str(folder)), "train")
    with caplog.at_level(logging.WARNING, "jet_hf"):
        result = prepare_folder(source, folder, max_undecodable_share=0.2, num_shards=1)
    assert result == Prepared(6, 1, 1, 1, "JPEG")
    assert "1 images cannot be decoded and were skipped: cat/2.jpg: Pillow does not" in caplog.text
    assert "| train | JPEG (lossy) | 6 | 1 |" in (folder / "README.md").read_text()
    loaded = datasets.load_dataset(str(folder), split="train")
    assert loaded["label"][:] == [0, 0, 0, 1, 1, 1]
    assert load_pixels(DataSource(path=str(folder)), "train", PROCESSOR).num_skipped == 1
    assert load_pixels(DataSource(path=str(folder)), "train[:50%]", PROCESSOR).num_skipped == 0


def test_the_number_of_images_is_that_of_the_release(photographs, tmp_path):
    release = "imagenet1k_area"
    with pytest.raises(ValueError, match=r"imagenet1k_area .* has 50,000 images, but the split 'validation' has 2"):
        prepare_folder(photographs, tmp_path / "out", split="validation", dataset_release=release)
    assert not (tmp_path / "out").exists()
    prepare_folder(photographs, tmp_path / "out", dataset_release=release)  # of training images it is only logged
    assert f"Release `{release}`. Full-size images averaged over areas" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match=f"`dataset_release` is cifar10, but .* holds {release}"):
        open_split(DataSource(path=str(tmp_path / "out"), release="cifar10"), "train")


def test_invalid_input_is_reported_in_one_line(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").symlink_to(photographs)
    data = {"dataset_path": "photographs"}
    for options, message in (
        ({}, "expected one of `dataset_name` and `dataset_path`, got neither"),
        ({"dataset_path": "nowhere"}, "the dataset nowhere does not exist"),
        (data | {"split": "test"}, "has no split 'test'; it has train, validation"),
        (data | {"split": "train[:5]"}, "`split` must be the name of a whole split"),
        (data | {"image_size": 0}, "`image_size` must be a whole number of at least 1, got 0"),
        (data | {"image_column": "img"}, "`image_column` is 'img', but the columns are image, la"),
        (data | {"max_undecodable_share": 2}, "`max_undecodable_share` must be at most 1, got 2"),
        (data | {"output_dir": "photographs"}, "already exists and is not an empty folder"),
        (
            data | {"output_dir": "photographs/out"},
            "`output_dir` photographs/out must not lie inside `dataset_path` photographs.",
        ),
    ):
        words = [word for name, value in ({"output_dir": "out"} | options).items() for word in (f"--{name}", value)]
        with pytest.raises(SystemExit) as error:
            run_script(monkeypatch, *words)
        text = error.value.code
        assert text.startswith("error: ") and message in text and "\n" not in text
    assert not (tmp_path / "out").exists()


def test_the_folders_of_splits_are_not_labels(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "source" / split).mkdir(parents=True)
        photograph(0, 9, 9).save(tmp_path / "source" / split / "0.png")
    for streaming in (False, True):
        prepare_folder(tmp_path / "source", tmp_path / f"out{streaming}", streaming=streaming)
        assert datasets.load_dataset(str(tmp_path / f"out{streaming}"), split="train").column_names == ["image"]


def test_a_second_process_is_refused(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "SECONDS_TO_LOCK", 0.1)
    with filelock.FileLock(tmp_path / ".out.lock"), pytest.raises(ValueError, match="another process is writing to"):
        prepare_folder(photographs, tmp_path / "out")
    prepare_folder(photographs, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_source_that_lost_images_and_a_draft_that_was_left(prepared, tmp_path):
    source = write_classes(tmp_path / "source")
    prepare_folder(source, tmp_path / "out")
    shard = tmp_path / "out" / "data" / "train-00001-of-00003.parquet"
    shard.rename(shard.with_name(f".{shard.name}")).write_bytes(b"half of it")
    prepare_folder(source, tmp_path / "out")
    assert shards_of(tmp_path / "out").items() <= shards_of(prepared).items()
    (source / "train" / "cat" / "0.jpg").unlink()
    with pytest.raises(ValueError, match="`num_source_images` was 7 and is now 6"):
        prepare_folder(source, tmp_path / "out")


def test_images_that_were_left_out_count_for_the_release(tmp_path, monkeypatch):
    release = "imagenet1k_area"
    monkeypatch.setitem(RELEASES, release, dataclasses.replace(RELEASES[release], num_validation_images=2))
    source = write_classes(tmp_path / "source", broken=("1.jpg",))
    options = {"split": "validation", "dataset_release": release, "max_undecodable_share": 0.5}
    for streaming in (False, True):
        folder = tmp_path / f"out{streaming}"
        prepare_folder(source, folder, streaming=streaming, **options)
        for data in (DataSource(path=str(folder)), DataSource(path=str(folder), release=release, streaming=streaming)):
            result = load_pixels(data, "validation", PROCESSOR)
            assert (len(result.dataset), result.num_skipped) == (1, 1)
        assert load_pixels(data, "validation", PROCESSOR, ReadOptions(max_images=1)).num_skipped == 0


def test_classes_count_from_0_unless_the_folder_was_begun_otherwise(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(4, 3 * SIZE * SIZE), dtype=np.uint8)
    (tmp_path / "batches").mkdir()
    np.savez(tmp_path / "batches" / "train_data_batch_1.npz", data=images, labels=np.arange(1, 5))
    for name, options, expected in (("new", {}, [0, 1, 2, 3]), ("begun", {"first_label": 0}, [1, 2, 3, 4])):
        prepare_folder(tmp_path / "batches", tmp_path / name, **options)
        next((tmp_path / name / "data").iterdir()).unlink()
        prepare_folder(tmp_path / "batches", tmp_path / name)  # an earlier commit recorded no `first_label`
        assert open_split(DataSource(path=str(tmp_path / name)), "train")["label"][:] == expected
    with pytest.raises(ValueError, match="`first_label` was 1 and is now 2"):
        prepare_folder(tmp_path / "batches", tmp_path / "new", first_label=2)
    with pytest.raises(ValueError, match="`first_label` is 2, but `label` has the class 1"):
        prepare_folder(tmp_path / "batches", tmp_path / "other", first_label=2)
