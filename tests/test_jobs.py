"""The scripts of recipes/ for two machines and for Hugging Face Jobs, read by the real parsers and run together."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
from accelerate.commands import launch
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from conftest import ROOT
from train_process import environment, flags, like_a_process, rows, train_here, write_images

from jet_hf.training import parse_arguments
from jet_hf.training.setup import make_accelerator


RECIPES = ROOT / "recipes"


def start(script: str, *words: object, programs: str = "", **variables: str) -> subprocess.Popen:
    """Start a script of recipes/, which finds its programs in a folder of this test or beside this Python."""
    path = os.pathsep.join(filter(None, (programs, os.path.dirname(sys.executable), os.environ["PATH"])))
    return subprocess.Popen(
        ["bash", str(RECIPES / script), *map(str, words)],
        cwd=ROOT,
        env=os.environ | variables | {"PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_two_machines_train_one_run_with_the_batches_of_one(tmp_path):
    fields = {"dataset_path": write_images(tmp_path / "images"), "max_steps": 4, "save_steps": 0, "sample_steps": 0}
    words = flags(**fields, output_dir=tmp_path / "two", mixed_precision="no")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    variables = {"MAIN_IP": "127.0.0.1", "MAIN_PORT": port, "NUM_PROCESSES": "2", "ACCELERATE_USE_CPU": "true"}
    machines = [start("two_machines.sh", rank, *words, **environment(tmp_path, **variables)) for rank in range(2)]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "broadcast_buffers" not in "".join(outputs)
    with like_a_process(tmp_path):
        train_here(**fields, output_dir=tmp_path / "one")
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        for name in ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-5)
    manifest = json.loads((tmp_path / "two" / "checkpoint-4" / "checkpoint.json").read_text())
    assert manifest["num_processes"] == 2


def test_a_job_of_the_hub_resumes_a_run_in_a_bucket(tmp_path):
    """The command line of `hf jobs run` is read by itself: with `--dry-run`, it prints the job and submits nothing."""
    program = tmp_path / "hf"
    hf = shutil.which("hf", path=os.path.dirname(sys.executable))
    program.write_text(f'#!/bin/bash\nexec {hf} jobs run --dry-run "${{@:3}}"\n')
    program.chmod(0o755)
    words = ["--config", "recipes/cifar10.yaml", "--output_dir", "/runs/cifar10", "--max_steps", "9"]
    variables = {"REPOSITORY": "https://github.com/NAME/jet_hf", "BUCKET": "NAME/jet", "HF_TOKEN": "hf_none"}
    output, _ = start("hf_jobs.sh", *words, programs=str(tmp_path), **variables).communicate(timeout=120)
    job = dict(re.findall(r"^ +(\w+) +(.+)$", output, re.MULTILINE))
    assert (job["image"], job["flavor"], job["timeout"], job["attempts"]) == ("python:3.12", "a10g-large", "12h", "3")
    assert (job["volumes"], job["secrets"]) == ("hf://buckets/NAME/jet:/runs", "HF_TOKEN=***")
    shell, option, script, *arguments = shlex.split(job["command"])
    assert (shell, option, arguments[0]) == ("bash", "-c", variables["REPOSITORY"])
    assert parse_arguments(arguments[1:]).max_steps == 9 and arguments[-2:] == ["--resume_from_checkpoint", "latest"]
    assert_launches(script.rpartition("exec ")[2].replace('"$@"', shlex.join(arguments[1:])), arguments[1:])


def assert_launches(command: str, training_arguments: list[str]) -> None:
    """Read a command of a job with the parser of the launcher, from which the training gets these arguments."""
    program, launcher, *rest = shlex.split(command)
    assert (program, launcher) == ("python", "scripts/launch.py")
    parsed = launch.launch_command_parser().parse_args(rest)
    assert parsed.training_script == "scripts/train.py" and parsed.training_script_args == training_arguments
    assert (ROOT / parsed.config_file).is_file()


def test_a_sweep_on_jobs_of_the_hub_has_a_job_for_each_run(tmp_path):
    program = tmp_path / "hf"
    program.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"; echo\n")
    program.chmod(0o755)
    grid = tmp_path / "rates.yaml"
    grid.write_text("config: recipes/cifar10.yaml\nseeds: [0]\ngrid: {learning_rate: [0.001, 0.002]}\n")
    variables = {"REPOSITORY": "https://github.com/NAME/jet_hf", "BUCKET": "NAME/jet"}
    process = start("hf_jobs.sh", "sweep", "--grid", grid, programs=str(tmp_path), **variables)
    jobs = [line.split("\0")[:-1] for line in process.communicate(timeout=300)[0].splitlines()]
    assert process.returncode == 0 and len(jobs) == 2
    for rate, job in zip((0.001, 0.002), jobs, strict=True):
        assert job[:2] == ["jobs", "run"] and job[-1] == variables["REPOSITORY"]
        command = job[-2].rpartition("exec ")[2]
        words = shlex.split(command)
        training_arguments = words[words.index("scripts/train.py") + 1 :]
        assert_launches(command, training_arguments)
        arguments = parse_arguments(training_arguments)
        assert (arguments.learning_rate, arguments.resume_from_checkpoint) == (rate, "latest")
        assert arguments.output_dir.startswith("/runs/sweep/rates/") and arguments.dataset_name == "uoft-cs/cifar10"
    wrong = start("hf_jobs.sh", "sweep", "--grid", grid, "--seed", "0", programs=str(tmp_path), **variables)
    output = wrong.communicate(timeout=300)[0]
    assert wrong.returncode == 1 and "--seed" in output and "jobs" not in output


def test_a_launcher_that_starts_one_process_instead_of_several_is_reported(monkeypatch, caplog):
    """`accelerate launch --cpu --num_processes 2` starts one."""

    def reported(*words: str) -> bool:
        caplog.clear()
        command = launch.launch_command_parser().parse_args([*words, "script.py"])
        with monkeypatch.context() as patch:
            for name, value in prepare_simple_launcher_cmd_env(launch._validate_launch_command(command)[0])[1].items():
                patch.setenv(name, value)
            make_accelerator(parse_arguments([]))
        return "was asked for several processes, but has started one" in caplog.text

    assert reported("--cpu", "--num_processes", "2")
    assert not reported("--cpu", "--num_processes", "1")
