"""JSON that is written strictly, so that other programs can read it."""

import ast
import json
import math

from conftest import ROOT

from jet_hf.utils.files import strict_json


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
