"""JSON that is written strictly, so that other programs can read it, and the permissions of files."""

import ast
import json
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from jet_hf.utils.files import new_folder, publish_files, publish_folder, replace_file, strict_json


def parse_strictly(text: str) -> object:
    """Parse JSON as other languages do: without Python's NaN and Infinity."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON: {text}")

    return json.loads(text, parse_constant=refuse)


def test_unknown_numbers_become_null_and_all_others_stay():
    value = {"a": math.nan, "b": [math.inf, -math.inf, 1.5, 2, True, None, "NaN"], "c": ({"d": math.nan},)}
    expected = {"a": None, "b": [None, None, 1.5, 2, True, None, "NaN"], "c": [{"d": None}]}
    assert parse_strictly(strict_json(value)) == expected
    assert strict_json({"a": 0.1}, indent=1) == '{\n "a": 0.1\n}'


def test_no_json_is_written_that_may_contain_nan():
    for path in (path for folder in ("src", "scripts", "space") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
                keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
                strict = keywords.get("allow_nan", True) is False
                assert strict, f"{path}:{node.lineno} writes JSON without `strict_json` or `allow_nan=False`"


def write_private(path: Path) -> None:
    """Write weights, whose file safetensors makes readable by its owner alone."""
    save_file({"weight": torch.zeros(2)}, path)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_and_folders_have_the_permissions_that_the_umask_gives(tmp_path, umask):
    previous = os.umask(umask)
    try:
        with new_folder(tmp_path / "new") as draft:
            write_private(draft / "a")
        (tmp_path / "draft" / "inner").mkdir(parents=True)
        write_private(tmp_path / "draft" / "inner" / "b")
        publish_folder(tmp_path / "draft", tmp_path / "published")
        (tmp_path / "files").mkdir()
        write_private(tmp_path / "files" / "c")
        publish_files(tmp_path / "files", tmp_path / "new", last="c")
        write_private(tmp_path / "new" / ".d")  # left by a killed process
        replace_file(tmp_path / "new" / "d", write_private)
    finally:
        os.umask(previous)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["new", "new/a", "new/c", "new/d", "published", "published/inner", "published/inner/b"]
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
