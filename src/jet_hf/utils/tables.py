# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tables of reports."""


def markdown_table(lines: list[list[str]], left: int) -> str:
    """A table whose first line is its header; the columns after the first `left` are aligned to the right."""
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    rows = [lines[0], rule, *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)
