"""
The code blocks of the documentation, parsed by sybil and executed.

A `python` block runs in the namespace of its page, with doctest's rules if it starts with `>>>`. In a `console` block,
lines that start with `$ ` are commands, and other lines are their expected output, in which `...` matches anything.
Commands run in this process, through the same main functions, because importing torch takes seconds; [`smaller`] makes
their work short. `<!-- not run: REASON -->` on the line before a block excludes it.
"""

import argparse
import dataclasses
import doctest
import io
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from unittest import mock

import yaml
from accelerate.commands import launch
from conftest import ROOT
from packaging.requirements import Requirement
from sybil import Document, Example, Region
from sybil.document import PythonDocStringDocument
from sybil.evaluators.doctest import DocTestEvaluator, OutputChecker
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.abstract import DocTestStringParser
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

import jet_hf_cli
from jet_hf.cli import COMMANDS
from jet_hf.data import RELEASES
from jet_hf.training import TrainArguments
from jet_hf.training.checkpoints import list_checkpoints
from reproduction.sweep import run_sweep as RUN_SWEEP


MARK = re.compile(r"^ *<!--\s*not run\b(.*?)-->", re.DOTALL | re.MULTILINE)
# Languages of blocks that hold no code to run.
DATA = ("bibtex", "csv", "json", "mermaid", "text", "toml")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


# Pages


def parse_page(path: Path) -> Document:
    """Return a page with its blocks; those with a mark are left out."""
    document = Document.parse(str(path), find_blocks)
    document.namespace["__name__"] = "__main__"
    return document


def find_blocks(document: Document) -> Iterator[Region]:
    """Yield the blocks of a page that are executed, whatever follows their language, such as a title."""
    for region in RawFencedCodeBlockLexer(re.compile(r"[ \t]*(?P<language>[^\s{]*)[^\n]*\n"))(document):
        language, region.parsed = region.lexemes["language"], region.lexemes["source"]
        if not reason_before(document.text, region.start):
            region.evaluator = EVALUATORS.get(language, refuse)
            if language == "python" and region.parsed.startswith(">>>"):
                for statement in STATEMENTS(region.parsed, document.path):
                    statement.adjust(region, region.parsed)
                    yield statement
            elif language not in DATA or re.search(r"^\$ ", region.parsed, re.MULTILINE):
                yield region


def reason_before(text: str, start: int) -> str | None:
    """Return the reason on the line before a block for which it is not run; `None` without a mark."""
    mark = MARK.fullmatch(text[:start].removesuffix("\n").rpartition("\n")[2].strip())
    return mark and mark[1].removeprefix(":").strip()


def refuse(example: Example) -> str:
    """Refuse a block that could hide code."""
    return (
        f"the language of a block must be python, console (whose commands start with `$ `), yaml or one of "
        f"{', '.join(DATA)}, which hold no commands, got {example.region.lexemes['language']!r}."
    )


def evaluate_yaml(example: Example) -> None:
    yaml.safe_load(example.parsed)


class Docstrings(PythonDocStringDocument):
    """Docstrings of a module, whose examples import all that they use."""

    def __init__(self, text: str, path: str) -> None:
        Document.__init__(self, text, path)  # without the evaluator that imports the module's names


def parse_docstrings(path: Path) -> Document:
    """Return a module with the `python` blocks of its docstrings."""
    return Docstrings.parse(str(path), PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS))


# Console blocks


