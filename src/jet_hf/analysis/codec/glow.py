# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Glow's parts of a step as exact maps of integers. Their constants come from the weights and need no margin."""

import numpy as np
import torch

from ...model.flow_jet import JetActNorm, JetCoupling, JetInvertibleDense
from .errors import CannotEncode
from .stack import Stack
from .tables import Scales, exponential_scales


# Entries of the linear maps are multiples of 2^-16. Sums of products below 2^52 are exact in float64, in any order.
ENTRY_BITS = 16
LARGEST_SUM = 2.0**52


class IntegerActNorm:
    """
    Activation normalization of integers, see [`Stack.scale`].

    Args:
        layer: Layer of the model, in float64.
        cells_per_unit: Number of integers in one unit of the model's scale.
    """

    def __init__(self, layer: JetActNorm, cells_per_unit: int):
        self.bias = np.floor(layer.bias.numpy() * cells_per_unit + 0.5).astype(np.int64)
        self.scales = exponential_scales(layer.log_scale.numpy())

    def encode(self, state: np.ndarray, stack: Stack) -> np.ndarray:
        """Map integers (B, N, D)."""
        values = (state + self.bias).ravel()
        return stack.scale(values, *self._scales_of(state)).reshape(state.shape)

    def decode(self, state: np.ndarray, stack: Stack) -> np.ndarray:
        """Undo [`encode`]."""
        return stack.unscale(state.ravel(), *self._scales_of(state)).reshape(state.shape) - self.bias

    def _scales_of(self, state: np.ndarray) -> Scales:
        return Scales(*(np.broadcast_to(table, state.shape).ravel() for table in self.scales))


class IntegerDense:
    """
    Invertible dense layer of integers: `y = x @ lower @ upper`, in the order of the layer's permutation.

    Off the diagonals, each dimension gets the rounded sum of products of other dimensions, which the inverse can
    compute once it has these. The diagonal of `upper` scales, see [`Stack.scale`].

    Args:
        layer: Layer of the model, in float64.
        permutation: Order of the dimensions, int64 (D,).
    """

    def __init__(self, layer: JetInvertibleDense, permutation: torch.Tensor):
        self.permutation = permutation.numpy()
        self.lower = np.rint(np.tril(layer.lower.numpy(), -1).T * 2.0**ENTRY_BITS)
        self.upper = np.rint(np.triu(layer.upper.numpy(), 1).T * 2.0**ENTRY_BITS)
        self.scales = exponential_scales(layer.log_scale.numpy())

    def encode(self, state: np.ndarray, stack: Stack) -> np.ndarray:
        """
        Map integers (B, N, D).

        Raises:
            CannotEncode: for integers that are too large.
        """
        values = self._to_rows(state)
        values += _sums(self.lower, values)
        sums = _sums(self.upper, values)
        # The inverse needs the first dimensions first, so they are pushed last.
        for j in reversed(range(len(values))):
            values[j] = stack.scale(values[j], *self._scales_of(j, values))
        return self._from_rows(values + sums, state)

    def decode(self, state: np.ndarray, stack: Stack) -> np.ndarray:
        """Undo [`encode`]."""
        values = self._to_rows(state)
        for j in range(len(values)):
            values[j] = stack.unscale(values[j] - _sums(self.upper[j, :j], values[:j]), *self._scales_of(j, values))
        for j in reversed(range(len(values))):
            values[j] -= _sums(self.lower[j, j + 1 :], values[j + 1 :])
        return self._from_rows(values, state)

    def _to_rows(self, state: np.ndarray) -> np.ndarray:
        """Return the dimensions in the order of the permutation, (D, B * N)."""
        return np.ascontiguousarray(state.reshape(-1, state.shape[-1]).T[self.permutation])

    def _from_rows(self, values: np.ndarray, state: np.ndarray) -> np.ndarray:
        columns = np.empty_like(values)
        columns[self.permutation] = values
        return np.ascontiguousarray(columns.T).reshape(state.shape)

    def _scales_of(self, j: int, values: np.ndarray) -> Scales:
        return Scales(*(np.full(values.shape[1], table[j]) for table in self.scales))


IntegerPart = IntegerActNorm | IntegerDense


def _sums(entries: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the rounded products of entries (..., D) with the centers of cells (D, M), int64 (..., M)."""
    twice = (2 * values + 1).astype(np.float64)
    if np.abs(twice).max(initial=0) * np.abs(entries).sum(axis=-1).max(initial=0) >= LARGEST_SUM:
        raise CannotEncode("values are too large")
    return np.floor(entries @ twice * 2.0 ** -(ENTRY_BITS + 1) + 0.5).astype(np.int64)


def integer_parts(coupling: JetCoupling, cells_per_unit: int) -> list[IntegerPart]:
    """Return the integer maps of Glow's parts of a layer, in the order in which the encoder applies them."""
    parts: list[IntegerPart] = []
    if coupling.actnorm is not None:
        parts.append(IntegerActNorm(coupling.actnorm, cells_per_unit))
    if coupling.dense is not None:
        parts.append(IntegerDense(coupling.dense, coupling.permutation))
    return parts
