# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The ViT inside a coupling layer, which maps one half of the state to bias and scale of the other.

Shapes: B batch, N tokens, F numbers of a token, E hidden size, H heads, L context tokens.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_jet import JetConfig
from .linear_jet import GELULinear, JetLinear, gelu_tanh, is_bare


# In training plain attention has to keep its weights, which are as large as a hidden state only with few tokens.
FEW_TOKENS = 256
FEW_TOKENS_IN_TRAINING = 64


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
    """Attention in plain operations, in the form that transformers' attention interface asks for."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = nn.functional.dropout(weights.to(value.dtype), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def prefers_plain_products(query: torch.Tensor) -> bool:
    """Whether plain operations are faster than torch's fused attention: in bfloat16, with few tokens, on a CPU."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or type(query) is not torch.Tensor:
        return False
    return query.shape[2] <= (FEW_TOKENS_IN_TRAINING if torch.is_grad_enabled() else FEW_TOKENS)


class JetAttentionBase(nn.Module):
    """What self-attention and cross-attention share: the heads, and the choice of `config._attn_implementation`."""

    is_causal = False

    def __init__(self, config: JetConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        (B, N, E), (B, L, E), (B, L, E) -> attended values (B, N, E), weights (B, H, N, L) or None. `mask` (B, L) is
        True where there is something to attend to.
        """
        if mask is not None:
            forbidden = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
            mask = forbidden.masked_fill(~mask, torch.finfo(query.dtype).min)[:, None, None]
        query, key, value = (
            states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for states in (query, key, value)
        )
        implementation = self.config._attn_implementation
        if implementation == "sdpa" and prefers_plain_products(query):
            implementation = "eager"
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attention(self, query, key, value, mask, dropout=0.0, scaling=self.scaling)
        return output.flatten(2), weights


class JetAttention(JetAttentionBase):
    """Multi-head self-attention; query, key and value come out of one projection."""

    def __init__(self, config: JetConfig):
        super().__init__(config)
        self.qkv_proj = JetLinear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = JetLinear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, weights = self.attend(*self.qkv_proj(hidden_states).chunk(3, dim=-1))
        return self.o_proj(output), weights


class JetCrossAttention(JetAttentionBase):
    """Attention from the tokens (query) to the context (key, value)."""

    def __init__(self, config: JetConfig):
        super().__init__(config)
        self.q_proj = JetLinear(config.hidden_size, config.hidden_size)
        self.kv_proj = JetLinear(config.context_width, 2 * config.hidden_size)
        self.o_proj = JetLinear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, context: torch.Tensor, context_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        key, value = self.kv_proj(context).chunk(2, dim=-1)
        output, _ = self.attend(self.q_proj(hidden_states), key, value, context_mask)
        return self.o_proj(output)


class JetMLP(nn.Module):
    def __init__(self, config: JetConfig):
        super().__init__()
        self.fc1 = JetLinear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = JetLinear(config.intermediate_size, config.hidden_size)
        self.has_gelu_tanh = config.hidden_act == "gelu_pytorch_tanh"

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.has_gelu_tanh:
            return self.fc2(self.activation(self.fc1(hidden_states)))
        if torch.is_grad_enabled() and is_bare(self.fc2):
            return GELULinear.apply(self.fc1(hidden_states), self.fc2.weight, self.fc2.bias)
        if type(self.fc1) is JetLinear:
            return self.fc2(self.fc1(hidden_states, with_gelu=True))
        return self.fc2(gelu_tanh(self.fc1(hidden_states)))


class JetViTLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: JetConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = JetAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = JetMLP(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(self.layernorm_before(hidden_states))[0]
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


class JetConditioner(nn.Module):
    """
    What the conditioners of coupling layers share: a projection `in_proj`, a `cross_attention` or `None`, and a
    projection `out_proj`, with the blocks of the kind between them.

    Takes tokens of the state (B, N, F) and, where the configuration has one, a context (B, L, context_width) with a
    mask (B, L) that is False for padding. Gives `bias` and `raw_scale`, each (B, N, F), in the dtype of the tokens,
    whatever dtype the weights have.
    """

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, F) -> (B, N, E)."""
        return self.in_proj(tokens)

    def run_blocks(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, N, E) -> (B, N, E), normalised."""
        raise NotImplementedError

    def forward(
        self, half: torch.Tensor, context: torch.Tensor | None = None, context_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = self.in_proj.weight.dtype
        hidden_states = self.embed(half.to(dtype))
        if self.cross_attention is not None:
            hidden_states = hidden_states + self.cross_attention(hidden_states, context.to(dtype), context_mask)
        output = self.out_proj(self.run_blocks(hidden_states)).to(half.dtype)
        bias, raw_scale = output.chunk(2, dim=-1)
        return bias, raw_scale


class JetViT(JetConditioner):
    """
    Conditioner of a coupling layer: a ViT without patchification or pooling (paper, section 2.1 and 3).

    Args:
        config: The model's configuration.
        num_features: Numbers F of a token.
    """

    def __init__(self, config: JetConfig, num_features: int):
        super().__init__()
        self.in_proj = nn.Linear(num_features, config.hidden_size)
        self.position_embeddings = nn.Parameter(torch.empty(1, config.num_patches, config.hidden_size))
        self.cross_attention = JetCrossAttention(config) if config.context_width is not None else None
        self.layers = nn.ModuleList([JetViTLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(config.hidden_size, 2 * num_features)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.in_proj(tokens) + self.position_embeddings

    def run_blocks(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.layernorm(hidden_states)
