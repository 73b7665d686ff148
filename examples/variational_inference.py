# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Variational inference: train a Jet to be the posterior of a linear-Gaussian model, whose true posterior is known.

    python -m examples.variational_inference --steps 250

An unknown image x of 2 x 4 pixels has the prior N(0, I). Three random weighted sums of its pixels are measured with
Gaussian noise: `y = A x + sigma * eps`. The posterior p(x | y) is a normal distribution with correlated pixels. A Jet
that never sees it is fitted by maximizing the evidence lower bound, the expectation under the Jet of
`log p(x, y) - log q(x)`, with samples that are differentiable in the weights. The script prints the errors of the
Jet's means and standard deviations, and the gap between the bound and the true log-evidence. This gap is the
Kullback-Leibler divergence from the posterior: 0.06 nats, compared with 0.93 for the best normal distribution with
independent pixels.
"""

import argparse

import torch
from torch.distributions import MultivariateNormal, Normal

from jet_hf import JetConfig, JetForDensityEstimation


IMAGE_SIZE, NUM_PIXELS = (2, 4), 8
NUM_MEASUREMENTS, SIGMA = 3, 0.5


class LinearGaussianModel:
    """Measurements `y = A x + SIGMA * eps` of an image x with the prior N(0, I)."""

    def __init__(self, generator: torch.Generator):
        self.operator = torch.randn(NUM_MEASUREMENTS, NUM_PIXELS, generator=generator) / NUM_PIXELS**0.5
        image = torch.randn(NUM_PIXELS, generator=generator)
        noise = torch.randn(NUM_MEASUREMENTS, generator=generator)
        self.measurements = self.operator @ image + SIGMA * noise

    def log_joint(self, images: torch.Tensor) -> torch.Tensor:
        """Return log p(x, y) in nats, (B,), of images (B, 1, 2, 4)."""
        pixels = images.flatten(1)
        log_prior = Normal(0.0, 1.0).log_prob(pixels).sum(dim=1)
        return log_prior + Normal(pixels @ self.operator.T, SIGMA).log_prob(self.measurements).sum(dim=1)

    def posterior(self) -> MultivariateNormal:
        """Return p(x | y), a normal distribution over NUM_PIXELS numbers."""
        precision = torch.eye(NUM_PIXELS) + self.operator.T @ self.operator / SIGMA**2
        covariance = torch.linalg.inv(precision)
        return MultivariateNormal(covariance @ self.operator.T @ self.measurements / SIGMA**2, covariance)

    def log_evidence(self) -> torch.Tensor:
        """Return log p(y), in nats."""
        covariance = self.operator @ self.operator.T + SIGMA**2 * torch.eye(NUM_MEASUREMENTS)
        return MultivariateNormal(torch.zeros(NUM_MEASUREMENTS), covariance).log_prob(self.measurements)


def lower_bounds(flow: JetForDensityEstimation, model: LinearGaussianModel, num_samples: int) -> torch.Tensor:
    """Return `log p(x, y) - log q(x)` (B,) at samples x of the flow q: their mean is the evidence lower bound."""
    posterior = flow.distribution()
    images = posterior.rsample((num_samples,))
    return model.log_joint(images) - posterior.log_prob(images)


def main(steps: int, batch_size: int = 64, seed: int = 0) -> dict[str, float]:
    """Fit a Jet to the posterior, and return the figures that are printed."""
    torch.manual_seed(seed)
    model = LinearGaussianModel(torch.Generator().manual_seed(seed))
    # Each of the two patches holds 4 pixels. Spatial couplings correlate pixels of different patches.
    config = JetConfig(
        image_size=IMAGE_SIZE,
        num_channels=1,
        patch_size=2,
        num_coupling_layers=6,
        coupling_kinds=["channels", "spatial"],
        spatial_couplings=["vstripes", "vstripes-inv"],
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    flow = JetForDensityEstimation(config)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for step in range(steps):
        loss = -lower_bounds(flow, model, batch_size).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            print(f"step {step}: evidence lower bound {-loss.item():.3f} nats")

    with torch.no_grad():
        gaps = model.log_evidence() - lower_bounds(flow, model, 4096)
        samples = flow.distribution().sample((4096,)).flatten(1)
    truth = model.posterior()
    independent = 0.5 * (truth.precision_matrix.diagonal().log().sum() - truth.precision_matrix.logdet())
    results = {
        "independent": independent.item(),
        "gap": gaps.mean().item(),
        "mean_error": (samples.mean(dim=0) - truth.mean).abs().max().item(),
        "std_error": (samples.std(dim=0) - truth.stddev).abs().max().item(),
    }
    print(f"divergence from the posterior: {results['gap']:.4f} ± {gaps.std().item() / 64:.4f} nats")
    print(f"divergence of the best normal distribution with independent pixels: {independent:.4f} nats")
    print(
        f"largest error of a pixel's mean: {results['mean_error']:.3f}, standard deviation: {results['std_error']:.3f}"
    )
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fit a Jet to the posterior of a linear-Gaussian model.")
    parser.add_argument("--steps", type=int, default=250, help="number of optimizer steps")
    parser.add_argument("--batch_size", type=int, default=64, help="samples per step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the model and the training")
    main(**vars(parser.parse_args()))
