"""The structure that CONTRIBUTING.md describes."""

import ast
import subprocess
import sys

from conftest import ROOT


PACKAGE = ROOT / "src" / "jet_hf"
MODEL_FILES = [path for path in sorted((PACKAGE / "model").glob("*.py")) if path.name != "__init__.py"]
# A folder or file may import from its own row only within itself, and from the rows above it.
LAYERS = [
    ["model", "utils"],
    ["arguments", "auto"],
    ["data", "hub", "importers"],
    ["analysis"],
    ["training", "codec", "anomaly", "prior"],
    ["commands"],
    ["cli"],
    ["train"],
]


def imports(path) -> list[tuple[int, str]]:
    """Return (number of leading dots, module) of every import in a file; `from . import x` counts as module x."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, node.module)] if node.module else [(node.level, item.name) for item in node.names]
    return found


def test_remote_code_imports_only_its_siblings_and_libraries_that_every_user_has():
    siblings = {file.stem for file in MODEL_FILES}
    for path in MODEL_FILES:
        allowed = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
        if path.stem == "image_processing_jet":
            allowed |= {"numpy", "PIL"}
        for level, module in imports(path):
            outside = level == 0 and module.split(".")[0] in allowed
            assert outside or (level == 1 and module in siblings), (path, module)


def test_imports_point_one_way():
    rank = {part: i for i, layer in enumerate(LAYERS) for part in layer}
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert folders <= rank.keys() and len(folders) <= 8
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for level, module in imports(path):
            imported = module.split(".")[0]
            if level == len(parts) and imported in rank:  # a name such as __version__ has no rank
                assert rank[imported] < rank[parts[0]] or imported == parts[0], (path, module)
            assert not (level == 0 and imported == "jet_hf"), (path, "must import from its own package by dots")


def test_importing_jet_hf_is_light():
    """In a command it waits for the first use of a name; then it registers the classes, without optional packages."""
    code = """
import gc, os, sys
gc.disable()  # imports take less time, and so does the end
sys.modules.update(dict.fromkeys(["datasets", "accelerate", "gradio", "torchvision"]))  # cannot be imported
import jet_hf_cli, jet_hf
assert "torch" not in sys.modules
jet_hf.JetConfig()
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("jet", image_size=8, num_coupling_layers=1, hidden_size=16)
assert isinstance(AutoModel.from_config(config), jet_hf.JetModel)
assert not {"matplotlib", "sklearn", "skimage", "pyarrow", "accelerate.state"} & sys.modules.keys()
try:
    jet_hf.Jet
except AttributeError as error:
    print(error, flush=True)
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "module 'jet_hf' has no attribute 'Jet'\n"
