# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The flow: splits, transforms, coupling layers with Glow's optional parts, and the traversal of all layers (paper,
sections 2.1, 2.3 and 2.5).

Shapes: B batch, N patches of an image, D dimensions of a patch. The state is (B, N, D), float32. Each half is
(B, N, D/2) for both kinds of split, so that conditioners of one shape serve both. Values are moved by index and never
enter a matrix product, which accelerators may round to TF32 or bfloat16 (paper, "Numerical precision considerations").

To add a coupling transform, subclass [`JetTransform`], add the class to `TRANSFORMS` and its name to
`COUPLING_TRANSFORMS` of the configuration.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .conditioners_jet import CONDITIONERS, Conditioning, Guidance, JetConditioner
from .configuration_jet import JetConfig


logger = logging.get_logger(__name__)


# Images as states


def patchify(images: torch.Tensor, config: JetConfig) -> torch.Tensor:
    """Cut images (B, C, H, W) into patches (B, N, D), whose fastest axis is the channel, then column, then row."""
    p, (rows, columns) = config.patch_size, config.grid_shape
    patches = images.reshape(-1, config.num_channels, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(-1, config.num_patches, config.patch_dim)


def unpatchify(state: torch.Tensor, config: JetConfig) -> torch.Tensor:
    """Assemble images (B, C, H, W) from patches (B, N, D), the inverse of [`patchify`]."""
    p, grid_shape = config.patch_size, config.grid_shape
    images = state.reshape(-1, *grid_shape, p, p, config.num_channels).permute(0, 5, 1, 3, 2, 4)
    return images.reshape(-1, *config.image_shape)


# Splits


@lru_cache(maxsize=1024)
def _channel_order(seed: int, layer_index: int, size: int) -> tuple[int, ...]:
    # Sorting by a hash shuffles uniformly and, unlike random generators, cannot change between releases.
    def key(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{layer_index}/{index}".encode()).digest()

    return tuple(sorted(range(size), key=key))


def channel_permutation(seed: int, layer_index: int, size: int) -> torch.Tensor:
    """
    Return a random permutation of the D dimensions of a patch, int64 (D,) on the CPU.

    Args:
        seed: Seed of the permutation, together with `layer_index`.
        layer_index: Position of the coupling layer in the flow.
        size: Number of dimensions D.
    """
    return torch.tensor(_channel_order(seed, layer_index, size), dtype=torch.int64, device="cpu")


def spatial_permutation(pattern: str, num_rows: int, num_columns: int) -> torch.Tensor:
    """
    Return the permutation of the N patches that lists one half before the other, each in raster order, int64 (N,) on
    the CPU.

    Args:
        pattern: `"checkerboard"` (even row + column first), `"vstripes"` (even columns first) or `"hstripes"` (even
            rows first), or one of these with `"-inv"` (the other half first).
        num_rows, num_columns: Numbers of rows and columns of patches.
    """
    rows = torch.arange(num_rows, device="cpu")[:, None].expand(num_rows, num_columns)
    columns = torch.arange(num_columns, device="cpu").expand(num_rows, num_columns)
    parity = {"checkerboard": rows + columns, "vstripes": columns, "hstripes": rows}[pattern.removesuffix("-inv")] % 2
    if pattern.endswith("-inv"):
        parity = 1 - parity
    return torch.argsort(parity.flatten(), stable=True)


def split_indices(permutation: torch.Tensor, num_patches: int, patch_dim: int, spatial: bool) -> torch.Tensor:
    """
    Return the indices of both halves in a flattened state, int64 (2, N * D/2).

    Args:
        permutation: Integer tensor (N,) for a spatial split, else (D,).
        num_patches: Number of patches N.
        patch_dim: Number of dimensions D of a patch.
        spatial: Whether patches are split rather than the dimensions of each patch. The N/2 patches of a half are then
            cut in two, "n (s c) -> (n s) c" with s = 2, which moves no value of a flattened half.
    """
    if spatial:
        numbers = torch.arange(patch_dim, device=permutation.device)
        return (patch_dim * permutation[:, None] + numbers).view(2, -1)
    patches = torch.arange(num_patches, device=permutation.device)
    return (patch_dim * patches[:, None] + permutation.view(2, 1, -1)).flatten(1)


def split(state: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a state (B, N, D) into two halves (B, N, D/2), with the indices of [`split_indices`]."""
    half_shape = (*state.shape[:2], state.shape[2] // 2)
    first, second = (state.flatten(1).index_select(1, half).view(half_shape) for half in indices)
    return first, second


def merge(first: torch.Tensor, second: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Merge two halves (B, N, D/2) into the state (B, N, D) that [`split`] took them from."""
    halves = torch.cat([first.flatten(1), second.flatten(1)], dim=1)
    state = torch.empty_like(halves).index_copy(1, indices.flatten(), halves)
    return state.view(*first.shape[:2], 2 * first.shape[2])


def replace_second(state: torch.Tensor, second: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return a state (B, N, D) with another second half (B, N, D/2)."""
    return state.flatten(1).index_copy(1, indices[1], second.flatten(1)).view(state.shape)


# Transforms of one half


class JetTransform(nn.Module):
    """
    Base class for elementwise bijections, which coupling layers apply to one half of the state.

    A transform has no weights: the conditioner predicts `num_parameters` parameters for each dimension.
    """

    num_parameters: int

    def __init__(self, config: JetConfig):
        super().__init__()

    def forward(
        self, values: torch.Tensor, parameters: Sequence[torch.Tensor], inverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Transform values.

        Args:
            values: float32 tensor (B, N, D/2).
            parameters: `num_parameters` tensors of this shape, or the result of [`guide`].
            inverse: Whether to apply the inverse.

        Returns:
            The transformed values, and the logarithm of the *forward* map's derivative at each of them, in nats.
        """
        raise NotImplementedError

    def guide(
        self, guided: Sequence[torch.Tensor], unguided: Sequence[torch.Tensor], weight: torch.Tensor
    ) -> Sequence[torch.Tensor]:
        """
        Combine two predictions by variance-aware guidance.

        Args:
            guided, unguided: Parameters of the two predictions.
            weight: Weight of the guidance, a number of at least -1. With 0 the result is the guided prediction.
        """
        raise NotImplementedError


class JetAffineTransform(JetTransform):
    """
    `y = (x + bias) * scale` with `scale = scale_factor * sigmoid(raw_scale)` (paper, section 2.1).

    Guided parameters have a third tensor, the logarithm of a factor of the scale.
    """

    num_parameters = 2

    def __init__(self, config: JetConfig):
        super().__init__(config)
        self.scale_factor = config.scale_factor
        self.log_scale_factor = math.log(config.scale_factor)

    def forward(
        self, values: torch.Tensor, parameters: Sequence[torch.Tensor], inverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bias, raw_scale, *log_gain = parameters
        scale = self.scale_factor * torch.sigmoid(raw_scale)
        log_scale = nn.functional.logsigmoid(raw_scale) + self.log_scale_factor
        if log_gain:
            scale, log_scale = scale * log_gain[0].exp(), log_scale + log_gain[0]
        return values / scale - bias if inverse else (values + bias) * scale, log_scale

    def guide(
        self, guided: Sequence[torch.Tensor], unguided: Sequence[torch.Tensor], weight: torch.Tensor
    ) -> Sequence[torch.Tensor]:
        """
        Combine two predictions by the guidance of STARFlow (Gu et al., 2025), which never widens a distribution.

        For a normal latent, the decoded value has mean `-bias` and standard deviation `1 / scale`. The result is the
        normal density that is proportional to `guided ** (1 + weight) / unguided ** weight`, with the unguided
        variance raised to the guided one where it is smaller.
        """
        (bias, raw_scale), (unguided_bias, unguided_raw_scale) = guided, unguided
        log_sigmoid = nn.functional.logsigmoid
        # The ratio of the variances, guided to unguided.
        ratio = torch.exp(2 * (log_sigmoid(unguided_raw_scale) - log_sigmoid(raw_scale)).clamp(max=0))
        gain = 1 + weight * (1 - ratio)
        bias = ((1 + weight) * bias - weight * ratio * unguided_bias) / gain
        return bias, raw_scale, 0.5 * gain.log()


TRANSFORMS: dict[str, type[JetTransform]] = {"affine": JetAffineTransform}


# Glow's parts of a step (Kingma & Dhariwal, 2018; paper, section 3.2.5)


class JetActNorm(nn.Module):
    """
    Activation normalization of each of the D dimensions of a patch: `y = (x + bias) * scale`.

    A new layer is the identity. [`initialize`] gives the first batch mean zero and variance one.
    """

    initialized: torch.Tensor

    def __init__(self, config: JetConfig):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.patch_dim))
        self.log_scale = nn.Parameter(torch.empty(config.patch_dim))
        # An integer, because some backends cannot broadcast booleans.
        self.register_buffer("initialized", torch.tensor(0))

    def forward(self, state: torch.Tensor, inverse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the state, and the forward map's log-determinant for one patch, in nats."""
        bias, log_scale = self.bias.to(state.dtype), self.log_scale.to(state.dtype)
        scale = log_scale.exp()
        return state / scale - bias if inverse else (state + bias) * scale, log_scale.sum()

    @torch.no_grad()
    def initialize(self, state: torch.Tensor) -> None:
        """Set scale and bias from the state (B, N, D) of a first batch."""
        std, mean = torch.std_mean(state.double().flatten(0, 1), dim=0, correction=0)
        self.bias.copy_(-mean)
        # A constant dimension, such as that of a border, is not scaled.
        self.log_scale.copy_(-torch.log(torch.where(std > 1e-6, std, 1)))
        self.initialized.fill_(1)


class JetInvertibleDense(nn.Module):
    """
    Learned linear map of each patch in Glow's LU form, `y = x @ lower @ upper`, in the order of a permutation.

    The diagonal of `lower` is one and that of `upper` is `exp(log_scale)`, so that the log-determinant is a sum over D
    dimensions. A new layer is the identity. The map is computed in float64, because autocast and many
    devices round float32 products to narrower formats, which would make the inverse inexact.
    """

    def __init__(self, config: JetConfig):
        super().__init__()
        self.lower = nn.Parameter(torch.empty(config.patch_dim, config.patch_dim))
        self.upper = nn.Parameter(torch.empty(config.patch_dim, config.patch_dim))
        self.log_scale = nn.Parameter(torch.empty(config.patch_dim))

    def forward(
        self, state: torch.Tensor, permutation: torch.Tensor, inverse: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the state, and the forward map's log-determinant for one patch, in nats."""
        lower = self.lower.double().tril(-1) + torch.eye(len(self.log_scale), device=state.device).double()
        upper = self.upper.double().triu(1) + self.log_scale.double().exp().diag()
        mapped = state.index_select(2, permutation).double()
        if inverse:
            mapped = torch.linalg.solve_triangular(upper, mapped, upper=True, left=False)
            mapped = torch.linalg.solve_triangular(lower, mapped, upper=False, left=False, unitriangular=True)
        else:
            mapped = mapped @ (lower @ upper)
        # Each dimension returns to its place, from which the split takes it in the order of the permutation.
        state = torch.empty_like(state).index_copy(2, permutation, mapped.to(state.dtype))
        return state, self.log_scale.to(state.dtype).sum()


# Coupling layers


class JetConditionalMap(nn.Module):
    """
    The map of a coupling layer: the first half of the state passes unchanged, and a conditioner predicts from it the
    parameters of the transform of the second half.

    The map has no weights and takes the split as indices, so that all compiled layers share one graph.

    Args:
        transform: Transform of the second half.
        masking: Whether the input of the conditioner is the whole state with zeros in the second half, rather than the
            first half alone (paper, section 3.2.4).
    """

    def __init__(self, transform: JetTransform, masking: bool):
        super().__init__()
        self.transform = transform
        self.masking = masking
        self.is_compiled = False

    def compile(self, *args, **kwargs) -> None:
        """Compile the map in place, see `torch.nn.Module.compile`."""
        super().compile(*args, **kwargs)
        self.is_compiled = True

    def forward(
        self,
        conditioner: JetConditioner,
        state: torch.Tensor,
        indices: torch.Tensor,
        inverse: bool,
        conditioning: Conditioning,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Apply the map or its inverse.

        Args:
            conditioner: Network that predicts the parameters.
            state: float32 tensor (B, N, D).
            indices: Indices of both halves, int64 (2, N * D/2), see [`split_indices`].
            inverse: Whether to apply the inverse.
            conditioning: Context, mask and guidance.

        Returns:
            The state (B, N, D), and the logarithm of the forward map's derivative at each value of the second half
            (B, N, D/2), in nats.
        """
        first, second = split(state, indices)
        parameters = self.predict(conditioner, first, indices, conditioning)
        second, log_scale = self.transform(second, parameters, inverse)
        return replace_second(state, second, indices), log_scale

    def predict(
        self, conditioner: JetConditioner, first: torch.Tensor, indices: torch.Tensor, conditioning: Conditioning
    ) -> Sequence[torch.Tensor]:
        """Predict the transform's parameters, each (B, N, D/2), from the first half (B, N, D/2)."""
        guidance = conditioning.guidance
        if guidance is not None:
            assert guidance.scale is not None
            guided = self.predict(conditioner, first, indices, conditioning.guided())
            unguided = self.predict(conditioner, first, indices, conditioning.unguided())
            if guidance.rule == "variance_aware":
                return self.transform.guide(guided, unguided, guidance.scale - 1)
            return [torch.lerp(start, end, guidance.scale) for start, end in zip(unguided, guided, strict=True)]
        if not self.masking:
            return conditioner(first, conditioning)
        outputs = conditioner(merge(first, torch.zeros_like(first), indices), conditioning)
        return [split(output, indices)[1] for output in outputs]


class JetCoupling(GradientCheckpointingLayer):
    """
    Coupling layer, a bijection of the state (paper, section 2.1), with Glow's optional parts before it.

    Args:
        config: Configuration of the model.
        layer_index: Position of the layer in the flow, which determines its split.
    """

    permutation: torch.Tensor

    def __init__(self, config: JetConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.pattern = config.layer_splits[layer_index]
        self.spatial = self.pattern != "channels"
        masking = self.spatial and config.coupling_mode == "masking"
        self.map = JetConditionalMap(TRANSFORMS[config.coupling_transform](config), masking)
        self.register_buffer("permutation", self.make_permutation())
        self.actnorm = JetActNorm(config) if config.use_actnorm else None
        # Spatial splits do not permute the dimensions of a patch, so the dense map has nothing to replace there.
        self.dense = JetInvertibleDense(config) if config.use_invertible_dense and not self.spatial else None
        self.conditioner = CONDITIONERS[config.backbone](
            config,
            num_features=config.patch_dim if masking else config.patch_dim // 2,
            num_parameters=self.map.transform.num_parameters,
            cut_rows=self.pattern.startswith("hstripes") and not masking,
        )

    def make_permutation(self) -> torch.Tensor:
        """Return the permutation of the configuration, int64 (N,) for a spatial split, else (D,)."""
        if self.spatial:
            return spatial_permutation(self.pattern, *self.config.grid_shape)
        return channel_permutation(self.config.permutation_seed, self.layer_index, self.config.patch_dim)

    def check_permutation(self, name: str) -> None:
        """
        Check the loaded permutation of the layer `name`, and warn if it is not the configuration's spatial split.

        Raises:
            ValueError: for a tensor that is no permutation, so that the layer could not be inverted.
        """
        if self.permutation.is_meta:
            return
        found, expected = self.permutation.cpu(), self.make_permutation()
        if not torch.equal(found.sort().values, expected.sort().values):
            raise ValueError(f"the weights' `{name}.permutation` must hold each of 0 to {len(expected) - 1} once.")
        # Channel permutations of converted checkpoints come from no seed.
        if self.spatial and not torch.equal(found, expected):
            logger.warning(
                f"the weights' `{name}.permutation` is not the split {self.pattern!r} of `config.spatial_couplings`: "
                "the model uses the split of the weights."
            )

    def forward(
        self,
        state: torch.Tensor,
        inverse: bool,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        guidance: Guidance | None = None,
        attention_temperature: float = 1.0,
        noise_token: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        Apply the layer or its inverse.

        Args:
            state: float32 tensor (B, N, D).
            inverse: Whether to apply the inverse.
            context, context_mask, guidance, attention_temperature, noise_token: Fields of a [`Conditioning`]. They are
                separate arguments because reentrant gradient checkpointing differentiates only arguments that are
                tensors.

        Returns:
            The state, `log_scale` and `glow_log_det` of a [`Step`].
        """
        glow_log_det = None
        if not inverse:
            state, glow_log_det = self._apply_glow(state, inverse)
        conditioning = Conditioning(context, context_mask, guidance, attention_temperature, noise_token)
        state, log_scale = self.map(self.conditioner, state, self.split_indices(), inverse, conditioning)
        if inverse:
            state, glow_log_det = self._apply_glow(state, inverse)
        return state, log_scale, glow_log_det

    def split_indices(self) -> torch.Tensor:
        """Return the indices of both halves in a flattened state, int64 (2, N * D/2)."""
        return split_indices(self.permutation, self.config.num_patches, self.config.patch_dim, self.spatial)

    def _apply_glow(self, state: torch.Tensor, inverse: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Apply Glow's parts or their inverses, and return their forward log-determinant for a patch, in nats."""
        log_dets = []
        if self.dense is not None and inverse:
            state, log_det = self.dense(state, self.permutation, inverse)
            log_dets.append(log_det)
        if self.actnorm is not None:
            state, log_det = self.actnorm(state, inverse)
            log_dets.append(log_det)
        if self.dense is not None and not inverse:
            state, log_det = self.dense(state, self.permutation, inverse)
            log_dets.append(log_det)
        return state, sum(log_dets[1:], log_dets[0]) if log_dets else None


def build_couplings(config: JetConfig) -> Sequence[JetCoupling]:
    """Build all coupling layers of a flow."""
    layers = (JetCoupling(config, i) for i in range(config.num_coupling_layers))
    return nn.ModuleList(layers)  # type: ignore[return-value]


# The traversal of all layers


class Step(NamedTuple):
    """
    Result of one coupling layer in a traversal of the flow.

    Args:
        coupling: The layer.
        state: The state after the layer, float32 (B, N, D).
        log_scale: Logarithm of the forward transform's derivative at each value of the second half, in nats, float32
            (B, N, D/2).
        glow_log_det: Forward log-determinant of Glow's parts for one patch, in nats, or `None` without them.
    """

    coupling: JetCoupling
    state: torch.Tensor
    log_scale: torch.Tensor
    glow_log_det: torch.Tensor | None

    def log_det(self) -> torch.Tensor:
        """Return the layer's forward log-determinant (B,), in nats."""
        log_det = self.log_scale.sum(dim=(1, 2))
        return log_det if self.glow_log_det is None else log_det + self.state.shape[1] * self.glow_log_det

    def log_det_of_patches(self) -> torch.Tensor:
        """Return the terms of [`log_det`] by patch, float64 (B, N), in nats."""
        log_scale = merge(torch.zeros_like(self.log_scale), self.log_scale, self.coupling.split_indices())
        log_det = log_scale.double().sum(dim=2)
        return log_det if self.glow_log_det is None else log_det + self.glow_log_det


def steps(
    couplings: Sequence[JetCoupling], state: torch.Tensor, conditioning: Conditioning, inverse: bool = False
) -> Iterator[Step]:
    """
    Apply the coupling layers one at a time, in reverse order for the inverse.

    Args:
        couplings: The layers.
        state: float32 tensor (B, N, D).
        conditioning: Context, mask and guidance.
        inverse: Whether to invert the flow.

    Yields:
        The [`Step`] of each layer. A layer runs only when the caller asks for its step.
    """
    guidance = conditioning.guidance
    for coupling in reversed(couplings) if inverse else couplings:
        if guidance is not None:
            depth = coupling.layer_index / max(1, len(couplings) - 1)
            conditioning = conditioning._replace(guidance=guidance.at(depth, state))
        state, log_scale, glow_log_det = coupling(state, inverse, *conditioning)
        yield Step(coupling, state, log_scale, glow_log_det)
        del log_scale  # frees its memory before the next layer runs


def transform(
    couplings: Sequence[JetCoupling], state: torch.Tensor, conditioning: Conditioning, inverse: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the state (B, N, D) after all coupling layers, and the map's log-determinant (B,), in nats."""
    log_det = torch.zeros(state.shape[0], dtype=state.dtype, device=state.device)
    for step in steps(couplings, state, conditioning, inverse):
        log_det = log_det.to(step.log_scale.device) + step.log_det()
        end = step.state
        del step  # frees its `log_scale` before the next layer runs
    return end, -log_det if inverse else log_det


@torch.no_grad()
def initialize_actnorm(couplings: Sequence[JetCoupling], state: torch.Tensor, conditioning: Conditioning) -> None:
    """Set the activation normalization of each coupling layer from the state (B, N, D) of a first batch."""
    traversal = steps(couplings, state, conditioning)
    for coupling in couplings:
        assert coupling.actnorm is not None
        coupling.actnorm.initialize(state)
        state = next(traversal).state
