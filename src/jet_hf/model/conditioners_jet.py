# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Conditioners: the networks inside coupling layers, which predict from one half of the state the parameters of the
transform of the other half.

Shapes: B batch, N = G * G tokens, F features of a token, E hidden size, H heads, L context tokens, P parameters of the
transform.

To add a backbone, subclass [`JetConditioner`], add the class to `CONDITIONERS` and its name to `BACKBONES` of the
configuration.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_jet import JetConfig


class Guidance(NamedTuple):
    """
    Guidance of the coupling layers, which combine the parameters of a guided and of an unguided prediction.

    Args:
        scales: Strengths at the layers next to the latents and next to the image, between which the others are
            interpolated: 0 for the unguided prediction, 1 for the guided one. `None` at one layer, see [`at`].
        rule: Name in `GUIDANCE_RULES`.
        attention_temperature: Temperature of self-attention in the unguided prediction.
        scale: Strength at one layer, see [`at`].
    """

    scales: tuple[float, float] | None
    rule: str
    attention_temperature: float
    scale: torch.Tensor | None = None

    def at(self, depth: float, state: torch.Tensor) -> "Guidance":
        """Return the guidance of a layer, at a depth from 0 next to the image to 1 next to the latents."""
        assert self.scales is not None
        first, last = self.scales
        # As a tensor, the strength of each layer and sample needs no compiled graph of its own, as numbers would.
        return self._replace(scales=None, scale=state.new_full((), last + depth * (first - last)))


class Conditioning(NamedTuple):
    """
    Inputs of the conditioners beside the image.

    Args:
        context: Tensor (B, L, context_width) that the conditioners attend to, or `None`.
        context_mask: Boolean tensor (B, L), False for padding, or `None`.
        guidance: Guidance of the coupling layers, or `None`.
        attention_temperature: Divisor of the logits of self-attention.
        noise_token: Embedding (B, 1, context_width) of the noise levels, one more token of the context, or `None`.
    """

    context: torch.Tensor | None = None
    context_mask: torch.Tensor | None = None
    guidance: Guidance | None = None
    attention_temperature: float = 1.0
    noise_token: torch.Tensor | None = None

    def guided(self) -> "Conditioning":
        """Return the inputs of the guided prediction."""
        return self._replace(guidance=None)

    def unguided(self) -> "Conditioning":
        """Return the inputs of the unguided prediction: zeros stand for no context, as in the original's training."""
        assert self.guidance is not None
        context = None if self.context is None else torch.zeros_like(self.context)
        temperature = self.guidance.attention_temperature
        return self._replace(context=context, guidance=None, attention_temperature=temperature)

    def all_tokens(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the context (B, L, context_width) in a dtype, the noise token included, and its mask or `None`."""
        tokens = [token.to(dtype) for token in (self.context, self.noise_token) if token is not None]
        mask = self.context_mask
        if mask is not None and self.noise_token is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1), mask


def linear(in_features: int, out_features: int, initialization: str) -> nn.Linear:
    """Build a linear layer with the name of its initialization, see `initialize_linear` of the model."""
    layer = nn.Linear(in_features, out_features)
    layer.initialization = initialization  # type: ignore[assignment]
    return layer


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention in plain operations, with the signature of transformers' attention interface."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = nn.functional.dropout(weights.to(value.dtype), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class JetAttentionBase(nn.Module):
    """Base class for self- and cross-attention."""

    is_causal = False

    def __init__(self, config: JetConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attend with the implementation that the configuration names.

        Args:
            query, key, value: Tensors (B, N, E), (B, L, E) and (B, L, E).
            mask: Boolean tensor (B, L), True for tokens to attend to.
            temperature: Divisor of the logits.

        Returns:
            The attended values (B, N, E), and the weights (B, H, N, L) or `None`.
        """
        if mask is not None:
            forbidden = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
            mask = forbidden.masked_fill(~mask, torch.finfo(query.dtype).min)[:, None, None]
        query, key, value = (
            states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for states in (query, key, value)
        )
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(self, query, key, value, mask, dropout=0.0, scaling=self.scaling / temperature)
        return output.flatten(2), weights


class JetAttention(JetAttentionBase):
    """Multi-head self-attention, with one projection for query, key and value."""

    def __init__(self, config: JetConfig):
        super().__init__(config)
        self.qkv_proj = linear(config.hidden_size, 3 * config.hidden_size, "xavier_uniform_qkv")
        self.o_proj = linear(config.hidden_size, config.hidden_size, "xavier_uniform")

    def forward(
        self, hidden_states: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = self.qkv_proj(hidden_states).chunk(3, dim=-1)
        output, weights = self.attend(query, key, value, temperature=temperature)
        return self.o_proj(output), weights


class JetCrossAttention(JetAttentionBase):
    """Attention from the tokens (query) to the context (key and value)."""

    def __init__(self, config: JetConfig):
        super().__init__(config)
        assert config.context_width is not None
        self.q_proj = linear(config.hidden_size, config.hidden_size, "lecun_normal")
        self.kv_proj = linear(config.context_width, 2 * config.hidden_size, "lecun_normal")
        self.o_proj = linear(config.hidden_size, config.hidden_size, "zeros")

    def forward(
        self, hidden_states: torch.Tensor, context: torch.Tensor, context_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        key, value = self.kv_proj(context).chunk(2, dim=-1)
        output, _ = self.attend(self.q_proj(hidden_states), key, value, context_mask)
        return self.o_proj(output)


def allows_checkpointing() -> bool:
    """Return whether checkpoints can be placed here: `torch.func.grad` and its relatives refuse them."""
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return True
    except RuntimeError:
        return False


class JetNoiseEmbedding(nn.Module):
    """
    Embedding of noise levels: an MLP of sinusoids of their logarithm, as in iTARFlow (Chen et al., 2026).

    The sinusoids are slow enough to be smooth in the logarithm, and fast enough to tell levels apart that differ by a
    tenth. The norm gives tokens of unit variance, like those of labels.
    """

    num_frequencies = 16

    def __init__(self, config: JetConfig):
        super().__init__()
        assert config.context_width is not None
        self.in_proj = linear(2 * self.num_frequencies, config.hidden_size, "lecun_normal")
        self.activation = ACT2FN[config.hidden_act]
        self.out_proj = linear(config.hidden_size, config.context_width, "lecun_normal")
        self.layernorm = nn.LayerNorm(config.context_width, eps=config.layer_norm_eps)

    def forward(self, noise_std: torch.Tensor) -> torch.Tensor:
        """Embed standard deviations (B,) as tokens (B, 1, context_width)."""
        frequencies = 10 ** torch.linspace(-1, 1, self.num_frequencies, device=noise_std.device, dtype=noise_std.dtype)
        angles = noise_std.log()[:, None] * frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.layernorm.weight.dtype)
        return self.layernorm(self.out_proj(self.activation(self.in_proj(waves))))[:, None]


class JetMLP(nn.Module):
    """
    MLP of a transformer block.

    In training its activation is recomputed in the backward pass rather than kept, which saves a fifth of the memory
    of a training step. Compiled graphs, and those of torch_xla, choose for themselves what they recompute.
    """

    def __init__(self, config: JetConfig):
        super().__init__()
        assert config.intermediate_size is not None
        self.fc1 = linear(config.hidden_size, config.intermediate_size, "xavier_uniform_mlp")
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = linear(config.intermediate_size, config.hidden_size, "xavier_uniform_mlp")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.fc1(hidden_states)
        needs_gradients = self.training and hidden_states.requires_grad
        is_compiled = torch.compiler.is_compiling() or hidden_states.device.type == "xla"
        if needs_gradients and not is_compiled and allows_checkpointing():
            # The recomputation stops at the input of `fc2`, so that no product is computed twice.
            return checkpoint(self._activate_and_project, hidden_states, use_reentrant=False)
        return self._activate_and_project(hidden_states)

    def _activate_and_project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(hidden_states))


class JetViTLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: JetConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = JetAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = JetMLP(config)

    def forward(self, hidden_states: torch.Tensor, attention_temperature: float = 1.0) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), attention_temperature)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


