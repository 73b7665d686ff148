# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The affine coupling layer (paper, section 2.1 and 2.3)."""

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .cnn_jet import JetCNN
from .configuration_jet import JetConfig
from .glow_jet import JetActNorm, JetInvertibleDense
from .splits_jet import channel_permutation, half_places, merge, replace_second, spatial_permutation, split
from .vit_jet import JetConditioner, JetViT


logger = logging.get_logger(__name__)


class JetAffine(nn.Module):
    """
    A coupling layer's affine map of one half of the state, set by what a conditioner makes of the other half. It knows
    the split by indices alone, so that layers of both kinds are compiled as one. It has no weights of its own.

    Args:
        scale_factor: What the sigmoid of the raw scale is multiplied by.
        masking: Whether the conditioner sees all tokens, those of the half that is mapped as zeros, rather than the
            other half alone.
    """

    def __init__(self, scale_factor: float, masking: bool):
        super().__init__()
        self.scale_factor = scale_factor
        self.log_scale_factor = math.log(scale_factor)
        self.masking = masking
        self.is_compiled = False

    def compile(self, *args, **kwargs) -> None:
        """Compile the map in place, as any module, and remember it."""
        super().compile(*args, **kwargs)
        self.is_compiled = True

    def forward(
        self,
        conditioner: JetConditioner,
        state: torch.Tensor,
        places: torch.Tensor,
        inverse: bool,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            conditioner: Gives bias and raw scale.
            state: float32 tensor of shape (B, N, D).
            places: Those of both halves, int64 (2, N * D/2), see [`half_places`].
            inverse: Whether to invert the map.
            context, context_mask, guidance_scale: As for [`JetCoupling`].

        Returns:
            The mapped state (B, N, D), and the logarithm of `scale`, in nats, for each number of the half that is
            mapped, (B, N, D/2).
        """
        x1, x2 = split(state, places)
        bias, raw_scale = self.condition(conditioner, x1, places, context, context_mask, guidance_scale)
        scale = self.scale_factor * torch.sigmoid(raw_scale)
        log_scale = nn.functional.logsigmoid(raw_scale) + self.log_scale_factor
        x2 = x2 / scale - bias if inverse else (x2 + bias) * scale
        return replace_second(state, x2, places), log_scale

    def condition(
        self,
        conditioner: JetConditioner,
        half: torch.Tensor,
        places: torch.Tensor,
        context: torch.Tensor | None,
        context_mask: torch.Tensor | None,
        guidance_scale: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bias and raw scale of the other half, each (B, N, D/2)."""
        if guidance_scale is not None:
            with_context = self.condition(conditioner, half, places, context, context_mask, None)
            without = self.condition(conditioner, half, places, torch.zeros_like(context), context_mask, None)
            bias, raw_scale = (torch.lerp(a, b, guidance_scale) for a, b in zip(without, with_context, strict=True))
            return bias, raw_scale
        if not self.masking:
            return conditioner(half, context, context_mask)
        outputs = conditioner(merge(half, torch.zeros_like(half), places), context, context_mask)
        bias, raw_scale = (split(output, places)[1] for output in outputs)
        return bias, raw_scale


class JetCoupling(GradientCheckpointingLayer):
    """
    One bijection of the flow: a half `x1` of the state passes unchanged and sets the affine map of the other half,
    `y2 = (x2 + bias) * scale` with `scale = scale_factor * sigmoid(raw_scale)`. Where the configuration asks for
    Glow's parts, these come first.

    Args:
        config: The model's configuration.
        layer_index: Position of the layer in the flow, which settles its split.
    """

    def __init__(self, config: JetConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.pattern = config.layer_splits[layer_index]
        self.spatial = self.pattern != "channels"
        masking = self.spatial and config.coupling_mode == "masking"
        self.affine = JetAffine(config.scale_factor, masking)
        self.register_buffer("permutation", self.make_permutation())
        self.actnorm = JetActNorm(config) if config.use_actnorm else None
        # Spatial splits have no permutation of a patch's numbers that it could take the place of.
        self.dense = JetInvertibleDense(config) if config.use_invertible_dense and not self.spatial else None
        num_features = config.patch_dim if masking else config.patch_dim // 2
        if config.backbone == "cnn":
            cut_rows = self.pattern.startswith("hstripes") and not masking
            self.conditioner = JetCNN(config, num_features, cut_rows)
        else:
            self.conditioner = JetViT(config, num_features)

    def make_permutation(self) -> torch.Tensor:
        """The permutation that the configuration asks for: int64, (N,) for a spatial split, else (D,)."""
        if self.spatial:
            return spatial_permutation(self.pattern, self.config.grid_size)
        return channel_permutation(self.config.permutation_seed, self.layer_index, self.config.patch_dim)

    def check_permutation(self, name: str) -> None:
        """
        Check the loaded permutation of the layer called `name`. One that is not the configuration's split is logged:
        the weights decide.

        Raises:
            ValueError: if it is no permutation, so that the layer could not be inverted.
        """
        if self.permutation.is_meta:
            return
        found, expected = self.permutation.cpu(), self.make_permutation()
        if not torch.equal(found.sort().values, expected.sort().values):
            raise ValueError(f"the weights' `{name}.permutation` must hold each of 0 to {len(expected) - 1} once.")
        # Channel permutations of converted checkpoints come from no seed.
        if self.spatial and not torch.equal(found, expected):
            logger.warning(
                f"the weights' `{name}.permutation` is not the split {self.pattern!r} that `spatial_couplings` of the "
                "configuration asks for: the weights' one is used."
            )

    def forward(
        self,
        state: torch.Tensor,
        context: torch.Tensor | None = None,
        inverse: bool = False,
        context_mask: torch.Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            state: float32 tensor of shape (B, N, D).
            context: Tensor of shape (B, L, context_width), for a model with a context.
            inverse: Whether to invert the layer, `x2 = y2 / scale - bias`.
            context_mask: Boolean tensor of shape (B, L), False for padding.
            guidance_scale: Factor by which bias and raw scale go from those of an empty context, of zeros, to those of
                `context`, and beyond.

        Returns:
            The mapped state (B, N, D), and the log-determinant of the Jacobian of this map (B,), in nats.
        """
        state, log_scale = self.transform(state, context, inverse, context_mask, guidance_scale)
        log_det = log_scale.sum(dim=(1, 2))
        if self.actnorm is not None or self.dense is not None:
            log_det = log_det + self.config.num_patches * self.patch_log_det()
        return state, -log_det if inverse else log_det

    def transform(
        self,
        state: torch.Tensor,
        context: torch.Tensor | None,
        inverse: bool,
        context_mask: torch.Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mapped state, and the logarithm of `scale`, in nats, for each number of the half that is mapped."""
        places = self.places()
        if not inverse:
            state = self._apply_glow(state, places)
        state, log_scale = self.affine(self.conditioner, state, places, inverse, context, context_mask, guidance_scale)
        if inverse:
            state = self._apply_glow(state, places, inverse=True)
        return state, log_scale

    def places(self) -> torch.Tensor:
        """Where both halves are in a flattened state, int64 (2, N * D/2): see [`half_places`]."""
        return half_places(self.permutation, self.config.num_patches, self.config.patch_dim, self.spatial)

    def _apply_glow(self, state: torch.Tensor, places: torch.Tensor, inverse: bool = False) -> torch.Tensor:
        """What of activation normalisation and the learned map there is, in this order, or their inverses."""
        if self.actnorm is not None and not inverse:
            state = self.actnorm(state)
        if self.dense is not None:
            # In the permutation's order, so that the learned map, the identity at first, starts as the permutation.
            halves = self.dense(torch.cat(split(state, places), dim=2), inverse).chunk(2, dim=2)
            state = merge(*halves, places)
        if self.actnorm is not None and inverse:
            state = self.actnorm(state, inverse=True)
        return state

    def log_scale_map(self, log_scale: torch.Tensor) -> torch.Tensor:
        """The logarithms of [`transform`] where their numbers are in the state, (B, N, D); zero elsewhere."""
        return merge(torch.zeros_like(log_scale), log_scale, self.places())

    def patch_log_det(self) -> torch.Tensor:
        """What Glow's parts add to the log-determinant for each patch, in nats: a float32 number."""
        log_det = torch.zeros((), device=self.permutation.device)
        for part in (self.actnorm, self.dense):
            if part is not None:
                log_det = log_det + part.log_scale.to(torch.promote_types(part.log_scale.dtype, torch.float32)).sum()
        return log_det
