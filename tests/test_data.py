"""Pixels and batches: which bytes, in which order, and what happens to undecodable images; codec baselines."""

import io
import logging
import re
import sys
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from train_process import ForkedScript

from examples.photographs import SPLITS, load_photograph, write_photographs
from jet_hf import JetImageProcessor
from jet_hf.analysis.baselines import codec_bits_per_dim, histogram_bits_per_dim
from jet_hf.data import (
    Batch,
    BatchSharding,
    DataSource,
    ReadOptions,
    UndecodableImagesError,
    eval_batches,
    load_pixels,
    open_split,
    read_pixels,
    train_batches,
)
from jet_hf.data import pixels as pixels_module


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def test_photographs_of_the_two_splits_are_different_scenes(photographs):
    assert not set(SPLITS["train"]) & set(SPLITS["validation"])
    for split, names in SPLITS.items():
        dataset = open_split(DataSource(path=str(photographs)), split)
        assert len(dataset) == len(names)
        for row, name in zip(dataset, sorted(names), strict=True):
            image = Image.open(row["image"]["path"])
            assert np.array_equal(np.asarray(image), load_photograph(name))
            assert image.mode == "RGB" and min(image.size) >= 300


def test_pixels_are_those_of_the_image_processor(photographs):
    processor = JetImageProcessor(size=24)
    (batch,) = eval_batches(load_pixels(DataSource(path=str(photographs)), "validation", processor).dataset, 2)
    images = [load_photograph(name) for name in SPLITS["validation"]]
    assert torch.equal(batch.pixels / 127.5 - 1, processor(images, return_tensors="pt").pixel_values)


def numbered(count: int) -> datasets.Dataset:
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 2, 2))
    features = datasets.Features({"pixels": datasets.Array3D((3, 2, 2), "uint8")})
    return datasets.Dataset.from_dict({"pixels": list(pixels)}, features=features)


def numbers(batch: Batch) -> list[int]:
    assert batch.pixels.dtype == torch.uint8 and batch.pixels.shape[1:] == (3, 2, 2)
    return batch.pixels[:, 0, 0, 0].tolist()


def stream(shardings: list[BatchSharding], steps: range, **options) -> list[int]:
    """The images of a training run by their indices, merged from all processes."""
    found = {}
    for sharding in shardings:
        for batch in train_batches(numbered(10), sharding, steps, **options):
            assert len(batch.pixels) == len(batch.indices) == sharding.size
            found |= dict(zip(batch.indices.tolist(), numbers(batch), strict=True))
    return [found[index] for index in sorted(found)]


def test_training_sees_every_image_once_an_epoch_in_a_different_order():
    images = stream([BatchSharding(4)], range(5))
    first, second = images[:10], images[10:]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert stream([BatchSharding(4)], range(5)) == images != stream([BatchSharding(4)], range(5), seed=1)


def test_the_order_depends_on_neither_processes_nor_micro_batches_nor_workers_nor_a_resume():
    expected = stream([BatchSharding(4)], range(6))
    for num_processes, num_micro_batches in ((2, 1), (1, 4), (2, 2), (4, 1)):
        shardings = [BatchSharding(4, num_micro_batches, rank, num_processes) for rank in range(num_processes)]
        assert stream(shardings, range(6)) == expected
    for start_step in (1, 3, 6):
        assert stream([BatchSharding(4)], range(start_step, 6)) == expected[4 * start_step :]
    assert stream([BatchSharding(4)], range(6), num_workers=2) == expected


def test_a_batch_size_that_cannot_be_divided_is_refused():
    for batch_size, num_micro_batches, num_processes in ((0, 1, 1), (6, 4, 1), (6, 1, 4), (6, 2, 2)):
        with pytest.raises(ValueError, match="`train_batch_size` must be a multiple of"):
            BatchSharding(batch_size, num_micro_batches, 0, num_processes)


