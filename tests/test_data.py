import datasets
import numpy as np
import pytest
import torch
from conftest import tiny_model
from PIL import Image

from jet_hf import JetImageProcessor
from jet_hf.baselines import codec_bits_per_dim, histogram_bits_per_dim
from jet_hf.data import find_image_column, load_image_folder, pixel_batches, repeat, to_pixels, to_random_crops
from jet_hf.evaluation import evaluate
from jet_hf.photographs import SPLITS, load_photograph, write_photographs


@pytest.fixture(autouse=True, scope="module")
def no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def test_photographs_of_the_two_splits_are_different_scenes(photographs):
    assert not set(SPLITS["train"]) & set(SPLITS["validation"])
    for split, names in SPLITS.items():
        dataset = load_image_folder(photographs, split, cache_dir=photographs / "cache")
        assert len(dataset) == len(names)
        for row, name in zip(dataset, sorted(names), strict=True):
            assert np.array_equal(np.asarray(row["image"]), load_photograph(name))
            assert row["image"].mode == "RGB" and min(row["image"].size) >= 300


def test_random_crops_are_pieces_of_their_photographs(photographs):
    dataset = load_image_folder(photographs, "validation", cache_dir=photographs / "cache")
    crops = to_random_crops(dataset, image_size=16, crops_per_image=3, seed=0)
    assert crops.column_names == ["pixels"] and len(crops) == 6
    pixels = torch.cat(list(pixel_batches(crops, 4))).numpy()
    assert pixels.shape == (6, 3, 16, 16) and pixels.dtype == np.uint8
    for i, crop in enumerate(pixels):
        photograph = np.asarray(dataset[i // 3]["image"]).transpose(2, 0, 1)
        windows = np.lib.stride_tricks.sliding_window_view(photograph, (3, 16, 16))[0]
        assert (windows == crop).all(axis=(2, 3, 4)).any()
    again, other = (to_random_crops(dataset, 16, 3, seed=seed).with_format("numpy")["pixels"][:] for seed in (0, 1))
    assert np.array_equal(again, pixels) and not np.array_equal(other, pixels)


def test_crops_of_a_photograph_that_is_too_small_are_refused(photographs):
    dataset = load_image_folder(photographs, "validation", cache_dir=photographs / "cache")
    with pytest.raises(Exception, match="fewer than the crop's 4000"):
        to_random_crops(dataset, image_size=4000, crops_per_image=1, seed=0)


def test_pixels_are_those_of_the_image_processor(photographs):
    dataset = load_image_folder(photographs, "validation", cache_dir=photographs / "cache")
    processor = JetImageProcessor(size=24)
    (batch,) = pixel_batches(to_pixels(dataset, processor), 8)
    expected = processor([row["image"] for row in dataset], return_tensors="pt").pixel_values
    assert torch.equal(batch / 127.5 - 1, expected)


def numbered(count: int) -> datasets.Dataset:
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 2, 2))
    features = datasets.Features({"pixels": datasets.Array3D((3, 2, 2), "uint8")})
    return datasets.Dataset.from_dict({"pixels": list(pixels)}, features=features)


def test_batches_in_order_hold_every_image_once():
    batches = list(pixel_batches(numbered(10), 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == list(range(10))


def test_batches_in_random_order():
    def epochs(seed):
        batches = repeat(pixel_batches(numbered(10), 4, seed=seed))
        return [torch.cat([next(batches), next(batches)])[:, 0, 0, 0].tolist() for _ in range(2)]

    first, second = epochs(0)
    assert len(set(first)) == len(set(second)) == 8 and first != second
    assert epochs(0) == [first, second] and epochs(1) != [first, second]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"img": datasets.Image(), "label": datasets.Value("int64")}, "img"),
        ({"photo": datasets.Image()}, "photo"),
        ({"mask": datasets.Image(), "image": datasets.Image()}, "image"),
        ({"x": datasets.Array3D((32, 32, 3), "uint8"), "y": datasets.Array3D((2, 2, 2), "float32")}, "x"),
    ],
)
def test_the_image_column_is_found(columns, expected):
    assert find_image_column(datasets.Features(columns)) == expected


@pytest.mark.parametrize(
    "columns", [{"text": datasets.Value("string")}, {"a": datasets.Image(), "b": datasets.Image()}]
)
def test_an_unclear_image_column_is_refused(columns):
    with pytest.raises(ValueError, match="expected one column of images"):
        find_image_column(datasets.Features(columns))


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


def test_evaluation_counts_each_image_once_and_keeps_the_mode():
    model = tiny_model(image_size=2, patch_size=1, num_channels=2)
    pixels = torch.randint(256, (10, 2, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model.train()
    result = evaluate(model, pixels.split(4), seed=3)
    assert model.training
    generator = torch.Generator().manual_seed(3)
    noise = torch.cat([torch.rand(part.shape, generator=generator) for part in pixels.split(4)])
    expected = model(pixels / 127.5 - 1, noise=noise).bits_per_dim.double()
    torch.testing.assert_close(result.bits_per_dim, expected, rtol=1e-5, atol=1e-5)
    assert result.mean == pytest.approx(expected.mean().item(), rel=1e-5)
    assert result.standard_error == pytest.approx(expected.std().item() / 10**0.5, rel=1e-4)
    assert torch.equal(evaluate(model, pixels.split(4), seed=3).bits_per_dim, result.bits_per_dim)
