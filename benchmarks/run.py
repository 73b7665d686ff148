# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A run of the benchmark: measure the parts, store the results as JSON, update the tables of the report."""

import datetime
import json
import logging
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch

from jet_hf import __version__
from jet_hf.training.environment import checkout_commit
from jet_hf.utils.files import replace_text, strict_json

from . import parts
from .arguments import BenchmarkArguments
from .contenders import HAS_PEER
from .tables import plot_growth, update_tables


logger = logging.getLogger(__name__)


def run_benchmark(arguments: BenchmarkArguments, command: str) -> None:
    """
    Measure the chosen parts, and store the results in `benchmark.json` after each of them.

    Args:
        arguments: Arguments of `scripts/benchmark.py`.
        command: Command line of the benchmark, for the report.

    Raises:
        ValueError: If the earlier results in `output_dir` cannot be read; nothing has been measured then.
    """
    path = Path(arguments.output_dir) / "benchmark.json"
    try:
        results = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} must be the JSON file of an earlier benchmark; move it away: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    if not HAS_PEER:
        logger.warning("jet_pytorch is left out: pip install --no-deps jet-pytorch==0.0.2 einops")
    parts.keep_freed_memory()
    origin = {
        "machine": describe_machine(arguments.device),
        "commit": (checkout_commit(Path(__file__).parents[1]) or "unknown")[:7],
        "command": command,
        "date": datetime.date.today().isoformat(),
        "batch_size": arguments.batch_size,
    }
    for part in arguments.parts:
        logger.info(f"measuring {part}")
        if rows := list(getattr(parts, part)(arguments)):
            results[part] = origin | {"rows": rows}
            replace_text(path, strict_json(results, indent=1) + "\n")
        else:
            logger.warning(f"{part} is left out: no contender takes part in it")
    if arguments.report:
        report = Path(arguments.report)
        report.parent.mkdir(parents=True, exist_ok=True)
        if "growth" in results:
            plot_growth(report.with_suffix(".png"), results["growth"]["rows"])
        replace_text(report, update_tables(report.read_text() if report.is_file() else "", results))


def describe_machine(device: str) -> dict[str, str | int | None]:
    """Return the processor with its relevant instruction sets, the threads, the GPU, and the versions of packages."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    sets = sorted(set(re.findall(r"\b(?:avx2|avx512f|avx512_bf16|amx_bf16)\b", text)))
    processor = f"{name[1] if name else platform.machine()} ({', '.join(sets)})"
    machine = {"processor": processor, "threads": torch.get_num_threads()}
    if device == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    packages = {name: version(name) for name in ["torch", "transformers"] + ["jet_pytorch"] * HAS_PEER}
    return machine | {"jet_hf": __version__, **packages, "python": platform.python_version()}
