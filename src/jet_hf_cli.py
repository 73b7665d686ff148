# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Entry point of the `jet-hf` command.

It stands beside the package because `import jet_hf` registers Jet with the Auto classes of transformers, which imports
torch. A process that has imported this module first defers that until a command runs, so `--help` answers at once.
"""

import sys


def end_at_once_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process with one line, also while it imports; call it before slow imports."""
    from jet_hf.utils import console

    console.end_at_once_on_signals()


def main(argv: list[str] | None = None) -> None:
    """
    Run a command.

    Args:
        argv: Name of the command and its arguments; those of this process by default.
    """
    end_at_once_on_signals()

    from jet_hf.cli import run

    run(sys.argv[1:] if argv is None else argv)
