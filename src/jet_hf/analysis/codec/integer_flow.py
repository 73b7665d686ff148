# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The flow on a grid of integers: one-to-one maps between tiles and a stack of bits.

Shapes: B tiles, N patches, D dimensions of a patch, P = 3 bits of dequantization noise.

The integer k stands for the cell from `k * step` to `(k + 1) * step` of the model's scale, where `2^P` steps are one
gray level. A coupling layer adds the bias, rounded to the grid, and multiplies by the scale, rounded to a rational
number. Multiplying needs no rounding: the stack supplies the fraction of a cell that the value had, and takes the
fraction that is left, see [`Stack.scale`]. This costs exactly `-log2(scale)` bits a value.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ...model.conditioners_jet import Conditioning, JetStandardizedConv2d, standardize
from ...model.configuration_jet import JetConfig
from ...model.flow_jet import patchify, replace_second, split, unpatchify
from ...model.modeling_jet import JetForDensityEstimation, JetModel
from .errors import CannotEncode, CodecError
from .glow import integer_parts
from .stack import Stack
from .tables import LARGEST_SCALE_FACTOR, RAW_LIMIT, RAW_STEPS, base_density, sigmoid_scales


NOISE_BITS = 3
# Values that are rounded must be this far from the boundary between two integers, plus a share of their size: another
# machine may compute them with an error of 1e-11 steps.
MARGIN = 1e-9
RELATIVE_MARGIN = 1e-13
# Where a value lies too close, its group is encoded again with another of these shares of a step added to all values.
OFFSETS = tuple(0.5 + i / 64 for i in range(16))
NO_TILES = "the file is damaged: it holds values that no image has."
# Larger integers would overflow in the products of [`Stack.scale`].
LARGEST_INTEGER = 2**50


