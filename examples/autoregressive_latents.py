# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Jet as the encoder of an autoregressive model: JetFormer's use, on scikit-learn's digits.

    python -m examples.autoregressive_latents --steps 300

A Jet maps images to latents of the same size. As a density model of its own it asks them to be independent N(0, 1).
In JetFormer (Tschannen et al., 2024), a causal transformer models them instead: the latents of each patch are a soft
token, and the transformer predicts the next token as a mixture of normal distributions. Both are trained together on
the exact likelihood `log p(x) = log p(z) + log |det dz/dx|`, of which the transformer gives the first term and the Jet
the second. The script trains this model and a plain Jet with as many steps, and prints their bits per dimension on
held-out digits. After 150 steps they are 2.67 with the transformer and 3.22 without it.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from jet_hf import JetConfig, JetForDensityEstimation
from jet_hf.model.modeling_jet import bits_per_dim, scale_bytes


NUM_LEVELS = 17  # gray levels of the digits


class AutoregressivePrior(nn.Module):
    """Causal transformer over soft tokens, with a head that predicts a mixture of normal distributions."""

    def __init__(self, num_tokens: int, token_dim: int, hidden_size: int = 64, num_components: int = 8):
        super().__init__()
        self.token_dim, self.num_components = token_dim, num_components
        self.in_proj = nn.Linear(token_dim, hidden_size)
        self.positions = nn.Parameter(torch.randn(1, num_tokens, hidden_size) * hidden_size**-0.5)
        layer = nn.TransformerEncoderLayer(
            hidden_size, nhead=4, dim_feedforward=4 * hidden_size, dropout=0.0, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(hidden_size, num_components * (1 + 2 * token_dim))

    def predict(self, tokens: torch.Tensor) -> MixtureSameFamily:
        """Return the distribution of each token given the tokens before it, of batch shape (B, N)."""
        previous = nn.functional.pad(tokens[:, :-1], (0, 0, 1, 0))  # the first token follows zeros
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden_states = self.transformer(self.in_proj(previous) + self.positions, mask=mask, is_causal=True)
        sizes = [self.num_components, *2 * [self.num_components * self.token_dim]]
        logits, means, log_stds = self.head(hidden_states).split(sizes, dim=-1)
        means, log_stds = (part.unflatten(-1, (self.num_components, self.token_dim)) for part in (means, log_stds))
        normals = Independent(Normal(means, log_stds.exp()), 1)
        return MixtureSameFamily(Categorical(logits=logits), normals)

    def log_prob(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the log-density (B,) of tokens (B, N, D), in nats."""
        return self.predict(tokens).log_prob(tokens).sum(dim=1)


def score(model: JetForDensityEstimation, prior: AutoregressivePrior | None, images: torch.Tensor) -> torch.Tensor:
    """Return the bits per dimension (B,) of images (B, 1, 8, 8), of the plain Jet without a `prior`."""
    output = model(images)
    if prior is None:
        return output.bits_per_dim
    tokens = model.jet.patchify(output.latents)
    return bits_per_dim(prior.log_prob(tokens) + output.log_det, model.config.num_dims, NUM_LEVELS)


def main(steps: int, batch_size: int = 64, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Train both models, and return their bits per dimension on held-out digits before and after."""
    digits = scale_bytes(torch.from_numpy(load_digits().images).byte()[:, None], NUM_LEVELS)
    train, held_out = train_test_split(digits, test_size=0.2, random_state=seed)
    config = JetConfig(
        image_size=8,
        num_channels=1,
        patch_size=2,
        num_levels=NUM_LEVELS,
        num_coupling_layers=6,
        coupling_kinds=["channels", "spatial"],
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    results = {}
    for name in ("Jet", "Jet and causal transformer"):
        torch.manual_seed(seed)
        model = JetForDensityEstimation(config)
        prior = None if name == "Jet" else AutoregressivePrior(config.num_patches, config.patch_dim)
        parameters = [*model.parameters(), *(prior.parameters() if prior is not None else ())]
        optimizer = torch.optim.AdamW(parameters, lr=2e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(steps, 1))
        with torch.no_grad():
            before = score(model, prior, held_out).mean().item()
        start = time.perf_counter()
        for _ in range(steps):
            batch = train[torch.randint(len(train), (batch_size,))]
            optimizer.zero_grad()
            score(model, prior, batch).mean().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            after = score(model, prior, held_out).mean().item()
        size, seconds = sum(parameter.numel() for parameter in parameters), time.perf_counter() - start
        print(f"{name}: {size:,} parameters, {before:.3f} -> {after:.3f} bits per dimension in {seconds:.0f} s")
        results[name] = (before, after)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a causal transformer on the latents of a Jet.")
    parser.add_argument("--steps", type=int, default=300, help="number of optimizer steps of each model")
    parser.add_argument("--batch_size", type=int, default=64, help="images per step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, the weights and the batches")
    main(**vars(parser.parse_args()))
