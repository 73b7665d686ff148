# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments of `scripts/benchmark.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jet_hf.model.configuration_jet import JetConfig
from jet_hf.utils.arguments import BoundedArguments, argument

from .contenders import CONTENDERS, HAS_PEER, OPERATIONS, STANDARD, Task


PARTS = ("speed", "memory", "precision", "compilation", "latency", "profile", "growth", "scoring")


@dataclass
class BenchmarkArguments(BoundedArguments):
    """
    Time encoding, decoding and training against jet-pytorch and against the matrix products and attention alone.

        pip install --no-deps jet-pytorch==0.0.2 einops
        python scripts/benchmark.py --report docs/performance.md
        python scripts/benchmark.py --parts speed --operations train --patch_sizes 4 --rounds 5

    Contenders take turns within one process; compile time and the first image are measured in new processes.
    """

    output_dir: str = argument("Folder of benchmark.json, which keeps the results of other parts.", "runs/benchmark")
    parts: Sequence[str] = argument("Parts to measure.", PARTS, choices=PARTS)
    contenders: Sequence[str] = argument("Contenders, jet_hf among them.", STANDARD, choices=CONTENDERS)
    operations: Sequence[str] = argument("Operations of the part speed.", OPERATIONS, choices=OPERATIONS)
    image_size: int = argument("Height and width of the images, in pixels.", 32)
    patch_sizes: Sequence[int] = argument("Sides of a patch, in pixels, for each part.", (4, 2))
    num_coupling_layers: int = argument("Number of coupling layers.", 8)
    num_hidden_layers: int = argument("Transformer blocks of a conditioner.", 2)
    hidden_size: int = argument("Width of a conditioner.", 256)
    num_attention_heads: int = argument("Attention heads of a conditioner.", 4)
    batch_size: int = argument("Number of images in a batch.", 8, at_least=1)
    compile_layers: Sequence[int] = argument("Coupling layers of the part compilation.", (8, 32), at_least=1)
    rounds: int = argument("Number of timed calls of each contender.", 15, at_least=1)
    device: str = argument("Device.", "cpu", choices=("cpu", "cuda"))
    compile_mode: str | None = argument("Mode of torch.compile, such as reduce-overhead for CUDA graphs.", None)
    report: str | None = argument("Markdown file whose tables are replaced, but not its text; a plot is added.", None)

    def __post_init__(self):
        super().__post_init__()
        if "jet_hf" not in self.contenders:
            raise ValueError(f"`contenders` must include jet_hf, got {', '.join(self.contenders)}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`device` must be cpu, since torch finds no GPU; got cuda.")
        for patch_size in self.patch_sizes:
            self.task("encode", patch_size=patch_size)

    def entrants(self, operation: str) -> list[str]:
        """Return the contenders that are installed and concern an operation."""
        trains = operation == "train"
        unfit = {"jet_pytorch": not HAS_PEER, "checkpointed": not trains, "prepared": trains or self.device != "cpu"}
        return [name for name in self.contenders if not any(unfit[word] for word in unfit if word in name)]

    def task(self, operation: str, batch_size: int | None = None, **sizes: int) -> Task:
        """Return a task with `sizes` of the model in place of the arguments."""
        given = {name: value for name, value in vars(self).items() if name in JetConfig.__annotations__}
        config = JetConfig(**{"patch_size": self.patch_sizes[0]} | given | sizes)
        return Task(operation, config, batch_size or self.batch_size, self.device, self.compile_mode)
