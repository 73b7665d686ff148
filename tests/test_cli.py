"""The commands: help without torch, usage errors, expected errors, signals, and the work behind each command."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, tiny_model
from PIL import Image

import jet_hf_cli
from jet_hf import JetConfig, JetImageProcessor, __version__
from jet_hf.cli import COMMANDS
from jet_hf.commands import evaluate, sample
from jet_hf.utils.console import console


SCRIPTS = {
    "train": "train",
    "evaluate": "evaluate",
    "sample": "sample",
    "average": "average",
    "convert": "convert_checkpoint",
    "prepare": "prepare_imagenet",
    "compress": "compress",
    "decompress": "decompress",
    "weigh": "weigh",
    "anomaly": "anomaly",
}
BIG_VISION = FIXTURES / "context_16px.npz"
JET_PYTORCH = FIXTURES / "jet_pytorch_16px.safetensors"


@pytest.fixture(autouse=True)
def signals_as_they_were():
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture
def run(capsys):
    """Run a command in this process; return its exit code, its stdout and its stderr."""

    def call(*words) -> tuple[int, str, str]:
        code, message = 0, ""
        try:
            jet_hf_cli.main([str(word) for word in words])
        except SystemExit as stop:
            # The interpreter prints a message to stderr and ends with code 1.
            code, message = (1, f"{stop.code}\n") if isinstance(stop.code, str) else (stop.code or 0, "")
        stdout, stderr = capsys.readouterr()
        return code, stdout, stderr + message

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model with its processor, and two images."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model()
    model.save_pretrained(folder)
    JetImageProcessor(size=model.config.image_size).save_pretrained(folder)
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


# Help and usage errors


ALL_HELP = f"""
import runpy, sys
import jet_hf_cli

def show(run, *arguments):
    try:
        run(*arguments)
    except SystemExit as stop:
        assert not stop.code, stop.code
    print("=" * 9)

for words in ([], ["--version"], *([name, "--help"] for name in {list(SCRIPTS)})):
    show(jet_hf_cli.main, words)
for name in {list(SCRIPTS.values())}:
    sys.argv = [name + ".py", "--help"]
    show(lambda: runpy.run_path("scripts/" + name + ".py", run_name="__main__"))