class JetConditioner(nn.Module):
    """
    Base class for conditioners. A subclass builds its blocks and then the zero-initialized output projection
    `out_proj`; the order of the weights is that of optimizer states.

    The conditioner computes in the dtype of its norms, since quantization replaces only linear layers. Its outputs
    have the dtype of the tokens.

    Args:
        config: Configuration of the model.
        num_features: Number F of features of a token.
        num_parameters: Number P of parameters of the transform for each feature.
        cut_rows: Whether the tokens are the patches of every other row, each cut into two halves.
    """

    out_proj: nn.Linear

    def __init__(self, config: JetConfig, num_features: int, num_parameters: int, cut_rows: bool = False):
        super().__init__()
        self.num_parameters = num_parameters
        self.in_proj = linear(num_features, config.hidden_size, "lecun_normal")
        self.cross_attention = JetCrossAttention(config) if config.context_width is not None else None

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the hidden states."""
        raise NotImplementedError

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project tokens (B, N, F) to hidden states (B, N, E)."""
        return self.in_proj(tokens)

    def run_blocks(self, hidden_states: torch.Tensor, attention_temperature: float = 1.0) -> torch.Tensor:
        """Map hidden states (B, N, E) to normalized ones of the same shape."""
        raise NotImplementedError

    def forward(self, tokens: torch.Tensor, conditioning: Conditioning) -> tuple[torch.Tensor, ...]:
        """
        Predict the transform's parameters.

        Args:
            tokens: float32 tensor (B, N, F).
            conditioning: Context, mask and attention temperature.

        Returns:
            P float32 tensors (B, N, F).
        """
        dtype = self.compute_dtype
        hidden_states = self.embed(tokens.to(dtype))
        if self.cross_attention is not None:
            hidden_states = hidden_states + self.cross_attention(hidden_states, *conditioning.all_tokens(dtype))
        hidden_states = self.run_blocks(hidden_states, conditioning.attention_temperature)
        output = self.out_proj(hidden_states).to(tokens.dtype)
        return output.chunk(self.num_parameters, dim=-1)


