# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Markdown tables."""


def markdown_table(lines: list[list[str]], left: int) -> str:
    """
    Return a Markdown table.

    Args:
        lines: Rows of cells; the first one is the header.
        left: Number of columns aligned to the left; the remaining ones are aligned to the right.
    """
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    rows = [lines[0], rule, *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)
