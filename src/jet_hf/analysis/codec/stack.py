# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The stack of compressed bits: an ANS coder that pushes and pops whole arrays of numbers.

Every operation that pops undoes the one that pushes, exactly and in every state of the stack. Popping from an empty
stack gives zeros, and pushing these zeros leaves the stack empty.
"""

from typing import Any, NamedTuple

import constriction
import numpy as np

from .tables import LENGTHS, BaseDensity, bit_lengths


# Symbols that are pushed or popped at a time while values are scaled. A group of tiles borrows no more bits than this
# for a layer, and other sizes make other files.
CHUNK = 1024
# Words of 32 bits that the coder holds. Older ones are set aside, so that a copy of the coder is small.
NUM_ACTIVE_WORDS = 2**16
BITS_OF_WORD = 32
# A symbol takes at most 24 bits, and the coder itself holds 64.
BITS_OF_SYMBOL = 24
# Larger numbers are coded in parts of this number of bits.
PART_BITS = 16

AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical
Uniform = constriction.stream.model.Uniform
UNIFORM = Uniform()


class Snapshot(NamedTuple):
    """State of a stack to return to."""

    coder: Any
    settled: tuple[np.ndarray, ...]


class Stack:
    """
    Stack of bits.

    Args:
        data: Bytes of a stack, from [`to_bytes`]; by default the stack is empty.

    Raises:
        ValueError: for bytes that are no stack.
    """

    def __init__(self, data: bytes = b""):
        words = np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False)
        self._coder = AnsCoder(words[-NUM_ACTIVE_WORDS:]) if len(words) else AnsCoder()
        self._settled = [words[:-NUM_ACTIVE_WORDS]] if len(words) > NUM_ACTIVE_WORDS else []
        self._fewest_bits = self.num_bits

    def to_bytes(self) -> bytes:
        """Return the stack as little-endian words of 32 bits."""
        return np.concatenate([*self._settled, self._coder.get_compressed()]).astype("<u4").tobytes()

    @property
    def num_bits(self) -> int:
        """Number of bits on the stack."""
        return BITS_OF_WORD * sum(map(len, self._settled)) + self._coder.num_valid_bits()

    @property
    def fewest_bits(self) -> int | None:
        """Fewest bits on the stack since [`save`], or `None` for a stack that has far more than a group borrows."""
        return None if self._settled else self._fewest_bits

    def save(self) -> Snapshot:
        """Return the state of the stack, for [`restore`]."""
        self._fewest_bits = self.num_bits
        return Snapshot(self._coder.clone(), tuple(self._settled))

    def restore(self, snapshot: Snapshot) -> None:
        """Return to a state of the stack."""
        self._coder, self._settled = snapshot.coder.clone(), list(snapshot.settled)

    # Numbers

    def push_uniform(self, numbers: np.ndarray, size: int) -> None:
        """Push integers (n,) from 0 to `size - 1`, which are equally likely."""
        self._coder.encode_reverse(np.ascontiguousarray(numbers, dtype=np.int32), Uniform(size))
        self._settle()

    def pop_uniform(self, count: int, size: int) -> np.ndarray:
        """Pop integers from 0 to `size - 1`, int64 (count,)."""
        self._load(count)
        numbers = self._coder.decode(Uniform(size), count)
        self._note()
        return numbers.astype(np.int64)

    def push_bytes(self, data: bytes) -> None:
        """Push bytes."""
        self.push_uniform(np.frombuffer(data, dtype=np.uint8), 256)

    def pop_bytes(self, count: int) -> bytes:
        """Pop this number of bytes."""
        return self.pop_uniform(count, 256).astype(np.uint8).tobytes()

    # Scaled values

    def scale(self, values: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """
        Multiply integers by `multipliers / 2^shifts`, one to one.

        A number r from 0 to `multiplier - 1` is popped, and `value * multiplier + r` is divided by `2^shift`: the
        quotient is the result, and the remainder is pushed.

        Args:
            values: int64 array (n,), below 2^52 in size.
            multipliers, shifts: int32 arrays (n,).

        Returns:
            int64 array (n,).
        """
        results = np.empty_like(values)
        for start in range(0, len(values), CHUNK):
            part = slice(start, start + CHUNK)
            sizes, shift = multipliers[part], shifts[part]
            self._load(len(sizes))
            products = values[part] * sizes + self._coder.decode(UNIFORM, sizes)
            self._note()
            results[part] = products >> shift
            ends = np.left_shift(np.int32(1), shift)
            self._coder.encode_reverse((products & (ends - 1)).astype(np.int32), UNIFORM, ends)
            self._settle()
        return results

    def unscale(self, values: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Return the integers that [`scale`] was given, and put the stack back as it was."""
        results = np.empty_like(values)
        for start in reversed(range(0, len(values), CHUNK)):
            part = slice(start, start + CHUNK)
            sizes, shift = multipliers[part], shifts[part]
            ends = np.left_shift(np.int32(1), shift)
            self._load(len(sizes))
            products = (values[part] << shift) + self._coder.decode(UNIFORM, ends)
            results[part] = products // sizes
            self._coder.encode_reverse((products - results[part] * sizes).astype(np.int32), UNIFORM, sizes)
            self._settle()
        return results

    # Latents

    def push_latents(self, cells: np.ndarray, density: BaseDensity) -> None:
        """Push latents as cells of the grid, int64 (n,), below 2^52 in size, under the base density."""
        if density.low_bits:
            self.push_uniform(cells & (2**density.low_bits - 1), 2**density.low_bits)
        symbols = density.symbols(cells)
        self._push_whole(density.beyond(cells[density.are_beyond(symbols)]))
        self._coder.encode_reverse(symbols.astype(np.int32), Categorical(density.weights, perfect=False))
        self._settle()

    def pop_latents(self, count: int, density: BaseDensity) -> np.ndarray:
        """Pop latents as cells of the grid, int64 (count,)."""
        self._load(count)
        symbols = self._coder.decode(Categorical(density.weights, perfect=False), count).astype(np.int64)
        bins = symbols - density.num_bins - 1
        is_beyond = density.are_beyond(symbols)
        beyond = self._pop_whole(int(is_beyond.sum()))
        is_low = bins[is_beyond] < 0
        bins[is_beyond] = np.where(is_low, -beyond - density.num_bins - 1, beyond + density.num_bins)
        low = self.pop_uniform(count, 2**density.low_bits) if density.low_bits else 0
        return (bins << density.low_bits) | low

    def _push_whole(self, numbers: np.ndarray) -> None:
        """Push integers (n,) from 0 to 2^62 in as many bits as they have, after their number of bits."""
        lengths = bit_lengths(numbers)
        for start in reversed(range(0, LENGTHS, PART_BITS)):
            rest = numbers[lengths > start] >> start
            sizes = 2 ** np.minimum(lengths[lengths > start] - start, PART_BITS)
            self._coder.encode_reverse((rest & (sizes - 1)).astype(np.int32), UNIFORM, sizes.astype(np.int32))
        self.push_uniform(lengths, LENGTHS)

    def _pop_whole(self, count: int) -> np.ndarray:
        lengths, numbers = self.pop_uniform(count, LENGTHS), np.zeros(count, dtype=np.int64)
        for start in range(0, LENGTHS, PART_BITS):
            longer = lengths > start
            sizes = 2 ** np.minimum(lengths[longer] - start, PART_BITS)
            self._load(len(sizes))
            numbers[longer] |= self._coder.decode(UNIFORM, sizes.astype(np.int32)).astype(np.int64) << start
        return numbers

    # Words that are set aside

    def _note(self) -> None:
        if not self._settled:
            self._fewest_bits = min(self._fewest_bits, self._coder.num_valid_bits())

    def _load(self, num_symbols: int) -> None:
        """Give the coder the words that the next symbols may take."""
        num_words = num_symbols * BITS_OF_SYMBOL // BITS_OF_WORD + 4
        if not self._settled or self._coder.num_words() >= num_words:
            return
        words = [self._coder.get_compressed()]
        missing = max(num_words, NUM_ACTIVE_WORDS)
        while self._settled and missing > 0:
            older = self._settled.pop()
            words.insert(0, older[-missing:])
            if len(older) > missing:
                self._settled.append(older[:-missing])
            missing -= len(words[0])
        self._coder = AnsCoder(np.concatenate(words))

    def _settle(self) -> None:
        """Set the oldest words aside if the coder has many."""
        if self._coder.num_words() > 4 * NUM_ACTIVE_WORDS:
            words = self._coder.get_compressed()
            self._settled.append(words[:-NUM_ACTIVE_WORDS].copy())
            self._coder = AnsCoder(words[-NUM_ACTIVE_WORDS:])