@dataclasses.dataclass
class Command:
    """A command of a console block, and its expected output."""

    text: str
    output: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether no line is missing, as after a backslash or in a string."""
        try:
            shlex.split(self.text, comments=True)
        except ValueError:
            return False
        return not self.text.endswith("\\")


def read_commands(source: str) -> list[Command]:
    commands: list[Command] = []
    for line in source.splitlines():
        if commands and not commands[-1].is_complete:
            commands[-1].text += f"\n{line}"
        elif line.startswith("$ "):
            commands.append(Command(line.removeprefix("$ ")))
        elif commands and not line.startswith("# "):
            commands[-1].output.append(line)
        elif line and not line.startswith("# "):
            raise AssertionError(f"a command must start with `$ `, got {line!r}")
    assert commands, "a console block must hold a command, which starts with `$ `"
    return commands


def evaluate_console(example: Example) -> None:
    for command in read_commands(example.parsed):
        check(command)


def check(command: Command) -> None:
    """
    Run a command.

    Raises:
        AssertionError: if it fails, is unknown, or prints another output. A command may fail if its expected output
            is that of an error.
    """
    __tracebackhide__ = True
    expected = "\n".join(command.output).strip()
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr), as_in_a_process():
            code = run_line(command.text)
    except OnlyParsed:
        assert not expected, f"$ {command.text}\nis only parsed here, so that its output cannot be shown in this block"
        return
    printed = f"$ {command.text}\nended with code {code} and printed\n{stdout.getvalue()}\n{stderr.getvalue()}"
    assert not code or "error: " in expected, printed
    outputs = [text.getvalue() for text in (stdout, stderr)]
    matches = partial(OutputChecker().check_output, f"{expected}\n", optionflags=doctest.ELLIPSIS)
    assert not expected or any(matches(f"{output.strip()}\n") for output in outputs), f"{printed}\nnot\n{expected}"


@contextmanager
def as_in_a_process() -> Iterator[None]:
    """Shorten the work of a command, and restore the handlers of signals and the search path of modules after it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "path", list(sys.path)))
        stack.enter_context(mock.patch("jet_hf.training.dry_run.MEASURABLE_FLOPS", 0))
        for name in COMMANDS:
            module = import_module(f"jet_hf.commands.{name}")
            stack.enter_context(mock.patch.object(module, "run", partial(run_smaller, module.run)))
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def run_line(text: str) -> int:
    """Run a line of commands joined by `&&`, each with variables before it and with redirections; return the code."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words, code = list(lexer), 0
    while words and not code:
        end = words.index("&&") if "&&" in words else len(words)
        code, words = run_command(words[:end]), words[end + 1 :]
    return code


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and restore all, also if `datasets` replaces `os.environ` by a copy meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_command(words: list[str]) -> int:
    variables = {}
    while match := re.fullmatch(r"([A-Z_]+)=(.*)", words[0], re.DOTALL):
        variables[match[1]], words = match[2], words[1:]
    with ExitStack() as stack:
        stack.enter_context(environment(variables))
        if ">" in words:
            file = stack.enter_context(open(words[words.index(">") + 1], "w"))
            stack.enter_context(redirect_stdout(file))
            words = words[: words.index(">")]
        for word in words:
            assert not re.fullmatch(r"[();<>|&]+", word), f"`{word}` is not supported in a command"
        assert words[0] in RUNNERS, f"{words[0]} is not a command that can run here; mark the block as not run"
        try:
            return RUNNERS[words[0]](words[1:]) or 0
        except SystemExit as stop:
            if isinstance(stop.code, str):  # Python prints the message and exits with 1
                print(stop.code, file=sys.stderr)
                return 1
            return stop.code or 0


def run_python(words: list[str]) -> None:
    """Run `python -c CODE`, `python -m MODULE …` or `python SCRIPT …`."""
    if words[0] == "-c":
        return exec(words[1], {"__name__": "__main__"})
    is_module = words[0] == "-m"
    program, *arguments = words[1:] if is_module else words
    if program == "scripts/launch.py":
        return run_launcher(["launch", *arguments])
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", [program, *arguments]))
        if program in LONG:
            stack.enter_context(mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop))
        for name, stand_in in STAND_INS.get(program, {}).items():
            stack.enter_context(mock.patch(name, stand_in))
        if is_module:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program, run_name="__main__")


def run_launcher(words: list[str]) -> None:
    """Check `accelerate launch` by its own parser and configuration file, and run the script as a single process."""
    assert words[0] == "launch", f"accelerate {words[0]} cannot run here; mark the block as not run"
    arguments = launch.launch_command_parser().parse_args(words[1:])
    launch._validate_launch_command(arguments)
    module = ["-m"] if arguments.module else []
    run_python([*module, arguments.training_script, *arguments.training_script_args])


def check_install(words: list[str]) -> None:
    """Check the extras and files of `pip install`, and install nothing."""
    parser = argparse.ArgumentParser("pip")
    parser.add_argument("command", choices=["install"])
    parser.add_argument("-c", "--constraint", type=Path)
    for flag in (["-e", "--editable"], ["--no-deps"], ["-U", "--upgrade"], ["-q", "--quiet"]):
        parser.add_argument(*flag, action="store_true")
    parser.add_argument("packages", nargs="+")
    arguments = parser.parse_args(words)
    assert arguments.constraint is None or arguments.constraint.exists(), f"{arguments.constraint} must exist"
    for package in arguments.packages:
        requirement = Requirement(re.sub(r"^\.", "jet_hf", package))
        if requirement.name.replace("-", "_") == "jet_hf":
            assert requirement.extras <= EXTRAS.keys(), f"{package} must have extras of pyproject.toml"


def run_process(name: str, words: list[str]) -> int:
    done = subprocess.run([name, *words], capture_output=True, text=True)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


STATEMENTS = DocTestStringParser(DocTestEvaluator(doctest.ELLIPSIS))
EVALUATORS = {"python": PythonEvaluator(), "console": evaluate_console, "yaml": evaluate_yaml}
RUNNERS = {
    "accelerate": run_launcher,
    "jet-hf": jet_hf_cli.main,
    "make": lambda words: run_process("make", ["--dry-run", *words]),
    "pip": check_install,
    "python": run_python,
    **{name: partial(run_process, name) for name in ("cat", "head", "ls", "mkdir")},
}


# Short work

# File in the models of `doc_workplace`: a page that trains one itself replaces it.
GIVEN = ".given"

# Largest values of arguments.
LIMITS = {
    **{"num_coupling_layers": 2, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"train_batch_size": 8, "gradient_accumulation_steps": 2, "logging_steps": 1, "num_samples": 4},
    **{"save_steps": 2, "eval_steps": 2, "sample_steps": 2},
    **{"preprocessing_num_workers": 1, "dataloader_num_workers": 0, "num_proc": 1, "num_shards": 2},
    **{"samples": 16, "num_noise_samples": 2, "random_crops_per_image": 8, "max_images": 16},
}
# Folders that stand for datasets of the Hub.
ON_THE_HUB = {"uoft-cs/cifar10": "data/cifar10", "ILSVRC/imagenet-1k": "photos"}
# Programs that take minutes, or write more than the small data of `doc_workplace`; other tests call their functions.
LONG = {
    *("examples.anomaly_table", "examples.autoregressive_latents", "examples.denoise_and_inpaint"),
    *("examples.digits", "examples.photographs"),
    *("examples.noise_grid", "examples.odd_products", "examples.per_sample_gradients", "examples.reduced_precision"),
    *("examples.restoration", "examples.variational_inference"),
}


class OnlyParsed(BaseException):
    """The arguments of a command were parsed, and it ended before its work."""


def run_smaller(run: Callable, arguments) -> None:
    run(smaller(arguments))


def smaller(arguments):
    """Return the arguments of a `jet-hf` command with little work and with the data of `doc_workplace`."""
    values = {item.name: getattr(arguments, item.name) for item in dataclasses.fields(arguments)}
    if values.get("dry_run"):
        return arguments
    changes = {name: limit for name, limit in LIMITS.items() if (values.get(name) or 0) > limit}
    if values.get("dataset_release") is not None:
        assert values["dataset_release"] in RELEASES
        changes["dataset_release"] = None  # it tells the number of images
    for name in ("dataset", "dataset_name"):
        if values.get(name) in ON_THE_HUB:
            changes |= {"dataset_config": None, "image_column": None, "label_column": None, name: None}
            changes["dataset_path" if name == "dataset_name" else name] = ON_THE_HUB[values[name]]
    if isinstance(arguments, TrainArguments):
        changes |= {"max_steps": 4 if arguments.extend else 2, "torch_compile": False}
        if arguments.model_name_or_path is None:
            changes |= {name: LIMITS[name] for name in ("num_coupling_layers", "hidden_size", "num_attention_heads")}
        resume, given = arguments.resume_from_checkpoint, Path(arguments.output_dir, GIVEN)
        if resume is None and given.exists():
            shutil.rmtree(given.parent)
        if resume not in (None, "latest"):  # the short run has no checkpoint of this step
            assert re.fullmatch(r"checkpoint-\d+", Path(resume).name), resume
            changes["resume_from_checkpoint"] = str(list_checkpoints(Path(resume).parent)[0])
    return dataclasses.replace(arguments, **changes)


def parse_and_stop(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> None:
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    raise OnlyParsed


def stop(*arguments) -> None:
    """Stand for a function whose work takes minutes."""
    raise OnlyParsed


def list_runs(arguments, command: str) -> int:
    """Stand for `run_sweep`: read the table or the grid and check all of its runs, but start none."""
    dry_run = not arguments.print_commands
    return RUN_SWEEP(dataclasses.replace(arguments, dry_run=dry_run), command)


# Functions that other ones stand for in a script.
STAND_INS: dict[str, dict[str, Callable]] = {
    "scripts/benchmark.py": {
        "benchmarks.run.run_benchmark": stop,
        "benchmarks.arguments.torch.cuda.is_available": lambda: True,
    },
    "scripts/demo.py": {"examples.demo.run_demo": stop},
    "scripts/sweep.py": {"reproduction.sweep.run_sweep": list_runs},
}
