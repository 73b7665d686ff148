"""The scripts of recipes/ for two machines and for Hugging Face Jobs, read by the real parsers and run together."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from accelerate.commands import launch
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from conftest import ROOT
from script_runner import run_script
from train_process import ForkedScript, flags, free_port, like_a_process, rows, train_here, wait_for, write_images

from jet_hf.training import parse_arguments
from jet_hf.training.setup import make_accelerator


RECIPES = ROOT / "recipes"
RESUMING = ["--resume_from_checkpoint", "latest"]


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


def write_program(path: Path, commands: str) -> Path:
    path.write_text(f"#!/bin/bash\n{commands}\n")
    path.chmod(0o755)
    return path


# Stands for scripts/train.py under a launcher: tells its environment variables, and waits for the run that gets them.
STAND_IN = """
import json, os, pathlib, sys, time

path = pathlib.Path(sys.argv[1], os.environ["RANK"])
path.with_suffix(".draft").write_text(json.dumps(dict(os.environ)))
path.with_suffix(".draft").rename(path)
while not path.with_suffix(".done").exists():
    time.sleep(0.05)
"""


def test_two_machines_train_one_run_with_the_batches_of_one(tmp_path):
    """The launchers and the training processes are forked, which saves their imports."""
    write_program(tmp_path / "python", "printf '%s\\n' \"$@\"")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    fields = {"dataset_path": write_images(tmp_path / "images"), "max_steps": 4, "save_steps": 0, "sample_steps": 0}
    words = flags(**fields, output_dir=tmp_path / "two", mixed_precision="no")
    variables = {"MAIN_IP": "127.0.0.1", "MAIN_PORT": str(free_port()), "NUM_PROCESSES": "2"}
    log, processes = tmp_path / "log.txt", []
    for rank in range(2):
        machine = start("two_machines.sh", rank, *words, programs=str(tmp_path), **variables)
        program, *launched = machine.communicate(timeout=60)[0].splitlines()
        script = launched.index("scripts/train.py")
        assert program == "scripts/launch.py" and launched[script + 1 :] == [*words, *RESUMING]
        arguments = [launch.__file__, *launched[:script], str(tmp_path / "stand_in.py"), str(tmp_path)]
        processes.append(ForkedScript(arguments, tmp_path, log, log, {"ACCELERATE_USE_CPU": "true"}))
    ranks = [tmp_path / str(rank) for rank in range(2)]
    wait_for(lambda: all(rank.exists() for rank in ranks))
    arguments = [str(ROOT / "scripts" / "train.py"), *words, *RESUMING]
    trainings = [ForkedScript(arguments, tmp_path, log, log, json.loads(rank.read_text())) for rank in ranks]
    assert [training.wait(timeout=300) for training in trainings] == [0, 0], log.read_text()
    for rank in ranks:
        rank.with_suffix(".done").touch()
    assert [process.wait(timeout=300) for process in processes] == [0, 0], log.read_text()
    assert "broadcast_buffers" not in log.read_text()
    with like_a_process(tmp_path):
        train_here(**fields, output_dir=tmp_path / "one")
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        for name in ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-5)
    manifest = json.loads((tmp_path / "two" / "checkpoint-4" / "checkpoint.json").read_text())
    assert manifest["num_processes"] == 2


def test_a_job_of_the_hub_resumes_a_run_in_a_bucket(tmp_path):
    """The command line of `hf jobs run` is read by itself: with `--dry-run`, it prints the job and submits nothing."""
    hf = shutil.which("hf", path=os.path.dirname(sys.executable))
    write_program(tmp_path / "hf", f'exec {hf} jobs run --dry-run "${{@:3}}"')
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


def test_a_sweep_on_jobs_of_the_hub_has_a_job_for_each_run(tmp_path, capsys):
    """Its commands are those of this process, which saves the imports."""
    write_program(tmp_path / "hf", "printf '%s\\0' \"$@\"; echo")
    grid = tmp_path / "rates.yaml"
    grid.write_text("config: recipes/cifar10.yaml\nseeds: [0]\ngrid: {learning_rate: [0.001, 0.002]}\n")
    variables = {"REPOSITORY": "https://github.com/NAME/jet_hf", "BUCKET": "NAME/jet"}
    words = ["--grid", str(grid), "--output_dir", "/runs/sweep"]
    words += ["--accelerate_config", "recipes/accelerate/single_gpu.yaml", "--print_commands"]
    with chdir(ROOT):
        assert run_script("sweep.py", *words) == 0
    (tmp_path / "commands").write_text(capsys.readouterr().out)
    (tmp_path / "python").mkdir()
    program = f"printf '%s\\n' \"$@\" > {tmp_path}/words; cat {tmp_path}/commands"
    programs = os.pathsep.join([str(write_program(tmp_path / "python" / "python", program).parent), str(tmp_path)])
    process = start("hf_jobs.sh", "sweep", "--grid", grid, programs=programs, **variables)
    jobs = [line.split("\0")[:-1] for line in process.communicate(timeout=60)[0].splitlines()]
    assert process.returncode == 0 and len(jobs) == 2
    assert (tmp_path / "words").read_text().splitlines() == ["scripts/sweep.py", *words]
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
