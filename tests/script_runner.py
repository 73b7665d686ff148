"""Scripts run in the process of the tests, which saves the seconds that an import of torch and transformers takes."""

import runpy
import sys
from unittest import mock

from conftest import ROOT


def run_script(name: str, *arguments: object) -> int:
    """Run `scripts/NAME` as the main program, and return its exit code."""
    path = str(ROOT / "scripts" / name)
    with mock.patch.object(sys, "argv", [path, *map(str, arguments)]):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0