"""


@pytest.fixture
def without_torch(tmp_path):
    """Variables of a process in which nothing can import torch or transformers."""
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('imported')")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "110"}


def test_every_help_answers_without_torch(without_torch):
    options = {"env": without_torch, "cwd": ROOT, "text": True}
    shown = subprocess.check_output([sys.executable, "-c", ALL_HELP], **options).split("=" * 9 + "\n")
    overview, version, *commands = shown[: len(SCRIPTS) + 2]
    assert version == f"jet-hf {__version__}\n"
    for (name, arguments), text in zip(COMMANDS.items(), commands, strict=True):
        assert f"usage: jet-hf {name} " in text and "None)" not in text
        first_line = text.splitlines()[2]
        assert re.search(rf"^  {name} +{re.escape(first_line)}$", overview, re.MULTILINE), name
        for field in arguments.__dataclass_fields__.values():
            flag = field.name if field.metadata.get("positional") else f"--{field.name}"
            assert f"\n  {flag}" in text and field.metadata["help"] in " ".join(text.split()), flag
    assert shown[len(SCRIPTS) + 2 : -1] == commands, "the scripts are the same commands"
    assert subprocess.check_output([sys.executable, "-m", "jet_hf.train", "--help"], **options) == commands[0]


def test_help_of_training_reads_like_documentation(run):
    code, text, _ = run("train", "--help")
    words = " ".join(text.split())
    assert code == 0 and "accelerate launch -m jet_hf.train" in text and "train[:98%]; 'all'" in words
    assert "--learning_rate FLOAT Peak learning rate of Adam. (default: 0.0003)" in words
    size = "--image_size INT [INT ...] Side S of square images, or height and width, in pixels. (default: 64)"
    assert size in words
    assert "--no_center_crop The same as --center_crop false." in words
    for heading in ("model:", "data:", "optimization:", "run:", "sharing:"):
        assert f"\n{heading}\n" in text


def test_usage_errors_are_one_line_with_the_nearest_name(run, monkeypatch):
    for words, message in (
        ("smaple", "unknown command smaple, did you mean sample? (see jet-hf --help)"),
        ("xyz", "unknown command xyz, expected one of train, evaluate, sample, average, convert, prepare"),
        ("sample --modle x", "unknown flag --modle, did you mean --model? (see jet-hf sample --help)"),
        (
            "evaluate --model x --num-noise-sample=3",
            "unknown flag --num_noise_sample, did you mean --num_noise_samples?",
        ),
        ("train --max_step 3", "unknown flag --max_step, did you mean --max_steps?"),
        ("train --conf x", "unknown flag --conf, did you mean --config?"),
        ("sample --model x --zzz", "unknown flag --zzz (see jet-hf sample --help)"),
        ("sample --model x y", "unknown argument y (see jet-hf sample --help)"),
        ("sample", "--model is required (see jet-hf sample --help)"),
        ("sample --model x --label one", "argument --label: invalid int value: 'one'"),
        ("prepare --output_dir x --streaming perhaps", "argument --streaming: expected true or false, got 'perhaps'"),
        ("average", "the following arguments are required: models"),
        ("average a b", "--output_dir is required (see jet-hf average --help)"),
        ("convert tarflow a b", "argument source: invalid choice: 'tarflow'"),
        ("convert big_vision a", "the following arguments are required: output_dir"),
        ("convert big_vision a b --coupling-kinds chanels", "argument --coupling_kinds: invalid choice: 'chanels'"),
    ):
        code, stdout, stderr = run(*words.split())
        assert (code, stdout) == (2, "") and stderr.startswith("error: ") and message in stderr, words
        assert stderr.count("\n") == 1, words
    monkeypatch.setenv("RANK", "1")
    assert run("sample") == (2, "", ""), "only the first process of a launcher prints"


# Expected errors


def test_numbers_out_of_bounds_are_refused_by_name(run):
    sample = {"num_images": 1, "seed": 0, "batch_size": 1, "columns": 1, "temperature": 0}
    evaluate = {"batch_size": 1, "num_noise_samples": 1, "max_images": 1, "random_crops_per_image": 1, "seed": 0}
    prepare = {"image_size": 1, "num_shards": 1, "num_proc": 1}
    for words, limits in (
        (["sample", "--model=x"], sample),
        (["evaluate", "--model=x", "--dataset=y"], evaluate),
        (["prepare", "--output_dir=x"], prepare),
    ):
        for name, limit in limits.items():
            code, stdout, stderr = run(*words, f"--{name}={limit - 1}")
            assert (code, stdout) == (1, "") and stderr.count("\n") == 1
            assert re.match(rf"error: `{name}` must be (a whole number of )?at least {limit}, got", stderr), stderr


def test_contradictions_and_unwritable_outputs_are_refused_before_the_work(run, model, tmp_path, monkeypatch):
    for module in (sample, evaluate):
        monkeypatch.setattr(module, "JetForDensityEstimation", None)  # nothing loads a model
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "noise.png").write_bytes(b"not an image")
    first, second = model / "0.png", model / "1.png"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    before = sorted(tmp_path.rglob("*"))
    for words, message in (
        (["--reconstruct", first, "--interpolate", first, second], "`reconstruct` and `interpolate` exclude each"),
        (["--interpolate", first], "`interpolate` takes two images, got 1"),
        (["--reconstruct", tmp_path / "noise.png"], "noise.png"),
        (["--reconstruct", tmp_path / "none.png"], "none.png"),
        (["--reconstruct", first], f"{first}: Image size (64 pixels) exceeds limit of 40 pixels"),
        (["--output_dir", tmp_path / "full"], "already exists and is not an empty folder"),
        (["--output_dir", tmp_path / "noise.png" / "out"], "noise.png"),
    ):
        code, stdout, stderr = run("sample", "--model", model, "--output_dir", tmp_path / "out", *words)
        assert (code, stdout) == (1, "") and stderr.startswith("error: ") and message in stderr, words
        assert stderr.count("\n") == 1, words
    for words, message in (
        (
            ["--scores_file", tmp_path / "none" / "scores.json"],
            "`scores_file` must be a file in an existing, writable",
        ),
        (["--scores_file", tmp_path], "`scores_file` must be a file in an existing, writable folder"),
        (["--write_model_card"], "`write_model_card` needs a folder with a card, but there is no"),
    ):
        code, stdout, stderr = run("evaluate", "--model", model, "--dataset", model, *words)
        assert (code, stdout) == (1, "") and message in stderr and stderr.count("\n") == 1, words
    assert sorted(tmp_path.rglob("*")) == before


def test_messages_of_the_configuration_stand_alone(run, tmp_path):
    """Strict dataclasses put the name of their validator before them."""
    images = ROOT / "space" / "examples"
    words = ["--output_dir", tmp_path / "run", "--dataset_path", images, "--hidden_size", 15]
    code, _, stderr = run("train", *words)
    message = "`hidden_size` must be divisible by `num_attention_heads`, got hidden_size=15 and num_attention_heads=8"
    assert (code, stderr) == (1, f"error: {message}.\n")


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "jet_hf.commands.evaluate")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    code, _, stderr = run("evaluate", "--model=x", "--dataset=y")
    assert (code, stderr) == (1, "error: jet-hf evaluate needs the package accelerate, which is not installed.\n")


def test_every_process_of_a_launcher_names_its_error_and_its_rank(monkeypatch):
    for rank, prefix in (("0", ""), ("1", "[1] ")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop, console(KeyError):
            raise KeyError("a")
        assert stop.value.code == f"{prefix}error: 'a'"


# Signals


STUCK = """
import time
print("importing", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_imports_ends_with_one_line(without_torch, tmp_path, number):
    (tmp_path / "transformers.py").write_text(STUCK)
    for rank, expected in ("0", f"stopped by {number.name}.\n"), ("1", ""):
        process = subprocess.Popen(
            [sys.executable, "-m", "jet_hf.train", "--hidden_size", "16", "--output_dir", str(tmp_path / "run")],
            env=without_torch | {"RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert (process.communicate()[1], process.returncode) == (expected, 128 + number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_work_removes_unfinished_files(run, tmp_path, monkeypatch, number):
    def interrupted(arguments):
        assert [path.name.startswith(".draft.") for path in tmp_path.iterdir()] == [True]
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(sample, "make_images", interrupted)
    monkeypatch.setattr(os, "_exit", sys.exit)
    code, stdout, stderr = run("sample", "--model", "x", "--output_dir", tmp_path / "out")
    assert (code, stdout, stderr) == (128 + number, "", f"stopped by {number.name}.\n")
    assert not list(tmp_path.iterdir())


def test_console_restores_signals_and_keeps_ignored_ones(capsys):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as under nohup
    previous = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop, console():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN and signal.getsignal(signal.SIGINT) != previous
        raise KeyboardInterrupt
    assert stop.value.code == 130 and capsys.readouterr().err == "stopped by SIGINT.\n"
    assert signal.getsignal(signal.SIGINT) == previous


def test_a_forked_worker_ends_silently(without_torch):
    code = """
import os, signal
import jet_hf_cli
from jet_hf.utils.console import console
with console():
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    os.kill(worker, signal.SIGINT)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], env=without_torch, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("130\n", "")


# Work


def test_samples_reconstructions_and_interpolations_are_written_whole(run, model, tmp_path):
    folder, images = tmp_path / "samples", [model / "0.png", model / "1.png"]
    code, stdout, _ = run("sample", "--model", model, "--num-images", 3, "--columns", 2, "--output-dir", folder)
    assert (code, stdout) == (0, f"wrote 3 image(s) and grid.png to {folder}\n")
    assert {path.name for path in folder.iterdir()} == {"00000.png", "00001.png", "00002.png", "grid.png"}
    assert Image.open(folder / "grid.png").size == (18, 18)
    folder = tmp_path / "reconstructions"
    code, stdout, _ = run("sample", "--model", model, "--reconstruct", *images, "--output_dir", folder)
    assert code == 0 and "bytes equal: True" in stdout
    for i, path in enumerate(images):
        assert Image.open(folder / f"0000{i}.png").tobytes() == Image.open(path).tobytes()
    folder = tmp_path / ("é" * (os.pathconf(tmp_path, "PC_NAME_MAX") // 2))  # the longest name
    words = ["--model", model, "--interpolate", *images, "--num_images", 4, "--output_dir", folder]
    assert run("sample", *words)[0] == 0 and len(list(folder.glob("0*.png"))) == 4


def test_a_float16_model_is_sampled_as_it_is(run, tmp_path):
    tiny_model().half().save_pretrained(tmp_path / "model")
    JetImageProcessor(size=8).save_pretrained(tmp_path / "model")
    code, _, stderr = run("sample", "--model", tmp_path / "model", "--num_images", 2, "--output_dir", tmp_path / "out")
    assert code == 0 and len(list((tmp_path / "out").iterdir())) == 3, stderr


def test_an_average_is_written_whole_or_refused_in_one_line(run, model, tmp_path):
    code, stdout, _ = run("average", model, model, model, "--output-dir", tmp_path / "averaged")
    assert (code, stdout) == (0, f"wrote the average of 3 models to {tmp_path / 'averaged'}\n")
    assert run("sample", "--model", tmp_path / "averaged", "--output_dir", tmp_path / "samples")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    for models, output, message in (
        ([model, model], "averaged", "already exists and is not an empty folder"),
        ([model], "new", "`models` must name at least two folders, got 1"),
        ([model, tmp_path / "nothing"], "new", f"there is no {tmp_path}/nothing/config.json"),
    ):
        code, stdout, stderr = run("average", *models, "--output_dir", tmp_path / output)
        assert (code, stdout) == (1, "") and message in stderr and stderr.count("\n") == 1, models
    assert sorted(tmp_path.rglob("*")) == before


def test_a_conversion_passes_every_flag_on_and_refuses_in_one_line(run, tmp_path):
    flags = ["--num-channels", 12, "--scale_factor", 1.5, "--image-size", 8, "--num-attention-heads", 4]
    flags += ["--coupling-kinds", "channels", "spatial"]
    converted = run("convert", "big_vision", BIG_VISION, tmp_path / "model", *flags)
    assert converted[:2] == (0, f"wrote {tmp_path / 'model'}\n")
    config = JetConfig.from_pretrained(tmp_path / "model")
    assert (config.num_channels, config.patch_size, config.image_size, config.scale_factor) == (12, 2, 8, 1.5)
    (tmp_path / "half.npz").write_bytes(BIG_VISION.read_bytes()[: BIG_VISION.stat().st_size // 2])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for (source, checkpoint, *flags), folder, message in (
        (["big_vision", tmp_path / "none.npz"], "out", f"but {tmp_path / 'none.npz'} does not exist"),
        (["jet_pytorch", tmp_path], "out", f"`checkpoint` must be a file, but {tmp_path} is a folder"),
        (["big_vision", tmp_path / "half.npz"], "out", "half.npz"),
        (["jet_pytorch", JET_PYTORCH], "out", "num_attention_heads"),
        (["big_vision", BIG_VISION, "--image-size", "32"], "out", "image_size"),
        (["big_vision", BIG_VISION, "--num-channels", "5"], "out", "channels"),
        (["big_vision", BIG_VISION, "--scale-factor", "-1"], "out", "`scale_factor` must be a positive number"),
        (["big_vision", BIG_VISION], "mine", "already exists and is not an empty folder"),
    ):
        code, stdout, stderr = run("convert", source, checkpoint, tmp_path / folder, *flags)
        assert (code, stdout) == (1, "") and stderr.startswith("error: ") and message in stderr
        assert stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_preparation_and_evaluation_go_together(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data, scores = tmp_path / "data", tmp_path / "scores.json"
    code, stdout, stderr = run("prepare", "--dataset_path", model, "--image-size", 8, "--output_dir", data)
    assert code == 0 and "2 images of train in 2 shards, 0 of which already existed" in stdout, stderr
    words = ["--model", model, "--dataset", data, "--split", "train", "--scores_file", scores]
    code, stdout, stderr = run("evaluate", *words)
    assert code == 0, stderr
    result = json.loads(stdout)
    assert sum(json.loads(scores.read_text())["bits_per_dim"]) / 2 == pytest.approx(result["bits_per_dim"], abs=1e-4)
    assert result["num_images"] == 2 and f"bits_per_dim         {result['bits_per_dim']}" in stderr
