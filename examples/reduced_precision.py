# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
What narrower conditioners cost: bits per dimension, and the error of decoding what was encoded.

    python -m examples.reduced_precision --num_images 64

Each row scores crops of a held-out photograph with the model of the browser demo, encodes them and decodes their
latents. The flow's state is float32 in all rows. `--quantized` adds rows that need the packages torchao and
bitsandbytes. The table in `docs/guides/integrations.md` is that of the default number of images with `--quantized`.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jet_hf import JetForDensityEstimation
from jet_hf.model.modeling_jet import dequantize, scale_bytes
from jet_hf.utils.tables import markdown_table

from .photographs import load_photograph


MODEL = Path(__file__).parent.parent / "space" / "model"


def read_crops(num_images: int, side: int, seed: int = 0) -> torch.Tensor:
    """Return random crops (B, 3, S, S) of a photograph that the model was not trained on, as 8-bit images."""
    photograph, generator = load_photograph("coffee"), np.random.default_rng(seed)
    tops, lefts = (generator.integers(0, length - side, num_images) for length in photograph.shape[:2])
    crops = [photograph[y : y + side, x : x + side] for y, x in zip(tops, lefts, strict=True)]
    return scale_bytes(torch.from_numpy(np.stack(crops)).movedim(3, 1))


@torch.no_grad()
def measure(model: JetForDensityEstimation, pixels: torch.Tensor) -> tuple[float, float, float]:
    """Return bits per dimension, the largest error of a reconstruction, and the share of bytes that it restores."""
    noise = torch.full_like(pixels, 0.5)  # half a gray level, so that the nearest byte below is the original one
    images = dequantize(pixels, noise)
    bits = model(pixels, noise=noise).bits_per_dim.mean().item()
    reconstructed, _ = model.decode(model.encode(images)[0])
    errors = (reconstructed - images).abs()
    return bits, errors.max().item(), (errors < 0.5 / 127.5).double().mean().item()


def quantized_models() -> dict[str, dict[str, Any]]:
    """Return the arguments of `from_pretrained` for quantized weights of linear layers."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import BitsAndBytesConfig, TorchAoConfig

    # The blocks of NF4 do not fit the narrow projections at both ends of a conditioner.
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["in_proj", "out_proj"]
    )
    configs = {
        "torchao, int8 weights": TorchAoConfig(Int8WeightOnlyConfig()),
        "torchao, int8 weights and activations": TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
        "bitsandbytes, LLM.int8": BitsAndBytesConfig(load_in_8bit=True),
        "bitsandbytes, NF4 weights": nf4,
    }
    return {name: {"quantization_config": config} for name, config in configs.items()}


def main(num_images: int, quantized: bool = False) -> dict[str, tuple[float, float, float]]:
    """Measure all rows, print them as a table, and return them."""
    models = {
        "float32": {},
        "autocast to bfloat16": {},
        "bfloat16 weights": {"dtype": torch.bfloat16},
        **(quantized_models() if quantized else {}),
    }
    rows = {}
    for name, arguments in models.items():
        model = JetForDensityEstimation.from_pretrained(MODEL, **{"dtype": torch.float32} | arguments).eval()
        is_autocast = name.startswith("autocast")
        with torch.autocast("cpu", torch.bfloat16) if is_autocast else contextlib.nullcontext():
            rows[name] = measure(model, read_crops(num_images, model.config.image_size))
    lines = [["conditioners", "bits per dimension", "largest error, in gray levels", "bytes restored"]]
    for name, (bits, error, kept) in rows.items():
        lines.append([name, f"{bits:.4f}", f"{127.5 * error:.2g}", f"{kept:.3%}"])
    print(markdown_table(lines, left=1))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what narrower conditioners cost.")
    parser.add_argument("--num_images", type=int, default=64, help="number of crops")
    parser.add_argument("--quantized", action="store_true", help="measure torchao and bitsandbytes too")
    main(**vars(parser.parse_args()))
