"""SIGINT and SIGTERM at every stage of a run, under every launcher, with slow saves. Real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest
from hub_server import HubServer
from safetensors.torch import load_file
from test_transformers import assert_same_tensors
from train_process import (
    TrainProcess,
    environment,
    free_port,
    launch_command,
    like_a_process,
    rows,
    slow_saves,
    train_here,
    write_images,
)

from jet_hf.training.launcher import Launcher, find_launcher, killable_join


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("stopping")
    with like_a_process(root):
        yield root


@pytest.fixture(scope="module")
def fields(root):
    """A run without end, in which only a signal makes a checkpoint."""
    images = write_images(root / "images")
    return {"dataset_path": images, "max_steps": 10_000, "save_steps": 0, "eval_steps": 0, "sample_steps": 0}


def saved_steps(folder) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def assert_stopped(process: TrainProcess, reason: str) -> int:
    """One line says that a checkpoint was saved, the checkpoint is there, and no process is left; return its step."""
    process.wait_for_all()
    (step,) = saved_steps(process.folder)
    assert process.output.count(f"stopped by {reason} after step {step}; checkpoint-{step} is saved") == 1
    assert not list(process.folder.glob(".*"))
    return step


# Takes as long to save as no launcher waits that forwards the signal, and counts the signals that it gets.
SAVES_FOR_LONG = """
import pathlib, signal, sys, time

received = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
pathlib.Path(sys.argv[1]).open("a").write("ready\\n")
while not received:
    time.sleep(0.05)
