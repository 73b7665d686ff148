"""Data of other numbers of gray levels, from files and columns to scores and saved pictures."""

import json
import math
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from script_runner import run_script
from sklearn.datasets import load_digits
from train_process import like_a_process, rows, train_here

from examples.digits import write_digits
from jet_hf import JetImageProcessor
from jet_hf.arguments import PreparationArguments
from jet_hf.data import BatchSharding, DataSource, ReadOptions, load_pixels, read_pixels, stream_batches
from jet_hf.data.preparation import prepare
from jet_hf.utils.noise import uniform_noise


def write_levels(folder, num_levels: int, kind: str = "png", shape: tuple[int, int] = (8, 8)) -> np.ndarray:
    """Write a folder of 20 gray images, some of which hold the largest level, and return their levels."""
    levels = np.random.default_rng(0).integers(num_levels, size=(20, *shape))
    levels[::2, 0, 0] = num_levels - 1
    levels = levels.astype(np.uint8 if num_levels <= 256 else np.uint16)
    folder.mkdir(parents=True)
    for i, image in enumerate(levels):
        Image.fromarray(image).save(folder / f"{i:02}.{kind}")
    return levels


def gray_processor(num_levels: int, size: int | tuple[int, int] = 8) -> JetImageProcessor:
    return JetImageProcessor(size=size, num_channels=1, num_levels=num_levels)


def test_digits_keep_their_levels_and_their_classes(tmp_path):
    source, digits = DataSource(path=str(write_digits(tmp_path))), load_digits()
    parts = {
        split: load_pixels(source, split, gray_processor(17), ReadOptions(num_classes=10))
        for split in ("train", "test")
    }
    assert {split: len(part.dataset) for split, part in parts.items()} == {"train": 1437, "test": 360}
    found = np.concatenate([read_pixels(part.dataset)[:, 0] for part in parts.values()])
    labels = np.concatenate([part.dataset["label"][:] for part in parts.values()])
    assert found.dtype == np.uint8 and found.max() == 16
    rows = [int(re.search(r"(\d{4})\.png", name)[1]) for part in parts.values() for name in part.names()]
    assert sorted(rows) == list(range(1797))
    np.testing.assert_array_equal(found, digits.images[rows])
    np.testing.assert_array_equal(labels, digits.target[rows])
    shares = np.bincount(parts["test"].dataset["label"][:]) / np.bincount(digits.target)
    assert np.allclose(shares, 0.2, atol=0.005)


@pytest.mark.parametrize(("num_levels", "shape"), [(17, (8, 8)), (65536, (8, 12))])
def test_levels_pass_through_training_scoring_and_sampling(num_levels, shape, tmp_path, capsys):
    levels = write_levels(tmp_path / "train", num_levels, "tif" if num_levels > 256 else "png", shape)
    write_levels(tmp_path / "images" / "validation", num_levels, shape=shape)
    (tmp_path / "train").rename(tmp_path / "images" / "train")
    run, images = tmp_path / "run", tmp_path / "images"
    fields = {"image_size": list(shape), "num_channels": 1, "num_levels": num_levels, "save_steps": 0}
    with like_a_process(tmp_path / "cache"):
        train_here(dataset_path=images, output_dir=run, max_steps=2, eval_steps=2, sample_steps=2, **fields)
        assert run_script("evaluate.py", "--model", run, "--dataset", images) == 0
    score = json.loads(capsys.readouterr().out)
    first, last = rows(run, "evaluations.jsonl")
    assert score["bits_per_dim"] == pytest.approx(last["bits_per_dim"], abs=1e-5)
    # At step 0 the model is the identity, whose density is known in closed form.
    noise = uniform_noise(0, torch.arange(20), (1, *shape), stream=2**32 - 1).numpy()[:, 0]
    latents = (levels + noise.astype(np.float64)) * 2 / (num_levels - 1) - 1
    nats = 0.5 * latents**2 + 0.5 * math.log(2 * math.pi)
    assert first["bits_per_dim"] == pytest.approx(
        nats.mean() / math.log(2) + math.log2((num_levels - 1) / 2), abs=1e-5
    )

    deep = num_levels > 256
    assert Image.open(run / "samples" / "samples-00000002.png").mode == "RGB"
    original = images / "validation" / "00.png"
    assert run_script("sample.py", "--model", run, "--reconstruct", original, "--output_dir", tmp_path / "out") == 0
    assert "equal: True" in capsys.readouterr().out
    picture = np.asarray(Image.open(tmp_path / "out" / "00000.png"))
    assert picture.dtype == (np.uint16 if deep else np.uint8)
    np.testing.assert_array_equal(np.rint(picture * ((num_levels - 1) / (65535 if deep else 255))), levels[0])
    grid = np.asarray(Image.open(tmp_path / "out" / "grid.png"))
    assert grid.dtype == np.uint8 and grid.max() == 255
    assert run_script("sample.py", "--model", run, "--num_images", 2, "--output_dir", tmp_path / "samples") == 0
    sample = Image.open(tmp_path / "samples" / "00001.png")
    assert (sample.mode, sample.size) == ("I;16" if deep else "L", shape[::-1])