@pytest.mark.parametrize(("batch_size", "num_processes"), [(4, 1), (3, 2), (10, 1), (4, 3), (16, 2)])
def test_evaluation_sees_every_image_once_in_batches_of_equal_size(batch_size, num_processes):
    images, lengths = {}, set()
    for process in range(num_processes):
        batches = list(eval_batches(numbered(10), batch_size, process, num_processes))
        lengths.add(len(batches))
        for batch in batches:
            assert len(batch.pixels) == batch_size
            for index, image in zip(batch.indices.tolist(), numbers(batch), strict=True):
                assert index not in images
                images[index] = image
    assert len(lengths) == 1
    assert [images[index] for index in range(10)] == list(range(10))


# What cannot be decoded


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


GOOD = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
JPEG = encode(np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8), "JPEG")
BROKEN = {  # each file, and the reason where Pillow's limit is 100 pixels
    "04.jpg": (JPEG[:-40], "OSError: .*truncated"),
    "07.png": (b"This is a text.", "Pillow does not recognize the file"),
    "08.png": (b"", "Pillow does not recognize the file"),
    "11.png": (encode(np.zeros((11, 10), np.uint8)), "10 x 11 pixels exceed Pillow's limit of 100"),
    "15.png": (encode(np.zeros((20, 11), np.uint8)), "DecompressionBombError"),
}
GOOD_NUMBERS = [i for i in range(20) if i not in (4, 7, 8, 11, 15)]
GOOD_PIXELS = GOOD[GOOD_NUMBERS].transpose(0, 3, 1, 2)
PROCESSOR = JetImageProcessor(size=8)


