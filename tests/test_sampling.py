"""Samples, reconstructions, interpolations and grids of images."""

import os

import numpy as np
import pytest
import torch
from conftest import random_bytes, random_images, tiny_model
from PIL import Image

from jet_hf import JetImageProcessor
from jet_hf.analysis.sampling import (
    decode_steps,
    draw_latents,
    image_grid,
    interpolate,
    latent_path,
    reconstruct,
    sample_images,
    sample_labels,
)
from jet_hf.utils.files import new_folder, replace_text


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return JetImageProcessor(size=8)


def pixels_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_samples_do_not_depend_on_batches_or_their_number(model):
    latents = torch.cat(list(draw_latents(model, 7, seed=3, batch_size=7)))
    for number, batch_size in ((7, 2), (7, 1), (5, 3)):
        assert torch.equal(torch.cat(list(draw_latents(model, number, 3, batch_size))), latents[:number])
    assert not torch.equal(torch.cat(list(draw_latents(model, 7, seed=4, batch_size=7))), latents)
    assert latents.mean().abs() < 0.1 and latents.std() == pytest.approx(1, abs=0.1)


@torch.no_grad()
def test_samples_are_decoded_latents_at_a_temperature(model, processor):
    (latents,) = draw_latents(model, 3, seed=1, batch_size=3)
    for temperature in (1.0, 0.5, 0.0):
        images = sample_images(model, processor, 3, temperature=temperature, seed=1, batch_size=2)
        expected = processor.post_process(model.decode(temperature * latents)[0])
        assert np.abs(pixels_of(images).astype(int) - pixels_of(expected)).max() <= 1


def test_numbers_out_of_range_are_named(model, processor):
    for name, value, message in (
        ("num_images", 0, "a whole number of at least 1, got 0"),
        ("num_images", 2.0, "a whole number of at least 1, got 2.0"),
        ("batch_size", 0, "a whole number of at least 1, got 0"),
        ("seed", 0.5, "a whole number .*, got 0.5"),
        ("temperature", -1.0, "zero or a positive number, got -1.0"),
        ("label", 0, "a class of the model, which has none, got 0"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be {message}"):
            sample_images(model, processor, **{"num_images": 1, name: value})
    conditional = tiny_model(num_classes=3)
    for label in (-1, 3, 1.0, True):
        with pytest.raises(ValueError, match=f"`label` must be a class of the model, which has 3, got {label}"):
            sample_labels(conditional, range(4), label)
    assert sample_labels(conditional, range(2, 6)).tolist() == [2, 0, 1, 2]
    assert sample_labels(conditional, range(2), 1).tolist() == [1, 1]


def test_reconstruction_is_measured(model, processor):
    pixels = random_bytes(4, model.config)
    result = reconstruct(model, pixels / 127.5 - 1)
    assert result.bytes_equal and 0 < result.max_abs_error < 1e-4
    assert torch.equal(torch.from_numpy(pixels_of(processor.post_process(result.pixel_values))).movedim(3, 1), pixels)

    class Lossy:  # a model that does not invert
        encode, config, jet = model.encode, model.config, model.jet

        def decode(self, latents, labels=None):
            pixel_values, log_det = model.decode(latents)
            return pixel_values.roll(1, dims=3), log_det

    lossy = reconstruct(Lossy(), pixels / 127.5 - 1)
    assert not lossy.bytes_equal and lossy.max_abs_error > 0.5


@torch.no_grad()
def test_interpolation_follows_the_great_circle(model):
    first, second = random_images(2, model.config)
    path = interpolate(model, first, second, num_steps=5)
    torch.testing.assert_close(path[0], first + 0.5 / 127.5, atol=1e-4, rtol=0)
    torch.testing.assert_close(path[-1], second + 0.5 / 127.5, atol=1e-4, rtol=0)
    latents = model.encode(path)[0].flatten(1)
    lengths = latents.norm(dim=1)
    torch.testing.assert_close(lengths, torch.linspace(lengths[0].item(), lengths[-1].item(), 5), rtol=1e-4, atol=0)
    cosines = torch.cosine_similarity(latents[:-1], latents[1:])
    assert cosines.max() - cosines.min() < 1e-3 and cosines.max() < 0.999
    same = interpolate(model, first, first, num_steps=3)
    torch.testing.assert_close(same, (first + 0.5 / 127.5).expand(3, -1, -1, -1), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="`num_steps` must be a whole number of at least 2, got 1"):
        interpolate(model, first, second, num_steps=1)


def test_paths_change_the_norm_linearly():
    start, end = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    path = latent_path(start, 2 * end, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(path[0], start)
    torch.testing.assert_close(path[2], 2 * end)
    torch.testing.assert_close(path[1].norm(), (start.norm() + 2 * end.norm()) / 2)
    # A path between zeros stays zero, and a path from zero is straight.
    assert torch.equal(latent_path(0 * start, 0 * end, torch.tensor([0.5])), torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close(latent_path(0 * start, end, torch.tensor([0.5]))[0], end / 2)


@torch.no_grad()
def test_decoding_can_be_watched(model):
    (latents,) = draw_latents(model, 2, seed=0, batch_size=2)
    shown = list(decode_steps(model, latents, num_steps=2))
    assert [done for done, _ in shown] == [0, 3, 5]
    assert torch.equal(shown[0][1], latents)
    # The intermediate states are those of encoding.
    states = model(random_images(2, model.config), noise=None, output_hidden_states=True)
    again = list(decode_steps(model, states.latents, num_steps=5))
    assert [done for done, _ in again] == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(again[2][1], model.jet.unpatchify(states.hidden_states[2]), rtol=0, atol=1e-5)
    assert torch.equal(again[5][1], model.decode(states.latents)[0])
    assert [done for done, _ in decode_steps(model, latents, num_steps=9)] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="`num_steps` must be a whole number of at least 1, got 0"):
        next(decode_steps(model, latents, num_steps=0))


def test_grid_places_images_row_by_row():
    images = [Image.new("RGB", (4, 3), (i, 0, 0)) for i in range(5)]
    grid = np.asarray(image_grid(images, columns=2, gap=1))
    assert grid.shape == (3 * 3 + 2, 2 * 4 + 1, 3)
    assert [grid[4 * (i // 2), 5 * (i % 2), 0] for i in range(5)] == [0, 1, 2, 3, 4]
    assert (grid[3] == 255).all() and (grid[-1, -1] == 255).all()
    assert image_grid(images[:1], columns=8).size == (4, 3)
    for arguments, message in (
        ({"images": images, "columns": 0}, "`columns` must be a whole number of at least 1, got 0"),
        ({"images": images, "columns": 2.5}, "`columns` must be a whole number of at least 1, got 2.5"),
        ({"images": images, "columns": 2, "gap": -1}, "`gap` must be a whole number of at least 0, got -1"),
        ({"images": [], "columns": 2}, "`images` must hold at least one image, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            image_grid(**arguments)


def test_images_are_saved_under_the_longest_names(tmp_path):
    longest = tmp_path / ("é" * (os.pathconf(tmp_path, "PC_NAME_MAX") // 2))
    with new_folder(longest) as folder:
        replace_text(folder / longest.name, "text")
    assert [path.name for path in longest.iterdir()] == [longest.name]
    assert (longest / longest.name).read_text() == "text"