class JetViT(JetConditioner):
    """ViT without patchification and pooling (paper, sections 2.1 and 3)."""

    def __init__(self, config: JetConfig, num_features: int, num_parameters: int, cut_rows: bool = False):
        super().__init__(config, num_features, num_parameters, cut_rows)
        self.position_embeddings = nn.Parameter(torch.empty(1, config.num_patches, config.hidden_size))
        self.layers = nn.ModuleList([JetViTLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out_proj = linear(config.hidden_size, num_parameters * num_features, "zeros")

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.layernorm.weight.dtype

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.in_proj(tokens) + self.position_embeddings

    def run_blocks(self, hidden_states: torch.Tensor, attention_temperature: float = 1.0) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_temperature)
        return self.layernorm(hidden_states)


def standardize(filters: torch.Tensor) -> torch.Tensor:
    """Return filters (O, I, H, W) with a mean of zero and a variance of one each, with BiT's epsilon."""
    variance, mean = torch.var_mean(filters, dim=(1, 2, 3), keepdim=True, correction=0)
    return (filters - mean) * torch.rsqrt(variance + 1e-10)


class JetStandardizedConv2d(nn.Conv2d):
    """Convolution with standardized filters (Qiao et al., 2019)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = standardize(self.weight.float()).to(hidden_states.dtype)
        return nn.functional.conv2d(hidden_states, weight, None, self.stride, self.padding)


class JetCNNLayer(nn.Module):
    """Pre-activation bottleneck block."""

    def __init__(self, config: JetConfig):
        super().__init__()
        width, bottleneck = config.hidden_size, config.hidden_size // 4
        self.norm1 = nn.GroupNorm(config.num_groups, width)
        self.conv1 = JetStandardizedConv2d(width, bottleneck, 1, bias=False)
        self.norm2 = nn.GroupNorm(config.num_groups, bottleneck)
        self.conv2 = JetStandardizedConv2d(bottleneck, bottleneck, 3, padding=1, bias=False)
        self.norm3 = nn.GroupNorm(config.num_groups, bottleneck)
        self.conv3 = JetStandardizedConv2d(bottleneck, width, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2), (self.norm3, self.conv3)):
            hidden_states = conv(torch.relu(norm(hidden_states)))
        return residual + hidden_states


class JetCNN(JetConditioner):
    """
    CNN on the grid of the tokens (paper, section 3.2.3).

    The paper names "Big Transfer" (BiT, Kolesnikov et al., 2020) and leaves the details open. As in BiT, the blocks
    are pre-activation bottlenecks (group norm, ReLU, convolution; 1x1, 3x3, 1x1) of a quarter of the width, with
    weight-standardized convolutions without biases and zero padding, followed by a group norm and ReLU. There is no
    downsampling, because every token needs an output, and no position embedding, because zero padding marks the
    borders. With `cut_rows` the two halves of a patch are placed one below the other, so that neighbors in the grid
    are neighbors in the image.
    """

    def __init__(self, config: JetConfig, num_features: int, num_parameters: int, cut_rows: bool = False):
        super().__init__(config, num_features, num_parameters, cut_rows)
        self.config, self.cut_rows = config, cut_rows
        self.layers = nn.ModuleList([JetCNNLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.GroupNorm(config.num_groups, config.hidden_size)
        self.out_proj = linear(config.hidden_size, num_parameters * num_features, "zeros")

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    def to_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        """Arrange tokens (B, N, E) in a grid (B, E, rows, columns)."""
        rows, columns = self.config.grid_shape
        if self.cut_rows:
            tokens = tokens.unflatten(1, (rows // 2, columns, 2)).transpose(2, 3)
        # Contiguous, because torch.func.vmap has no rule for group norms of channels-last grids.
        return tokens.reshape(-1, rows, columns, tokens.shape[-1]).permute(0, 3, 1, 2).contiguous()

    def to_tokens(self, grid: torch.Tensor) -> torch.Tensor:
        """Return the tokens (B, N, E) of a grid (B, E, rows, columns), the inverse of [`to_grid`]."""
        tokens = grid.permute(0, 2, 3, 1)
        if self.cut_rows:
            tokens = tokens.unflatten(1, (self.config.grid_shape[0] // 2, 2)).transpose(2, 3)
        return tokens.reshape(grid.shape[0], -1, grid.shape[1])

    def run_blocks(self, hidden_states: torch.Tensor, attention_temperature: float = 1.0) -> torch.Tensor:
        hidden_states = self.to_grid(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.to_tokens(torch.relu(self.norm(hidden_states)))


CONDITIONERS: dict[str, type[JetConditioner]] = {"vit": JetViT, "cnn": JetCNN}