@pytest.fixture
def broken_folder(tmp_path, monkeypatch):
    """Twenty images, five of which cannot be decoded."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in GOOD_NUMBERS:
        (folder / f"{i:02d}.png").write_bytes(encode(GOOD[i]))
    for name, (data, _) in BROKEN.items():
        (folder / name).write_bytes(data)
    return folder


def all_pixels(dataset: datasets.Dataset) -> np.ndarray:
    return read_pixels(dataset).numpy()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("streaming", "num_proc"), [(False, None), (False, 2), (True, None)])
def test_undecodable_images_are_skipped_counted_and_named(broken_folder, caplog, streaming, num_proc):
    source = DataSource(path=str(broken_folder), streaming=streaming)
    with pytest.raises(UndecodableImagesError, match=r"5 of 20 .*the allowed share of 0\.24: .* first are: .*04\.jpg"):
        load_pixels(source, "train", PROCESSOR, ReadOptions(max_undecodable_share=0.24))
    with caplog.at_level(logging.WARNING, "jet_hf"):
        options = ReadOptions(max_undecodable_share=0.25)
        result = load_pixels(source, "train", PROCESSOR, options, num_proc=num_proc)
    assert (result.num_skipped, result.source_format, result.lossy) == (5, "PNG", False)
    np.testing.assert_array_equal(all_pixels(result.dataset), GOOD_PIXELS)
    (message,) = (record.getMessage() for record in caplog.records if record.name == "jet_hf.data.pixels")
    assert message.startswith("5 of 20 images of split 'train' of") and message.count("; ") == 4
    for name, (_, reason) in BROKEN.items():
        assert re.search(f"{name}: [^;]*{reason}", message), message
    (batch,) = eval_batches(result.dataset, 15)
    np.testing.assert_array_equal(batch.pixels.numpy(), GOOD_PIXELS)


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_images_count_as_undecodable(tmp_path, streaming):
    source = DataSource(path=str(tmp_path), streaming=streaming)
    pq.write_table(pa.table({"image": [encode(GOOD[0]), None]}), tmp_path / "train.parquet")
    result = load_pixels(source, "train", PROCESSOR, ReadOptions(max_undecodable_share=0.5))
    assert (len(result.dataset), result.num_skipped) == (1, 1)
    pq.write_table(pa.table({"image": pa.array([None, None], pa.binary())}), tmp_path / "train.parquet")
    with pytest.raises(UndecodableImagesError, match=r"2 of 2 images .*image 0: there is no image"):
        load_pixels(source, "train", PROCESSOR, ReadOptions(max_undecodable_share=1.0))


def test_decoding_stops_as_soon_as_the_share_is_passed(tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": [b"broken"] * 1000}), tmp_path / "train.parquet")
    calls = []
    decode = pixels_module.decode_image
    monkeypatch.setattr(pixels_module, "decode_image", lambda *arguments: calls.append(1) or decode(*arguments))
    with pytest.raises(UndecodableImagesError, match="100 of 1000 images"):
        load_pixels(DataSource(path=str(tmp_path)), "train", PROCESSOR, ReadOptions(max_undecodable_share=0.05))
    assert len(calls) == 100


def test_a_file_that_cannot_be_read_is_no_undecodable_image(tmp_path):
    source = DataSource(path=str(tmp_path))
    (tmp_path / "gone.png").write_bytes(encode(GOOD[0]))
    assert source.layout.splits
    (tmp_path / "gone.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        load_pixels(source, "train", PROCESSOR)


def nothing():
    yield from ()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_without_images_is_an_error(monkeypatch, streaming):
    features = datasets.Features({"image": datasets.Image(decode=False)})
    empty = datasets.Dataset.from_dict({"image": []}, features)
    if streaming:
        empty = datasets.IterableDataset.from_generator(nothing, features=features)
    monkeypatch.setattr("jet_hf.data.pixels.open_split", lambda *_: empty)
    with pytest.raises(ValueError, match=r"split 'train' of nowhere holds no images"):
        load_pixels(DataSource(path="nowhere"), "train", PROCESSOR)


def test_a_lossy_source_is_noted(tmp_path):
    for kind, lossy in (("JPEG", True), ("WEBP", True), ("PNG", False)):
        (tmp_path / kind).mkdir()
        for i in range(3):
            (tmp_path / kind / f"{i}.png").write_bytes(encode(GOOD[i]))
        (tmp_path / kind / f"3.{kind.lower()}").write_bytes(encode(GOOD[3], kind))
        result = load_pixels(DataSource(path=str(tmp_path / kind)), "train", PROCESSOR)
        assert result.source_format == (f"PNG, {kind}" if lossy else "PNG") and result.lossy is lossy


def test_numbers_below_one_are_refused_by_name():
    for name in ("max_images", "random_crops_per_image"):
        with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1, got 0"):
            ReadOptions(**{name: 0})


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("streaming", [False, True])
def test_random_crops_are_pieces_of_their_images(broken_folder, streaming):
    source = DataSource(path=str(broken_folder), streaming=streaming)
    options = ReadOptions(random_crops_per_image=2, max_undecodable_share=0.25, seed=3)
    result = load_pixels(source, "train", JetImageProcessor(size=3), options)
    crops = all_pixels(result.dataset)
    assert crops.shape == (30, 3, 3, 3) and result.num_skipped == 5
    for i, crop in enumerate(crops):
        windows = np.lib.stride_tricks.sliding_window_view(GOOD_PIXELS[i // 2], (3, 3, 3))[0]
        assert (windows == crop).all(axis=(2, 3, 4)).any()
    (broken_folder / "01.png").write_bytes((broken_folder / "00.png").read_bytes())
    equal = load_pixels(source, "train", JetImageProcessor(size=3), options)
    assert not np.array_equal(*all_pixels(equal.dataset)[:4].reshape(2, 2, 3, 3, 3))
    other = load_pixels(source, "train", JetImageProcessor(size=3), replace(options, seed=4), keep_in_memory=True)
    assert not np.array_equal(all_pixels(other.dataset), crops) and not other.dataset.cache_files
    if not streaming:
        assert result.dataset.cache_files
    with pytest.raises(ValueError, match="fewer than the crop's 4000 x 4000"):
        load_pixels(source, "train", JetImageProcessor(size=4000), options)


def test_arrays_in_any_column_may_be_missing(tmp_path):
    features = datasets.Features({"x": datasets.Array3D((3, 8, 8), "uint8")})
    rows = [GOOD_PIXELS[0], None, GOOD_PIXELS[1]]
    datasets.Dataset.from_dict({"x": rows}, features=features).save_to_disk(tmp_path / "saved")
    source = DataSource(path=str(tmp_path / "saved"))
    result = load_pixels(source, "train", PROCESSOR, ReadOptions(max_undecodable_share=0.4))
    assert result.num_skipped == 1
    np.testing.assert_array_equal(all_pixels(result.dataset), GOOD_PIXELS[:2])


LOAD = """
import sys
from jet_hf import JetImageProcessor
from jet_hf.data import DataSource, ReadOptions, load_pixels, pixels