@pytest.mark.parametrize(("num_levels", "width"), [(17, 4), (65536, 6)])
def test_streams_crops_averages_and_prepared_shards_keep_levels(num_levels, width, tmp_path):
    levels = write_levels(tmp_path / "images", num_levels, shape=(8, 16))
    source, processor = DataSource(path=str(tmp_path / "images")), gray_processor(num_levels, size=(4, width))
    means = levels[:, :, 8 - width : 8 + width].reshape(20, 4, 2, width, 2).mean(axis=(2, 4))
    expected = np.floor(means + 0.5).astype(levels.dtype)[:, None]
    np.testing.assert_array_equal(read_pixels(load_pixels(source, "train", processor).dataset), expected)
    stream = stream_batches(source, "train", processor, ReadOptions(), BatchSharding(20), range(1), 1)
    (batch,) = stream
    np.testing.assert_array_equal(batch.pixels.numpy(), expected)
    crops = load_pixels(source, "train", processor, ReadOptions(random_crops_per_image=1)).dataset
    windows = np.lib.stride_tricks.sliding_window_view(levels, (4, width), axis=(1, 2))
    assert (read_pixels(crops).numpy()[:, :, None] == windows).all(axis=(3, 4)).any(axis=(1, 2)).all()

    fields = {"image_size": [4, width], "num_channels": 1, "num_levels": num_levels, "num_shards": 2}
    shards = tmp_path / "shards"
    prepare(PreparationArguments(dataset_path=source.path, output_dir=str(shards), **fields))
    prepared = DataSource(path=str(shards))
    np.testing.assert_array_equal(read_pixels(load_pixels(prepared, "train", processor).dataset), expected)
    for read in (
        lambda: load_pixels(prepared, "train", gray_processor(256, size=(4, width))),
        lambda: stream_batches(
            prepared, "train", gray_processor(256, size=(4, width)), ReadOptions(), BatchSharding(2), range(1)
        ),
    ):
        with pytest.raises(ValueError, match=f"prepared with `num_levels` {num_levels}, but the model has 256"):
            read()


def columns(levels: np.ndarray, layout: str, dtype: str) -> datasets.Dataset:
    images = levels[:, None] if layout == "first" else levels[..., None]
    features = datasets.Features({"image": datasets.Array3D(images.shape[1:], dtype)})
    return datasets.Dataset.from_dict({"image": list(images.astype(dtype))}, features=features)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_columns_of_arrays_hold_levels(layout, tmp_path):
    levels = write_levels(tmp_path / "images", 4096)
    columns(levels, layout, "uint16").save_to_disk(tmp_path / "deep")
    source = DataSource(path=str(tmp_path / "deep"))
    found = read_pixels(load_pixels(source, "train", gray_processor(4096)).dataset)
    assert found.dtype == torch.uint16
    np.testing.assert_array_equal(found[:, 0], levels)
    (batch,) = stream_batches(source, "train", gray_processor(4096), ReadOptions(), BatchSharding(20), range(1), 1)
    np.testing.assert_array_equal(batch.pixels[:, 0], levels)
    for num_levels in (256, 4095):
        with pytest.raises(ValueError, match=f"image 0: an image must hold whole numbers from 0 to {num_levels - 1}"):
            load_pixels(source, "train", gray_processor(num_levels))
    levels = levels % 17
    levels[7, 3, 3] = 17
    columns(levels, layout, "uint8").save_to_disk(tmp_path / "17")
    source = DataSource(path=str(tmp_path / "17"))
    assert len(load_pixels(source, "train", gray_processor(18)).dataset) == 20
    with pytest.raises(ValueError, match=r"image 7: .* 0 to 16 \(`num_levels` 17\), got uint8 values from 0 to 17"):
        load_pixels(source, "train", gray_processor(17))
    with pytest.raises(ValueError, match=r"image 0: .* must have more than 8 bits"):
        load_pixels(source, "train", gray_processor(65536))


def test_files_that_contradict_the_number_of_levels_are_refused_by_name(tmp_path):
    folder = tmp_path / "images"
    message = r"03\.png: an image must hold .* \(`num_levels` 17\), got uint8 values from 0 to 255"
    write_levels(folder, 17)
    Image.linear_gradient("L").save(folder / "03.png")
    source, options = DataSource(path=str(folder)), ReadOptions(max_undecodable_share=0.5)
    with pytest.raises(ValueError, match=message):
        load_pixels(source, "train", gray_processor(17), options)
    with pytest.raises(ValueError, match=message):
        list(stream_batches(source, "train", gray_processor(17), options, BatchSharding(20), range(1)))
    with pytest.raises(ValueError, match=message):
        prepare(
            PreparationArguments(
                dataset_path=str(folder), output_dir=str(tmp_path / "out"), image_size=8, num_channels=1, num_levels=17
            )
        )
