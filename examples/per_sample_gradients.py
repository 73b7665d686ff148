# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Gradients of the loss of each image on its own, with `torch.func`.

    python -m examples.per_sample_gradients --batch_size 32

`loss.backward()` adds up the gradients of all images of a batch. Clipping them one by one (differentially private
training), or finding the images that pull the weights apart (influence, gradient noise), needs each of them. A loop
over the images takes one backward pass for each; `vmap(grad(...))` computes all of them in one batched pass. The
script does both, compares them, and prints how far the images agree: the norm of the mean gradient relative to the
mean norm.
"""

import argparse
import time

import torch
from torch.func import functional_call, grad, vmap

from jet_hf import JetConfig, JetForDensityEstimation


def per_sample_gradients(
    model: JetForDensityEstimation, images: torch.Tensor, noise: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    Return the gradient of the bits per dimension of each image with respect to each parameter.

    Args:
        model: Model of 8-bit images.
        images: float32 tensor (B, C, S, S) of bytes `u` as `u / 127.5 - 1`.
        noise: Dequantization noise of the images, float32 tensor (B, C, S, S) in [0, 1).

    Returns:
        Tensors (B, *shape of the parameter) by name.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        output = functional_call(model, (parameters, buffers), (image[None],), {"noise": noise[None]})
        return output.loss

    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, noise)


def gradients_in_a_loop(
    model: JetForDensityEstimation, images: torch.Tensor, noise: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the same as [`per_sample_gradients`], with one backward pass for each image."""
    rows = []
    for i in range(len(images)):
        model.zero_grad()
        model(images[i : i + 1], noise=noise[i : i + 1]).loss.backward()
        rows.append({name: parameter.grad for name, parameter in model.named_parameters()})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def main(batch_size: int, seed: int = 0) -> dict[str, float]:
    """Compare both ways on a new model, and return the figures that are printed."""
    torch.manual_seed(seed)
    config = JetConfig(image_size=16, num_coupling_layers=4, hidden_size=64, num_attention_heads=2)
    model = JetForDensityEstimation(config)
    for parameter in model.parameters():  # a new flow is the identity, in which most gradients are zero
        parameter.data += 0.02 * torch.randn_like(parameter)
    images = torch.randint(256, (batch_size, 3, 16, 16)) / 127.5 - 1
    noise = torch.rand(images.shape)

    start = time.perf_counter()
    ours = per_sample_gradients(model, images, noise)
    middle = time.perf_counter()
    theirs = gradients_in_a_loop(model, images, noise)
    end = time.perf_counter()

    difference = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
    flat = torch.cat([gradient.flatten(1) for gradient in ours.values()], dim=1)
    agreement = (flat.mean(dim=0).norm() / flat.norm(dim=1).mean()).item()
    print(f"vmap(grad) {middle - start:.2f} s, loop {end - middle:.2f} s, largest difference {difference:.1e}")
    print(f"norm of the mean gradient / mean norm of the gradients: {agreement:.3f}")
    return {"difference": difference, "agreement": agreement}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compute the gradient of the loss of each image on its own.")
    parser.add_argument("--batch_size", type=int, default=32, help="number of images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the images")
    main(**vars(parser.parse_args()))
