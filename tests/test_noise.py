"""Counter-based noise: known answers, independence of batches, and statistics."""

import math

import pytest
import torch

from jet_hf.utils.noise import philox, uniform_noise


def test_philox_gives_the_known_answers_of_random123():
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    for (*counter, key0, key1), expected in (
        ([0] * 6, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        words = philox(tuple(torch.tensor([word]) for word in counter), (key0, key1))
        assert " ".join(f"{word.item():08x}" for word in words) == expected


def test_noise_is_the_top_of_the_words_of_its_address():
    """Counter: block of four numbers, stream, both halves of the index; key: both halves of the seed."""
    seed, index, stream = (7 << 32) + 5, (3 << 32) + 0xFEDCBA98, 0xFFFFFFFE
    noise = uniform_noise(seed, torch.tensor([index]), (2, 3), stream)
    assert noise.shape == (1, 2, 3) and noise.dtype == torch.float32
    for place, value in enumerate(noise.flatten().tolist()):
        counter = tuple(torch.tensor([word]) for word in (place // 4, stream, 0xFEDCBA98, 3))
        assert value == (philox(counter, (5, 7))[place % 4].item() >> 8) / 2**24


def test_noise_depends_on_the_sample_and_not_on_its_batch():
    indices = torch.tensor([0, 5, 2**32 + 5, 2**40, 2**62])
    together = uniform_noise(1, indices, (3, 4, 4))
    for row, index in zip(together, indices, strict=True):
        assert torch.equal(uniform_noise(1, index[None], (3, 4, 4))[0], row)
    assert torch.equal(uniform_noise(1, indices.flip(0), (3, 4, 4)).flip(0), together)
    assert len(together.flatten(1).unique(dim=0)) == len(indices)


def test_another_seed_index_or_stream_gives_other_noise():
    address = {"seed": 0, "indices": torch.tensor([5]), "shape": (3, 16, 16), "stream": 0}
    first = uniform_noise(**address)
    for name, others in (("seed", (1, 2**32, -1)), ("indices", (6, 5 + 2**32)), ("stream", (1, -1, 2**32 - 2))):
        for other in others:
            second = uniform_noise(**address | {name: torch.tensor([other]) if name == "indices" else other})
            assert (first == second).float().mean() < 0.01, (name, other)


def test_sizes_that_are_not_a_multiple_of_four():
    for shape in ((1,), (3,), (5,), (3, 3, 3)):
        noise = uniform_noise(0, torch.arange(2), shape)
        assert noise.shape == (2, *shape)
        longer = uniform_noise(0, torch.arange(2), (math.prod(shape) + 4,))
        assert torch.equal(noise.flatten(1), longer[:, : math.prod(shape)])


def test_noise_is_uniform():
    """Moments and a histogram, within five standard deviations of what theory says of this many numbers."""
    noise = uniform_noise(0, torch.arange(256), (3, 32, 32)).double()
    count = noise.numel()
    assert noise.min() >= 0 and noise.max() < 1
    for power in (1, 2, 3, 4):
        expected = 1 / (power + 1)
        deviation = math.sqrt((1 / (2 * power + 1) - expected**2) / count)
        assert (noise**power).mean().item() == pytest.approx(expected, abs=5 * deviation)
    bins = 1024
    frequencies = torch.bincount((noise * bins).long().flatten(), minlength=bins).double()
    chi_square = ((frequencies - count / bins) ** 2 / (count / bins)).sum().item()
    assert abs(chi_square - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


def test_low_bits_are_uniform_too():
    levels = (uniform_noise(0, torch.arange(64), (3, 32, 32)) * 2**24).long()
    assert torch.equal(levels, levels.clamp(0, 2**24 - 1))
    for bit in range(24):
        ones = (levels >> bit & 1).double()
        assert ones.mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(ones.numel())), bit


def test_numbers_do_not_correlate():
    noise = uniform_noise(0, torch.arange(64), (3072,))
    pairs = {f"places {lag} apart": (noise[:, :-lag], noise[:, lag:]) for lag in (1, 2, 3, 4, 32)}
    pairs |= {
        "samples": (noise[:-1], noise[1:]),
        "streams": (noise, uniform_noise(0, torch.arange(64), (3072,), stream=1)),
        "first and last stream": (noise, uniform_noise(0, torch.arange(64), (3072,), stream=2**32 - 1)),
        "seeds": (noise, uniform_noise(1, torch.arange(64), (3072,))),
    }
    for name, values in pairs.items():
        first, second = (value.double().flatten() - 0.5 for value in values)
        correlation = (first @ second / (first.norm() * second.norm())).item()
        assert abs(correlation) < 5 / math.sqrt(first.numel()), name