@dataclass
class Tally:
    """
    Bits of the tiles that the flow has encoded, by their origin.

    Args:
        num_dims: Number of dimensions of the tiles.
        maps: Bits of all maps, minus those of the dequantization noise.
        normal: Bits of the latents under N(0, 1).
        table: Bits of the latents in the table that stands for N(0, 1).
    """

    num_dims: int = 0
    maps: float = 0.0
    normal: float = 0.0
    table: float = 0.0

    def add(self, other: "Tally") -> None:
        """Add the bits of other tiles."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def check_model(config: JetConfig) -> None:
    """
    Check that images can be compressed with a model.

    Raises:
        ValueError: for a model of another density, or with parts that the codec has no integer map for.
    """
    if config.noise_std is not None:
        raise ValueError(
            f"`noise_std` must be None for the codec, got {config.noise_std}: a density of noisy images gives the "
            "images themselves no bits."
        )
    allowed: dict[str, tuple] = {
        "dequantization": ("uniform",),
        "coupling_transform": ("affine",),
        "context_size": (None,),
        "num_channels": (1, 3),
    }
    for name, values in allowed.items():
        if (value := getattr(config, name)) not in values:
            words = " or ".join(map(repr, values))
            raise ValueError(f"`{name}` must be {words} for the codec, got {value!r}.")
    for name, limit in (("num_levels", 256), ("scale_factor", LARGEST_SCALE_FACTOR)):
        if (value := getattr(config, name)) > limit:
            raise ValueError(f"`{name}` must be at most {limit} for the codec, got {value}.")


class IntegerFlow:
    """
    A model as one-to-one maps of integers. It holds a copy of the weights in float64 on the CPU.

    Args:
        model: Density model with plain weights. It is not changed.
        batch_size: Number of tiles that a conditioner takes at a time.

    Raises:
        ValueError: see [`check_model`].
    """

    def __init__(self, model: JetForDensityEstimation, batch_size: int):
        self.config, self.batch_size = model.config, batch_size
        check_model(self.config)
        self.jet = _in_float64(model)
        self.cells_per_unit = round(self.config.levels_per_unit * 2**NOISE_BITS)
        self.density = base_density(self.cells_per_unit)
        self.scales = sigmoid_scales(float(self.config.scale_factor))
        self.bits_of_scales = self.scales.bits()
        self.tile_shape = self.config.image_shape[1:]
        self.glow_parts = [integer_parts(coupling, self.cells_per_unit) for coupling in self.jet.couplings]
        self.indices = [coupling.split_indices() for coupling in self.jet.couplings]

    def encode(self, stack: Stack, levels: np.ndarray, labels: np.ndarray | None, offset: float) -> Tally:
        """
        Push tiles onto a stack.

        Args:
            stack: Stack of bits. After an error its state is undefined.
            levels: Gray levels, uint8 array (B, H, W, C).
            labels: Classes of the tiles, int64 array (B,), for a class-conditional model.
            offset: One of `OFFSETS`.

        Raises:
            CannotEncode: for tiles that cannot be encoded with this offset.
        """
        pixels = patchify(torch.from_numpy(levels).permute(0, 3, 1, 2).long(), self.config)
        noise = torch.from_numpy(stack.pop_uniform(pixels.numel(), 2**NOISE_BITS)).view(pixels.shape)
        state = (pixels << NOISE_BITS | noise) - self.cells_per_unit
        tally = Tally(num_dims=pixels.numel(), maps=-float(NOISE_BITS * pixels.numel()))
        with torch.inference_mode():
            conditioning = self._condition(len(levels), labels)
            for layer in range(len(self.jet.couplings)):
                state, bits = self._encode_layer(layer, state, stack, conditioning, offset)
                tally.maps += bits
        cells = state.flatten().numpy()
        tally.normal = float(self.density.normal_bits(cells).sum())
        tally.table = float(self.density.table_bits(cells).sum())
        stack.push_latents(cells, self.density)
        return tally

    def _encode_layer(
        self, layer: int, state: torch.Tensor, stack: Stack, conditioning: Conditioning, offset: float
    ) -> tuple[torch.Tensor, float]:
        """Return the state after a layer, and the bits that its maps cost."""
        bits = 0.0
        for part in self.glow_parts[layer]:
            state = torch.from_numpy(part.encode(state.numpy(), stack))
            bits += float(part.scales.bits().sum()) * state.shape[0] * state.shape[1]
        first, second = split(state, self.indices[layer])
        bias, raw = self._predict(layer, first, conditioning)
        biases, places = _round(bias, offset), (_round(raw, offset) + RAW_LIMIT * RAW_STEPS).flatten().numpy()
        values = torch.from_numpy(stack.scale((second + biases).flatten().numpy(), *self.scales.take(places)))
        if int(values.abs().max()) >= LARGEST_INTEGER:
            raise CannotEncode("values are too large")
        bits += float(self.bits_of_scales[places].sum())
        return replace_second(state, values.view(second.shape), self.indices[layer]), bits

    def decode(self, stack: Stack, count: int, labels: np.ndarray | None, offset: float) -> np.ndarray:
        """
        Pop tiles from a stack, the inverse of [`encode`].

        Returns:
            uint8 array (B, H, W, C).

        Raises:
            CodecError: for bits that no tiles have.
        """
        shape = (count, self.config.num_patches, self.config.patch_dim)
        state = torch.from_numpy(stack.pop_latents(count * self.config.num_dims, self.density)).view(shape)
        try:
            with torch.inference_mode():
                conditioning = self._condition(count, labels)
                for layer in reversed(range(len(self.jet.couplings))):
                    state = self._decode_layer(layer, state, stack, conditioning, offset)
        except CannotEncode:
            raise CodecError(NO_TILES) from None
        state = state + self.cells_per_unit
        pixels = state >> NOISE_BITS
        if int(pixels.min()) < 0 or int(pixels.max()) >= self.config.num_levels:
            raise CodecError(NO_TILES)
        stack.push_uniform((state & (2**NOISE_BITS - 1)).flatten().numpy(), 2**NOISE_BITS)
        return unpatchify(pixels, self.config).permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()

    def _decode_layer(
        self, layer: int, state: torch.Tensor, stack: Stack, conditioning: Conditioning, offset: float
    ) -> torch.Tensor:
        first, second = split(state, self.indices[layer])
        bias, raw = (torch.floor(values + offset) for values in self._predict(layer, first, conditioning))
        if not (bias.abs() < LARGEST_INTEGER).all() or raw.isnan().any():
            raise CannotEncode("a value is too large")
        places = (raw.long() + RAW_LIMIT * RAW_STEPS).flatten().numpy()
        values = torch.from_numpy(stack.unscale(second.flatten().numpy(), *self.scales.take(places)))
        state = replace_second(state, values.view(second.shape) - bias.long(), self.indices[layer])
        for part in reversed(self.glow_parts[layer]):
            state = torch.from_numpy(part.decode(state.numpy(), stack))
        return state

    def _condition(self, count: int, labels: np.ndarray | None) -> Conditioning:
        return self.jet.condition(count, labels=None if labels is None else torch.from_numpy(labels))

    def _predict(
        self, layer: int, first: torch.Tensor, conditioning: Conditioning
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return bias and raw scale (B, N, D/2) of a layer in steps of the grid and of the table, float64."""
        coupling, context = self.jet.couplings[layer], conditioning.context
        centers = (first.double() + 0.5) / self.cells_per_unit
        parts = []
        for start in range(0, len(first), self.batch_size):
            part = slice(start, start + self.batch_size)
            inputs = conditioning if context is None else conditioning._replace(context=context[part])
            parts.append(coupling.map.predict(coupling.conditioner, centers[part], self.indices[layer], inputs))
        bias, raw = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        limit = RAW_LIMIT * RAW_STEPS
        return bias * self.cells_per_unit, (raw * RAW_STEPS).clamp(-limit, limit)


def _round(values: torch.Tensor, offset: float) -> torch.Tensor:
    """
    Return `floor(values + offset)`, int64.

    Raises:
        CannotEncode: for a value near a boundary, or too large, or not finite.
    """
    values = values + offset
    rounded = torch.floor(values)
    # Both comparisons are false for NaN.
    margin = (values - rounded - 0.5).abs() + RELATIVE_MARGIN * values.abs()
    if not (margin < 0.5 - MARGIN).all() or not (values.abs() < LARGEST_INTEGER).all():
        raise CannotEncode("a value is near a rounding boundary, or too large")
    return rounded.long()


@torch.no_grad()
def _in_float64(model: JetForDensityEstimation) -> JetModel:
    """Return a copy of the flow in float64 on the CPU, without hooks, adapters or compiled layers."""
    with torch.device("meta"):  # neither takes time to initialize nor random numbers
        jet = JetModel(JetConfig(**model.config.own_fields()))
    weights = {name: tensor.detach().cpu() for name, tensor in model.jet.state_dict().items()}
    weights = {name: t.double() if t.is_floating_point() else t for name, t in weights.items()}
    try:
        jet.load_state_dict(weights, assign=True)
    except RuntimeError as error:  # quantized layers and adapters have other names
        raise ValueError(f"`model` must have the plain weights of a Jet for the codec: {error}") from error
    jet.eval().requires_grad_(False)
    jet.set_attn_implementation("sdpa")
    for module in jet.modules():
        if isinstance(module, JetStandardizedConv2d):
            # The layer standardizes its filters in float32.
            module.weight.data = standardize(module.weight)
            module.__class__ = torch.nn.Conv2d  # type: ignore[assignment]
    return jet
