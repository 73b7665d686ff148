# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Tables of the codec: scales as rational numbers, and the base density on the grid.

A file can only be decoded with the tables that it was made with. They are therefore made with decimal arithmetic,
whose results are the same on every machine, and not with a math library, whose last bits differ.
"""

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache
from typing import NamedTuple

import numpy as np


ARITHMETIC = Context(prec=40, rounding=ROUND_HALF_EVEN)
# Raw scales are rounded to steps of 1/128, and clamped to [-16, 16].
RAW_STEPS = 128
RAW_LIMIT = 16
# A scale is m / 2^e with m of this number of bits and 1 <= e <= 23: the coder takes uniform symbols below 2^24.
MULTIPLIER_BITS = 9
# Scales of the weights are the same for all images, so that their errors do not average out.
MULTIPLIER_BITS_OF_WEIGHTS = 13
LARGEST_SHIFT = 23
LARGEST_SCALE_FACTOR = 128
# The base density has bins of at most 1/64 standard deviation, up to 8 standard deviations.
BINS_PER_STD = 64
NUM_STDS = 8
# Cells beyond these have their number of bits coded, which is below 64, and then these bits.
LENGTHS = 64
# The coder's probabilities are multiples of this.
PROBABILITY_STEP = 2.0**-24


class Scales(NamedTuple):
    """
    Positive scales as rational numbers `multiplier / 2^shift`.

    Args:
        multipliers: int32 array.
        shifts: int32 array, from 1 to 23.
    """

    multipliers: np.ndarray
    shifts: np.ndarray

    def take(self, places: np.ndarray) -> "Scales":
        """Return the scales at these places of the table, int64 (n,)."""
        return Scales(self.multipliers[places], self.shifts[places])

    def bits(self) -> np.ndarray:
        """Return the bits that scaling a number costs, `-log2(multiplier / 2^shift)`, float64."""
        return self.shifts - np.log2(self.multipliers)


def rational_scales(scales: Iterable[Decimal], bits: int) -> Scales:
    """Return the nearest rational scales of positive numbers, with multipliers of this number of bits."""
    return Scales(*np.array([_rational(scale, bits) for scale in scales], dtype=np.int32).T.copy())


def _rational(scale: Decimal, bits: int) -> tuple[int, int]:
    for shift in range(1, LARGEST_SHIFT + 1):
        multiplier = int((scale * 2**shift).to_integral_value())
        if multiplier >= 2 ** (bits - 1):
            return min(multiplier, 2**bits - 1), shift
    return 2 ** (bits - 1), LARGEST_SHIFT


@lru_cache(maxsize=8)
def sigmoid_scales(scale_factor: float) -> Scales:
    """
    Return `scale_factor * sigmoid(raw)` for the raw scales `i / 128` with i from -2048 to 2048.

    Args:
        scale_factor: Upper bound of the scales, at most `LARGEST_SCALE_FACTOR`.
    """
    limit = RAW_LIMIT * RAW_STEPS
    with localcontext(ARITHMETIC):
        raws = [Decimal(i) / RAW_STEPS for i in range(-limit, limit + 1)]
        return rational_scales([Decimal(scale_factor) / (1 + (-raw).exp()) for raw in raws], MULTIPLIER_BITS)


def exponential_scales(logarithms: np.ndarray) -> Scales:
    """Return the exponentials of numbers, float64 (n,), as rational scales."""
    with localcontext(ARITHMETIC):
        scales = [Decimal(float(number)).exp() for number in logarithms]
        return rational_scales(scales, MULTIPLIER_BITS_OF_WEIGHTS)


class BaseDensity(NamedTuple):
    """
    The base density N(0, 1) on the grid: a table of coarse bins, each of `2^low_bits` equally likely cells.

    The first and the last bin of the table stand for all cells beyond the others.

    Args:
        weights: float64 array of positive numbers, proportional to the probabilities of the bins.
        num_bins: Number of bins on either side of zero.
        low_bits: Binary logarithm of the number of cells in a bin.
        cells_per_std: Number of cells in one standard deviation.
    """

    weights: np.ndarray
    num_bins: int
    low_bits: int
    cells_per_std: float

    def table_bits(self, cells: np.ndarray) -> np.ndarray:
        """Return the bits of cells, int64 (n,), under the table."""
        # The coder gives one step to each symbol, and the others in proportion to the weights.
        shares = self.weights / self.weights.sum() * (1 - len(self.weights) * PROBABILITY_STEP) + PROBABILITY_STEP
        symbols = self.symbols(cells)
        bits = self.low_bits - np.log2(shares)[symbols]
        is_beyond = self.are_beyond(symbols)
        bits[is_beyond] += np.log2(LENGTHS) + bit_lengths(self.beyond(cells[is_beyond]))
        return bits

    def symbols(self, cells: np.ndarray) -> np.ndarray:
        """Return the place in the table of the bins of cells, int64 (n,)."""
        return np.clip((cells >> self.low_bits) + self.num_bins + 1, 0, len(self.weights) - 1)

    def are_beyond(self, symbols: np.ndarray) -> np.ndarray:
        """Return which symbols stand for the cells beyond all bins, bool (n,)."""
        return (symbols == 0) | (symbols == len(self.weights) - 1)

    def beyond(self, cells: np.ndarray) -> np.ndarray:
        """Return how many bins cells beyond the table, int64 (n,), are away from it."""
        bins = cells >> self.low_bits
        return np.where(bins < 0, -bins - self.num_bins - 1, bins - self.num_bins)

    def normal_bits(self, cells: np.ndarray) -> np.ndarray:
        """Return the bits of cells, int64, under N(0, 1): the density at the center, times the size of a cell."""
        centers = (cells + 0.5) / self.cells_per_std
        return (0.5 * centers**2 + 0.5 * np.log(2 * np.pi)) / np.log(2) + np.log2(self.cells_per_std)


@lru_cache(maxsize=8)
def base_density(cells_per_std: int) -> BaseDensity:
    """Return the table of the base density on a grid with this number of cells in one standard deviation."""
    low_bits = max(0, (cells_per_std // BINS_PER_STD).bit_length() - 1)
    num_bins = -(-NUM_STDS * cells_per_std // 2**low_bits)
    with localcontext(ARITHMETIC):
        centers = [Decimal(2 * i + 1) * 2**low_bits / (2 * cells_per_std) for i in range(num_bins)]
        half = [float((-center * center / 2).exp()) for center in centers]
    # Weights of zero get the smallest probability that the coder has.
    return BaseDensity(np.array([0.0, *half[::-1], *half, 0.0]), num_bins, low_bits, cells_per_std)


def bit_lengths(numbers: np.ndarray) -> np.ndarray:
    """Return the number of bits of integers from 0 to 2^63 - 1, int64 (n,)."""
    lengths = np.zeros(len(numbers), dtype=np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        lengths += step * ((numbers >> lengths) >> step > 0)
    return lengths + (numbers > 0)
