# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Hook of MkDocs that writes the help of all commands into `docs/reference/commands.md`."""

import contextlib
import io
import os
from unittest import mock

import jet_hf_cli  # noqa: F401  # first, so that importing jet_hf does not import torch
from jet_hf.cli import COMMANDS, run


PAGE = "reference/commands.md"
COLUMNS = "88"  # argparse wraps its texts to two columns less than the terminal has


def help_text(*words: str) -> str:
    """Return what `jet-hf` prints for these words and `--help`."""
    text = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=COLUMNS),
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        run([*words, "--help"])
    return text.getvalue()


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Append the help of each command to its page, and leave other pages as they are."""
    if page.file.src_uri != PAGE:
        return markdown
    texts = {"jet-hf": help_text()} | {f"jet-hf {name}": help_text(name) for name in COMMANDS}
    return markdown + "".join(f"\n## {title}\n\n```text\n{text}```\n" for title, text in texts.items())
