"""Every code block of the documentation is executed: pages from top to bottom, and the examples of docstrings."""

import importlib
from contextlib import chdir

import pytest
import torch
import yaml
from conftest import ROOT
from doc_blocks import MARK, environment, parse_docstrings, parse_page, reason_before
from doc_workplace import copy_workplace, write_workplace
from huggingface_hub import close_session, constants, hf_api


# Its test looks into what its blocks compute.
RUN_BY_TEST_INTEGRATIONS = "docs/guides/integrations.md"
PAGES = ["README.md", "CONTRIBUTING.md", "recipes/README.md"]
PAGES += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md"))]
MODULES = [path for path in sorted((ROOT / "src").rglob("*.py")) if "```python" in path.read_text()]


@pytest.fixture(scope="module")
def workplace(running_hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "workplace"
    variables = running_hub.environment("author") | {"ACCELERATE_USE_CPU": "true"}
    with environment(variables):
        read_settings_of_hub()
        write_workplace(folder)
        yield folder
    read_settings_of_hub()


def read_settings_of_hub():
    """Let the client of the Hub, which reads the environment when it is imported, read it again."""
    close_session()  # a client knows whether it is offline
    importlib.reload(constants)
    hf_api.api.endpoint = constants.ENDPOINT


@pytest.mark.filterwarnings("ignore:'examples:RuntimeWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if page != RUN_BY_TEST_INTEGRATIONS])
def test_the_blocks_of_a_page_run(page, workplace, tmp_path, subtests):
    document = parse_page(ROOT / page)
    copy_workplace(workplace, tmp_path / "page")
    torch.manual_seed(0)
    with chdir(tmp_path / "page"):
        for example in document:
            with subtests.test(line=example.line):
                example.evaluate()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_examples_of_docstrings_run(path, subtests):
    for example in parse_docstrings(path):
        with subtests.test(line=example.line):
            example.evaluate()


@pytest.mark.parametrize("page", PAGES)
def test_a_mark_gives_the_reason_for_which_the_block_after_it_is_not_run(page):
    text = (ROOT / page).read_text()
    for mark in MARK.finditer(text):
        assert mark[1].startswith(": ") and reason_before(text, mark.end() + 1), mark[0]
        assert text[mark.end() :].lstrip("\n ").startswith("```"), mark[0]


WRONG = {
    "exception": "```python\n1 / 0\n```",
    "result": "```python\n>>> 1 + 1\n3\n```",
    "flag": "```console\n$ jet-hf sample --modle runs/photos\n```",
    "value": "```console\n$ jet-hf evaluate --model runs/photos --dataset photos --batch_size many\n```",
    "model": "```console\n$ jet-hf sample --model runs/none\n```",
    "recipe": "```console\n$ accelerate launch scripts/train.py --config recipes/none.yaml\n```",
    "release": "```console\n$ jet-hf train --dataset_path photos --dataset_release imagenet\n```",
    "launcher": "```console\n$ accelerate launch --num_process 2 scripts/train.py\n```",
    "launcher's file": "```console\n$ accelerate launch --config_file none.yaml scripts/train.py\n```",
    "script": "```console\n$ python scripts/none.py\n```",
    "long program": "```console\n$ python -m examples.restoration --number 3\n```",
    "long program's output": "```console\n$ python -m examples.restoration\nwrote restoration\n```",
    "table": "```console\n$ python scripts/sweep.py --table none --config recipes/photographs.yaml\n```",
    "contender": "```console\n$ python scripts/benchmark.py --contenders jet_hf none\n```",
    "output": "```console\n$ python -c \"print('1.25')\"\n1.26\n```",
    "end of the output": "```console\n$ python -c \"print('1\\n2')\"\n1\n```",
    "extra": '```console\n$ pip install -c constraints.txt ".[none]"\n```',
    "constraints": "```console\n$ pip install -c none.txt .\n```",
    "target": "```console\n$ make none\n```",
    "second command": "```console\n$ make clean && make none\n```",
    "unknown command": "```console\n$ sbatch recipes/slurm.sh\n```",
    "pipe": "```console\n$ ls | head\n```",
    "no command": "```console\nls\n```",
    "empty reason": "<!-- not run: -->\n```console\n$ sbatch recipes/slurm.sh\n```",
    "far mark": "<!-- not run: Slurm -->\n\n```console\n$ sbatch recipes/slurm.sh\n```",
    "language": "```bash\nls\n```",
    "title": '```python title="example.py"\n1 / 0\n```',
    "list": "- Text\n\n  ```python\n  1 / 0\n  ```",
    "text": "```text\n$ ls\n```",
    "no language": "```\nls\n```",
    "yaml": "```yaml\na: b: c\n```",
}
RIGHT = {
    "any output": "```console\n$ python -c \"print('took 3 s'); print('wrote a')\"\ntook ... s\nwrote a\n```",
    "error": "```console\n$ jet-hf sample --model runs/none\nerror: ...\n```",
    "names": "```python\na = 1\n```\n\n```python\n>>> a\n1\n```",
    "lines": '```console\n$ python -c "\nprint(1)" \\\n    a b  # two arguments\n1\n```',
    "variable": "```console\n$ A=2 python -c \"import os; print(os.environ['A'])\" > a.txt\n$ cat a.txt\n2\n```",
    "mark": "<!-- not run: Slurm -->\n```console\n$ sbatch recipes/slurm.sh\n```",
    "data": "```text\n1 / 0\n```",
}


def run(text, folder):
    page = folder / "page.md"
    page.write_text(text)
    for example in parse_page(page):
        example.evaluate()


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_wrong_block_fails(text, workplace, tmp_path):
    with chdir(workplace), pytest.raises((AssertionError, ZeroDivisionError, OSError, yaml.YAMLError)):
        run(text, tmp_path)


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_a_right_block_passes(text, workplace, tmp_path):
    with chdir(workplace):
        run(text, tmp_path)