original, calls = pixels.decode_image, []
pixels.decode_image = lambda *arguments: calls.append(1) or original(*arguments)
for size, seed, crops in ((8, 0, None), (8, 1, None), (4, 0, 2), (4, 1, 2)):
    source, options = DataSource(path=sys.argv[1]), ReadOptions(seed=seed, random_crops_per_image=crops)
    result = load_pixels(source, "train", JetImageProcessor(size=size), options)
    print(len(calls), len(result.dataset), sum(result.dataset[1]["pixels"][0][0]))
"""


def test_pixels_are_decoded_once_for_all_processes(tmp_path, monkeypatch, capsys):
    """In a process whose strings have other hashes, and in this one."""
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(encode(GOOD[i]))

    def parse(output: str) -> list[list[int]]:
        return [[int(word) for word in line.split()] for line in output.splitlines()]

    (tmp_path / "load.py").write_text(LOAD)
    command = [str(tmp_path / "load.py"), str(tmp_path / "images")]
    output = tmp_path / "output.txt"
    assert ForkedScript(command, tmp_path / "cache", output, output, {}).wait(timeout=300) == 0, output.read_text()
    first = parse(output.read_text())
    assert [line[0] for line in first] == [3, 3, 6, 9]  # without crops the seed draws nothing
    assert [line[1] for line in first] == [3, 3, 6, 6] and first[0][2] == GOOD[1, 0, :, 0].sum()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(pixels_module, "decode_image", pixels_module.decode_image)  # restored after the script
    exec(LOAD, {})
    assert parse(capsys.readouterr().out) == [[0, *line[1:]] for line in first]


# Baselines


def test_codecs_are_measured_in_bits_of_their_files(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(2, 3, 16, 16), dtype=np.uint8)
    for codec, options in (("png", {"optimize": True}), ("webp", {"lossless": True, "quality": 100, "method": 6})):
        bits = codec_bits_per_dim(pixels, codec)
        for image, measured in zip(pixels, bits, strict=True):
            path = tmp_path / f"image.{codec}"
            Image.fromarray(image.transpose(1, 2, 0)).save(path, **options)
            assert measured == 8 * path.stat().st_size / 768
            assert np.array_equal(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1), image)
    assert codec_bits_per_dim(np.zeros((1, 1, 16, 16), np.uint8), "png") < 3 < bits.min()


def test_histogram_model_is_the_entropy_of_the_levels():
    train = np.zeros((1, 2, 16, 16), np.uint8)
    train[:, 1, ::2] = 255  # channel 0: one level; channel 1: two equally frequent ones
    bits = histogram_bits_per_dim(np.repeat(train, 10**4, axis=0), train)
    assert bits == pytest.approx([0.5], abs=1e-3)
    assert histogram_bits_per_dim(train, np.full((1, 2, 4, 4), 7, np.uint8)) == pytest.approx([9], abs=1e-9)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_pixels_of_a_dataset_in_several_parts_keep_their_places(dtype):
    images = np.random.default_rng(0).integers(256, size=(9, 3, 4, 5)).astype(dtype)
    features = datasets.Features({"pixels": datasets.Array3D((3, 4, 5), dtype)})
    parts = [datasets.Dataset.from_dict({"pixels": list(part)}, features) for part in np.split(images, [4, 5])]
    whole = datasets.concatenate_datasets(parts)
    assert np.array_equal(read_pixels(whole).numpy(), images)
    assert np.array_equal(read_pixels(whole.select([8, 0, 4, 4, 3])).numpy(), images[[8, 0, 4, 4, 3]])
    assert read_pixels(whole.select([])).shape == (0, 3, 4, 5)
