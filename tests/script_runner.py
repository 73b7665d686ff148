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
            if isinstance(end.code, str):  # Python prints the message and exits with 1
                print(end.code, file=sys.stderr)
                return 1
            return end.code or 0
    return 0
