# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments of the benchmark."""

from dataclasses import dataclass, field

import torch

from jet_hf.model.configuration_jet import JetConfig
from jet_hf.model.validation_jet import check_whole

from .contenders import CONTENDERS, HAS_PEER, OPERATIONS, STANDARD, Task


PARTS = ("speed", "memory", "precision", "compilation", "latency", "profile", "growth", "scoring")
CHOICES = {"parts": PARTS, "contenders": CONTENDERS, "operations": OPERATIONS, "device": ("cpu", "cuda")}


@dataclass
class BenchmarkArguments:
    """Arguments of `scripts/benchmark.py`; the `help` of each field describes it."""

    output_dir: str = field(default="runs/benchmark", metadata={"help": "Folder of benchmark.json."})
    parts: list[str] = field(
        default_factory=lambda: list(PARTS),
        metadata={"help": f"Parts to measure, of {', '.join(PARTS)}; other results in output_dir are kept."},
    )
    contenders: list[str] = field(
        default_factory=lambda: list(STANDARD), metadata={"help": f"Contenders, of {', '.join(CONTENDERS)}."}
    )
    operations: list[str] = field(
        default_factory=lambda: list(OPERATIONS), metadata={"help": "Operations of the part speed."}
    )
    image_size: int = field(default=32, metadata={"help": "Height and width of the images, in pixels."})
    patch_sizes: list[int] = field(
        default_factory=lambda: [4, 2], metadata={"help": "Sides of a patch, in pixels, for each part."}
    )
    num_coupling_layers: int = field(default=8, metadata={"help": "Number of coupling layers."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Transformer blocks of a conditioner."})
    hidden_size: int = field(default=256, metadata={"help": "Width of a conditioner."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads of a conditioner."})
    batch_size: int = field(default=8, metadata={"help": "Number of images in a batch."})
    compile_layers: list[int] = field(
        default_factory=lambda: [8, 32], metadata={"help": "Numbers of coupling layers of the part compilation."}
    )
    rounds: int = field(default=15, metadata={"help": "Number of timed calls of each contender."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    compile_mode: str | None = field(
        default=None, metadata={"help": "Mode of torch.compile, such as reduce-overhead for CUDA graphs."}
    )
    report: str | None = field(
        default=None, metadata={"help": "Markdown file whose tables are replaced; the plot is written beside it."}
    )

    def __post_init__(self):
        for name, choices in CHOICES.items():
            values = getattr(self, name)
            for value in [values] if isinstance(values, str) else values:
                if value not in choices:
                    raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value}.")
        if "jet_hf" not in self.contenders:
            raise ValueError(f"`contenders` must include jet_hf, got {', '.join(self.contenders)}.")
        check_whole("batch_size", self.batch_size)
        check_whole("rounds", self.rounds)
        for number in self.compile_layers:
            check_whole("compile_layers", number)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`device` must be cpu, since torch finds no GPU; got cuda.")
        for patch_size in self.patch_sizes:
            self.task("encode", patch_size=patch_size)

    def entrants(self, operation: str) -> list[str]:
        """Return the contenders that are installed and concern an operation."""
        out = [] if HAS_PEER else ["jet_pytorch"]
        out += ["checkpointed"] if operation != "train" else []
        out += ["prepared"] if operation == "train" or self.device != "cpu" else []
        return [name for name in self.contenders if not any(word in name for word in out)]

    def task(self, operation: str, batch_size: int | None = None, **sizes: int) -> Task:
        """Return a task with `sizes` of the model in place of the arguments."""
        names = ("image_size", "num_coupling_layers", "num_hidden_layers", "hidden_size", "num_attention_heads")
        given = {name: getattr(self, name) for name in names} | {"patch_size": self.patch_sizes[0]}
        config = JetConfig(**given | sizes)
        return Task(operation, config, batch_size or self.batch_size, self.device, self.compile_mode)
