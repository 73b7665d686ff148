#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Print the changelog's section of a release, or fail if the tag is not that of this version or has no section.

    python scripts/release_notes.py v0.1.0
"""

import argparse
import re
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def release_notes(tag: str, version: str, changelog: str) -> str:
    """
    Return the section of a release.

    Args:
        tag: Tag of the release.
        version: Version of the package.
        changelog: Text in the form of Keep a Changelog 1.1.0.

    Raises:
        ValueError: if the tag is not that of the version, or the changelog has no section with a date and a text.
    """
    if tag != f"v{version}":
        raise ValueError(f"the tag must be v{version}, the version of jet_hf, got {tag}.")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    section = re.search(rf"{heading}\n(.*?)(?=^## |^\[[^\]]+\]: |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if section is None or not section[1].strip():
        raise ValueError(f"CHANGELOG.md must have a section `## [{version}] - YYYY-MM-DD` that says what is new.")
    return section[1].strip()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Print the changelog's section of a release.")
    parser.add_argument("tag", help="tag of the release, such as v0.1.0")
    tag = parser.parse_args(argv).tag

    import jet_hf_cli  # noqa: F401 (before jet_hf, which then imports no torch)
    from jet_hf import __version__

    try:
        print(release_notes(tag, __version__, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
