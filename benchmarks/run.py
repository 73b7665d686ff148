# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A run of the benchmark: measure the parts, store the results as JSON, update the tables of the report."""

import contextlib
import datetime
import json
import logging
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from jet_hf.utils.files import replace_text, shared_command, strict_json

from . import parts
from .allocator import keep_freed_memory
from .arguments import BenchmarkArguments
from .contenders import is_installed
from .tables import plot_growth, update_tables


logger = logging.getLogger(__name__)

PACKAGES = ("jet_hf", "torch", "transformers", "jet_pytorch")
RESULTS = "benchmark.json"


def run_benchmark(arguments: BenchmarkArguments) -> dict[str, dict]:
    """
    Measure the chosen parts; the results are stored after each part.

    Returns:
        All results in `output_dir`: for each part its `rows`, and the `machine`, `commit`, `date`, `command` and
        `batch_size` of its run.

    Raises:
        ValueError: If the earlier results in `output_dir` cannot be read; nothing has been measured then.
    """
    path = Path(arguments.output_dir) / RESULTS
    results = _read_results(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.contenders:
        if not is_installed(name):
            logger.warning(f"{name} is left out: pip install --no-deps jet-pytorch==0.0.2 einops")
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.num_threads)  # for new processes
    keep_freed_memory()
    origin = {
        "machine": describe_machine(arguments.device),
        "commit": _commit(),
        "command": _command(),
        "date": datetime.date.today().isoformat(),
        "batch_size": arguments.batch_size,
    }
    for part in arguments.parts:
        logger.info(f"measuring {part}")
        results[part] = origin | {"rows": list(getattr(parts, part)(arguments))}
        replace_text(path, strict_json(results, indent=1) + "\n")
    if arguments.report:
        report = Path(arguments.report)
        report.parent.mkdir(parents=True, exist_ok=True)
        if "growth" in results:
            plot_growth(report.with_suffix(".png"), results["growth"]["rows"])
        replace_text(report, update_tables(report.read_text() if report.is_file() else "", results))
    return results


def _read_results(path: Path) -> dict[str, dict]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be the JSON file of an earlier benchmark; move it away: {error}") from error


def describe_machine(device: str) -> dict[str, str | int | None]:
    """Return the processor, the number of threads, the GPU, and the versions of packages."""
    machine: dict[str, str | int | None] = {"processor": _processor(), "threads": torch.get_num_threads()}
    if device == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            machine[package] = version(package)
    return machine | {"python": platform.python_version()}


def _command() -> str:
    """Return the running command, without folders of this machine."""
    return f"python {shared_command([f'scripts/{Path(sys.argv[0]).name}', *sys.argv[1:]])}"


def _commit() -> str:
    """Return the abbreviated commit of this checkout, or `unknown` outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    """Return the model of the processor and its relevant instruction sets, as far as the system names them."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    sets = sorted(set(re.findall(r"\b(?:avx2|avx512f|avx512_bf16|amx_bf16)\b", text)))
    return f"{name[1] if name else platform.machine()} ({', '.join(sets)})"
