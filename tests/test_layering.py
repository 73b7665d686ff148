"""The structure that CONTRIBUTING.md describes."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT


PACKAGE = ROOT / "src" / "jet_hf"
MODEL_FILES = [path for path in sorted((PACKAGE / "model").glob("*.py")) if path.name != "__init__.py"]
# Each part may import those before it in the list.
LAYERS = [
    ["model", "utils"],
    ["data", "hub", "importers"],
    ["analysis"],
    ["training"],
]


def imports(path) -> list[tuple[int, str]]:
    """(number of leading dots, module) of every import in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_remote_code_imports_only_its_siblings_and_what_every_user_has(path):
    siblings = {file.stem for file in MODEL_FILES}
    allowed = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
    if path.stem == "image_processing_jet":
        allowed |= {"numpy", "PIL"}
    for level, module in imports(path):
        assert (level == 1 and module in siblings) or (level == 0 and module.split(".")[0] in allowed), module


def test_data_flows_one_way():
    rank = {part: i for i, layer in enumerate(LAYERS) for part in layer}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        assert parts[0] in rank, f"{parts[0]} has no place in LAYERS"
        for level, module in imports(path):
            if level == len(parts) and module:  # from outside of its own part
                assert rank[module.split(".")[0]] < rank[parts[0]] or module.split(".")[0] == parts[0], (path, module)


def test_scripts_are_short_enough_to_read():
    for path in (ROOT / "scripts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path


def test_importing_jet_hf_is_light():
    code = (
        "import sys, jet_hf; "
        "heavy = {'datasets', 'accelerate', 'gradio', 'matplotlib', 'sklearn', 'skimage', 'torchvision'}; "
        "print(*sorted(heavy & {name for name in sys.modules if 'jet_hf' not in name}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    # transformers itself loads accelerate where it is installed.
    assert set(loaded) <= {"accelerate"}
    blocked = "import sys; sys.modules.update(dict.fromkeys(['datasets', 'accelerate', 'gradio', 'torchvision']))"
    subprocess.run([sys.executable, "-c", f"{blocked}; import jet_hf; jet_hf.JetConfig()"], check=True)
