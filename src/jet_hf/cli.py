# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The `jet-hf` command: parse the arguments, then import and run what the command needs."""

import argparse
import difflib
import gc
import os
import sys
from importlib import import_module
from inspect import cleandoc
from types import ModuleType

from . import __version__
from .arguments import (
    AnomalyArguments,
    AverageArguments,
    CompressArguments,
    ConvertArguments,
    DecompressArguments,
    EvaluateArguments,
    PreparationArguments,
    SampleArguments,
    TrainArguments,
    WeighArguments,
    parse_arguments,
)
from .utils.arguments import BoundedArguments, UsageError, parse
from .utils.console import console, rank


COMMANDS: dict[str, type[BoundedArguments]] = {
    "train": TrainArguments,
    "evaluate": EvaluateArguments,
    "sample": SampleArguments,
    "average": AverageArguments,
    "convert": ConvertArguments,
    "prepare": PreparationArguments,
    "compress": CompressArguments,
    "decompress": DecompressArguments,
    "weigh": WeighArguments,
    "anomaly": AnomalyArguments,
}


def run(argv: list[str]) -> None:
    """
    Run a command.

    Args:
        argv: Name of the command and its arguments.

    Raises:
        SystemExit: with code 1 for an expected error and 2 for a usage error, both with one line.
    """
    with console():
        try:
            name = _command(argv)
            kind, words, prog = COMMANDS[name], argv[1:], f"jet-hf {name}"
            arguments = parse_arguments(words, prog) if kind is TrainArguments else parse(kind, words, prog)
        except UsageError as error:
            if not rank():
                print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error
    try:
        command = _import_command(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__package__):
            raise
        raise SystemExit(f"error: jet-hf {name} needs the package {error.name}, which is not installed.") from error
    try:
        with console(*command.EXPECTED_ERRORS):
            command.run(arguments)
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:
            sys.stdout.flush()
            os._exit(stop.code)  # a thread may still wait for the network
        raise


def _command(argv: list[str]) -> str:
    """
    Return the name of the command; answer `--help` and `--version`.

    Raises:
        UsageError: for an unknown command; the message names the nearest one.
    """
    lines = [f"  {name:10} {cleandoc(kind.__doc__ or '').splitlines()[0]}" for name, kind in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="jet-hf",
        usage="jet-hf COMMAND [--flag value ...]",
        description="Jet, the transformer-based normalizing flow.\n\ncommands:\n" + "\n".join(lines),
        epilog="`jet-hf COMMAND --help` lists the flags of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jet-hf {__version__}")
    parser.parse_known_args(argv[:1] or ["--help"])
    name = argv[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {name}, {hint} (see jet-hf --help)")
    return name


def _import_command(name: str) -> ModuleType:
    """
    Import the module of a command.

    An import creates hundreds of thousands of objects, hardly any of them garbage. Neither collections during the
    import, nor later ones, nor the one at the end of the process, need to look at them.
    """
    module = f"{__package__}.commands.{name}"
    if module not in sys.modules:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            import_module(module)
        finally:
            gc.freeze()
            if was_enabled:
                gc.enable()
    return sys.modules[module]
