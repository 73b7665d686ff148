# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Hook of MkDocs that writes the help of all commands into `docs/reference/commands.md`."""

import contextlib
import io
import os
import re
from unittest import mock

import jet_hf_cli  # noqa: F401  # first, so that importing jet_hf does not import torch
from jet_hf.cli import COMMANDS, run


PAGE = "reference/commands.md"
# A flag or argument with its text, on the same line or on the next, and the title of a group of them.
FLAG, GROUP = re.compile(r"^  (\S.*?)(?:\n {24}| {2,})(\S.*)$", re.MULTILINE), re.compile(r"^(\S.*):$", re.MULTILINE)
SPECIAL = re.compile(r"[*_<[]")


def help_text(*words: str) -> str:
    """Return what `jet-hf` prints for these words and `--help`, with each text on one line."""
    text = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS="10000"),
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        run([*words, "--help"])
    return text.getvalue()


def help_page(name: str) -> str:
    """Return the help of a command as Markdown, whose lists wrap on screens of any width."""
    description, _, flags = help_text(name).partition("\noptions:\n")
    flags = FLAG.sub(lambda match: f"- `{match[1]}`: " + SPECIAL.sub(r"\\\g<0>", match[2]), flags)
    return f"\n## jet-hf {name}\n\n```text\n{description}```\n\n" + GROUP.sub(r"**\1**\n", flags)


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Append the help of each command to its page, and leave other pages as they are."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown + f"\n```text\n{help_text()}```\n" + "".join(map(help_page, COMMANDS))
