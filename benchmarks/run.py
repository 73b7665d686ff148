# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""What `scripts/benchmark.py` does: parts, their figures as JSON, a report."""

import datetime
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from jet_hf.model.configuration_jet import JetConfig
from jet_hf.model.validation_jet import check_whole
from jet_hf.utils.files import replace_text, shared_command, strict_json

from .contenders import JET_HF, NAMES, OPERATIONS, Contender
from .measures import keep_freed_memory
from .parts import Setting, compilation, growth, latency, memory, precision, profile, scoring, speed
from .report import plot_growth, report_text


logger = logging.getLogger(__name__)

PACKAGES = ("jet_hf", "torch", "transformers", "jet_pytorch")
RESULTS = "benchmark.json"


def _field(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class BenchmarkArguments:
    output_dir: str = _field("runs/benchmark", "Folder of benchmark.json and the plots.")
    parts: list[str] = field(
        default_factory=lambda: list(PARTS),
        metadata={"help": "What is measured; figures of other parts in output_dir stay."},
    )
    contenders: list[str] = field(
        default_factory=lambda: [
            "jet_hf",
            "jet_pytorch",
            "floor",
            "jet_hf-compiled",
            "jet_pytorch-compiled",
            "jet_hf-bf16",
            "floor-bf16",
        ],
        metadata={"help": f"{NAMES}."},
    )
    operations: list[str] = field(default_factory=lambda: list(OPERATIONS), metadata={"help": "Of the part speed."})
    image_size: int = _field(32, "Height and width of images.")
    patch_sizes: list[int] = field(default_factory=lambda: [4, 2], metadata={"help": "Each makes a table."})
    num_coupling_layers: int = _field(8, "Coupling layers.")
    num_hidden_layers: int = _field(2, "Blocks of a conditioner.")
    hidden_size: int = _field(256, "Width of a conditioner.")
    num_attention_heads: int = _field(4, "Attention heads.")
    batch_size: int = _field(8, "Images at a time.")
    compile_layers: list[int] = field(
        default_factory=lambda: [8, 32], metadata={"help": "Numbers of coupling layers of the part compilation."}
    )
    rounds: int = _field(15, "Times that each contender is measured.")
    device: str = _field("cpu", "cpu or cuda.")
    num_threads: int | None = _field(None, "Threads on a CPU; by default as many as torch takes.")
    compile_mode: str | None = _field(None, "Of torch.compile, such as reduce-overhead for CUDA graphs.")
    report: str | None = _field(None, "Markdown file to write the report to, with its plot beside it.")

    def __post_init__(self):
        for name in ("batch_size", "rounds"):
            check_whole(name, getattr(self, name))
        for number in self.compile_layers:
            check_whole("compile_layers", number)
        if self.num_threads is not None:
            check_whole("num_threads", self.num_threads)
        for name, known in (("parts", PARTS), ("operations", OPERATIONS)):
            if unknown := set(getattr(self, name)) - set(known):
                raise ValueError(f"`{name}` must be of {', '.join(known)}, got {', '.join(sorted(unknown))}.")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"`device` must be cpu or cuda, got {self.device}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`device` is cuda, but torch sees no GPU.")


PARTS: dict[str, Callable[[Setting], list[dict]]] = {
    part.__name__: part for part in (speed, memory, precision, compilation, latency, profile, growth, scoring)
}


def run_benchmark(arguments: BenchmarkArguments) -> dict:
    """
    Measures what is asked for and writes it down after each part.

    Returns:
        All figures in `output_dir`: for each part `rows`, and the `machine`, `date` and `command` of its run.

    Raises:
        ValueError: for an unknown contender, sizes that no model can have, or figures in `output_dir` that cannot be
            read; before anything is measured.
    """
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.num_threads)  # for new processes
    setting = make_setting(arguments)
    keep_freed_memory()
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    results = _read_results(path) if path.is_file() else {}
    for part in arguments.parts:
        run = {"machine": describe_machine(arguments.device), "command": command_line()}
        run |= {"date": datetime.date.today().isoformat(), "batch_size": arguments.batch_size}
        results[part] = run | {"rows": PARTS[part](setting)}
        replace_text(path, strict_json(results, indent=1) + "\n")
    if arguments.report:
        report = Path(arguments.report)
        report.parent.mkdir(parents=True, exist_ok=True)
        picture = report.with_suffix(".png")
        if "growth" in results:
            plot_growth(picture, results["growth"]["rows"])
        replace_text(report, report_text(results, picture.name))
    return results


def _read_results(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no result of a benchmark, move it away: {error}") from error


def make_setting(arguments: BenchmarkArguments) -> Setting:
    """What all parts share."""
    contenders = []
    for contender in map(Contender.parse, arguments.contenders):
        if contender.installed:
            contenders.append(contender)
        else:
            logger.warning(f"{contender.name} is left out: pip install --no-deps jet-pytorch==0.0.2 einops")
    if Contender(JET_HF) not in contenders:
        raise ValueError(f"`contenders` must have {JET_HF} among them, got {', '.join(arguments.contenders)}.")
    sizes = ("image_size", "num_coupling_layers", "num_hidden_layers", "hidden_size", "num_attention_heads")
    fields = {name: getattr(arguments, name) for name in sizes}
    configs = [JetConfig(patch_size=patch_size, **fields) for patch_size in arguments.patch_sizes]
    return Setting(
        configs[0],
        tuple(arguments.patch_sizes),
        arguments.batch_size,
        tuple(contenders),
        arguments.rounds,
        arguments.device,
        arguments.compile_mode,
        tuple(arguments.operations),
        tuple(arguments.compile_layers),
    )


def describe_machine(device: str) -> dict:
    """Processor, threads or GPU, and versions."""
    machine = {"processor": _processor(), "threads": torch.get_num_threads()}
    if device == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            continue
    return machine | {"python": platform.python_version()}


def command_line() -> str:
    """The command that is running, without this machine's folders."""
    return f"python {shared_command([f'scripts/{Path(sys.argv[0]).name}', *sys.argv[1:]])}"


def _processor() -> str:
    """Model and instruction sets that matter here, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{name}\b", text)]
    return f"{name.group(1) if name else platform.machine()} ({', '.join(sets)})"