time.sleep(2)
print("saved after", *received, flush=True)
"""


@pytest.mark.parametrize(("num_processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_the_launcher_of_this_project_ends_in_order_without_a_traceback(tmp_path, num_processes, number):
    """Its processes need no torch for that. Those of a run are stopped below."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SAVES_FOR_LONG)
    log.touch()
    variables = {"ACCELERATE_USE_CPU": "true"}
    if num_processes == 2:
        variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "1"
    process = subprocess.Popen(
        [*launch_command(num_processes, "jet"), str(script), str(log)],
        env=environment(tmp_path, **variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    wait_for(lambda: log.read_text().count("ready") == num_processes)
    (launcher,) = psutil.Process(process.pid).children()
    if num_processes == 1:
        assert launcher.environ()["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "3600", "a scheduler may signal it as well"
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in output
    assert output.splitlines().count(f"saved after {number.name}") == num_processes, output


def test_a_run_ends_in_order_when_its_launcher_was_ended_alone(root, fields):
    variables = {"TORCHELASTIC_RUN_ID": "none"}
    process = TrainProcess(root, launcher="parent", variables=variables, **fields, output_dir=root / "orphan")
    process.wait_until(process.logged(3)).process.terminate()
    process.process.wait()
    assert_stopped(process, "the end of its launcher")


def test_a_process_knows_its_launcher_by_its_name_or_by_a_variable(monkeypatch):
    command = [sys.executable, "-c", "print(flush=True); input()", "accelerate.commands.launch"]
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()  # its command line may not be there before
        monkeypatch.setattr(os, "getppid", lambda: parent.pid)
        assert find_launcher() == Launcher(parent.pid, None)
        monkeypatch.setattr(os, "getppid", os.getpid)  # pytest is no launcher
        assert find_launcher() is None
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "7")
        assert find_launcher() == Launcher(os.getpid(), 7.0)
        parent.communicate(b"\n")


def test_the_launcher_of_this_project_ends_with_one_line_before_it_has_started_others(root, fields):
    process = TrainProcess(root, 2, "jet", **fields, output_dir=root / "early")
    process.wait_until(lambda: psutil.Process(process.process.pid).children())
    process.process.terminate()
    assert process.wait(code=143) == "stopped by SIGTERM before the training processes started.\n"
    process.wait_for_all()


def test_a_process_that_waits_for_others_to_join_ends_with_its_launcher(root, fields, monkeypatch):
    port = free_port()
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    process = TrainProcess(root, launcher="parent", variables=variables, **fields, output_dir=root / "joining")
    wait_for(lambda: is_listening(port))
    process.process.terminate()
    process.process.wait()
    wait_for(lambda: not is_listening(port))
    process.wait_for_all()
    assert not (root / "joining").exists()

    # A process that finds its launcher gone does not wait at all.
    for name, value in (variables | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match="the launcher of this process has ended"):  # noqa: SIM117
        with killable_join(Launcher(os.getppid(), None)):
            pass


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def is_listening(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def catches_sigterm(process: psutil.Process) -> bool:
    """Whether a process has installed a handler of its own for SIGTERM."""
    with open(f"/proc/{process.pid}/status") as status:
        caught = next(line for line in status if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(("stage", "number"), [("imports", signal.SIGINT), ("preparation", signal.SIGTERM)])
def test_a_signal_before_the_first_step_ends_with_one_line(root, fields, stage, number):
    folder = root / stage
    process = TrainProcess(root, imports=stage == "imports", **fields, output_dir=folder)
    stages = {"imports": lambda: catches_sigterm(process.process), "preparation": (folder / ".lock").exists}
    output = process.when(stages[stage], number).wait(code=128 + number)
    assert output.count(f"stopped by {number.name}") == 1 and "Traceback" not in output
    assert not folder.exists() and not process.running()


def test_a_second_ctrl_c_ends_at_once_and_leaves_no_checkpoint_that_counts(root, fields):
    folder = root / "impatient"
    process = TrainProcess(root, variables=slow_saves(root / "slow", 600), **fields, output_dir=folder)
    process.when(process.logged(3), signal.SIGINT)
    process.wait_until(lambda: "saving checkpoint" in process.output and list(folder.glob(".checkpoint-*.draft")))
    time.sleep(2.5)  # a signal that comes sooner is the same Ctrl-C, forwarded by a launcher
    output = process.when(lambda: True, signal.SIGINT).wait(code=130)
    assert "Traceback" not in output and "stopped by SIGINT: the last checkpoint is none." in output
    assert not saved_steps(folder) and list(folder.glob(".checkpoint-*")), "only a hidden draft"
    process = TrainProcess(root, **fields, output_dir=folder, resume_from_checkpoint="latest")
    process.when(process.logged(5), signal.SIGTERM).wait()
    assert "has no complete checkpoint yet" in process.output
    assert_stopped(process, "SIGTERM")


def test_a_save_that_outlasts_the_launchers_patience_is_warned_of_and_leaves_only_whole_checkpoints(root, fields):
    """torch's launcher kills its workers some seconds after SIGTERM. They resume under accelerate's, until Ctrl-C."""
    folder = root / "killed"
    variables = slow_saves(root / "slow", 2.5)
    options = fields | {"save_steps": 3, "save_total_limit": 5, "output_dir": folder}
    patience = {"TORCHELASTIC_RUN_ID": "none", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}
    process = TrainProcess(root, 2, variables=variables | patience, **options)
    process.wait_until(lambda: 3 in saved_steps(folder))
    process.when(lambda: list(folder.glob(".checkpoint-6.draft")), signal.SIGTERM)
    time.sleep(1)
    process.kill_all()
    assert "the launcher kills its processes 1 seconds after SIGTERM" in process.output
    assert "set TORCH_ELASTIC_SHUTDOWN_TIMEOUT to more than" in process.output
    assert saved_steps(folder) == [3]
    (folder / "checkpoint-5").mkdir()
    process = TrainProcess(root, 2, "accelerate", variables=variables, **options, resume_from_checkpoint="latest")
    process.wait_until(lambda: "after 3 of 10000 steps" in process.output)
    # The exit code and the traceback of the launcher itself cannot be avoided.
    process.when(lambda: list(folder.glob(".checkpoint-6.draft")), signal.SIGINT).wait(code=1)
    assert "train.py" not in process.output.partition("Traceback")[2], "the traceback must be the launcher's alone"
    assert "took over the lock of" in process.output, "the lock was left behind"
    assert process.output.count("skipping a checkpoint") == 1, "one process verifies the checkpoints for all"
    assert process.output.count("stopped by SIGINT after step 7; checkpoint-7 is saved") == 1
    assert saved_steps(folder) == [3, 5, 6, 7] and not process.running()
    assert json.loads((folder / "checkpoint-7" / "checkpoint.json").read_text())["num_processes"] == 2


def test_a_signal_while_the_finished_model_is_pushed_ends_with_one_line(root, fields):
    folder = root / "pushing"
    with HubServer() as hub:
        hub.fail("commit", times=100, status=503)
        few_steps = fields | {"max_steps": 2, "push_to_hub": True, "hub_model_id": "tiny", "output_dir": folder}
        process = TrainProcess(root, variables=hub.environment(token="writer"), **few_steps)
        process.when(lambda: "wrote the finished model" in process.output, signal.SIGTERM)
        output = process.wait(code=143)
    assert f"stopped by SIGTERM: the finished model in {folder} was not pushed." in output
    assert "Traceback" not in output and (folder / "config.json").exists()


def test_a_stopped_run_resumes_bit_for_bit_with_the_evaluations_that_the_stop_left_out(root, fields):
    folder = root / "evaluated"
    options = fields | {"max_steps": 8, "eval_steps": 1, "sample_steps": 1, "use_ema": True, "ema_decay": 0.9}
    # The signal goes to the workers as well, which the run needs until it has saved.
    process = TrainProcess(root, **options, output_dir=folder, dataloader_num_workers=1)
    process.when(process.logged(3), signal.SIGINT).wait(code=0)
    stopped = assert_stopped(process, "SIGINT")
    assert "Traceback" not in process.output and not (folder / "model.safetensors").exists()
    assert rows(folder)[-1]["step"] == stopped
    evaluated = [row["step"] for row in rows(folder, "evaluations.jsonl")]
    assert evaluated == list(range(stopped)), "the checkpoint comes first"
    train_here(**options, output_dir=folder, dataloader_num_workers=1, resume_from_checkpoint="latest")
    for name in ("samples", "reconstructions"):
        assert len(list((folder / "samples").glob(f"{name}-*.png"))) == 9
    train_here(**options, output_dir=root / "straight")
    assert rows(folder, "evaluations.jsonl") == rows(root / "straight", "evaluations.jsonl")
    assert_same_tensors(*(load_file(path / "model.safetensors") for path in (folder, root / "straight")))


def test_a_run_in_another_thread_leaves_signals_alone(root, fields):
    results = []
    few_steps = fields | {"max_steps": 1, "output_dir": root / "thread"}
    thread = threading.Thread(target=lambda: results.append(train_here(**few_steps)))
    thread.start()
    thread.join()
    assert results[0].finished
