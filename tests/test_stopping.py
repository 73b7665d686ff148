"""SIGINT and SIGTERM at every stage of a run, under every launcher, with saves that take long. Real processes."""

import json
import signal
import threading
import time

import datasets
import psutil
import pytest
from hub_server import HubServer
from train_process import TINY, TrainProcess, run_to_end, slow_saves, write_images

from jet_hf.training import parse_arguments, train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="module")
def fields(root):
    """A run without end, which nothing but a signal makes save."""
    images = write_images(root / "images")
    return {"dataset_path": images, "max_steps": 10_000, "save_steps": 0, "eval_steps": 0, "sample_steps": 0}


def saved_steps(folder) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def assert_stopped(process: TrainProcess, reason: str) -> None:
    """One line says that a checkpoint was saved, the checkpoint is there, and no process is left."""
    process.wait_for_all()
    (step,) = saved_steps(process.folder)
    assert process.output.count(f"stopped by {reason} after step {step}, checkpoint-{step} is saved") == 1
    assert not list(process.folder.glob(".*"))


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_of_this_project_ends_in_order_without_a_traceback(root, fields, num_processes, number):
    folder = root / f"jet-{num_processes}-{number.name}"
    process = TrainProcess(root, num_processes, "jet", **fields, output_dir=folder)
    process.when(process.logged(3), number).wait(code=0)
    assert_stopped(process, number.name)
    assert "Traceback" not in process.output


@pytest.mark.parametrize("num_processes", [1, 2])
def test_ctrl_c_under_accelerate_saves_and_leaves_no_process(root, fields, num_processes):
    """The launcher's own traceback is not in our hands."""
    process = TrainProcess(
        root, num_processes, "accelerate", **fields, output_dir=root / f"accelerate-{num_processes}"
    )
    process.when(process.logged(3), signal.SIGINT).process.wait()
    assert_stopped(process, "SIGINT")
    assert "train.py" not in process.output.partition("Traceback")[2], "the traceback must be the launcher's alone"


def test_a_run_ends_in_order_when_its_launcher_was_ended_alone(root, fields):
    process = TrainProcess(root, 1, "accelerate", **fields, output_dir=root / "orphan")
    process.wait_until(process.logged(3)).process.terminate()
    process.process.wait()
    assert_stopped(process, "the end of its launcher")


def test_the_launcher_of_this_project_ends_with_one_line_before_it_has_started_others(root, fields):
    process = TrainProcess(root, 2, "jet", **fields, output_dir=root / "early")
    process.wait_until(lambda: psutil.Process(process.process.pid).children())
    process.process.terminate()
    assert process.wait(code=143) == "stopped by SIGTERM before the training processes started.\n"
    process.wait_for_all()


def catches_sigterm(process: psutil.Process) -> bool:
    """Whether a process has installed a handler of its own for SIGTERM."""
    with open(f"/proc/{process.pid}/status") as status:
        caught = next(line for line in status if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["imports", "preparation"])
def test_a_signal_before_the_first_step_ends_with_one_line(root, fields, stage, number):
    folder = root / f"{stage}-{number.name}"
    process = TrainProcess(root, **fields, output_dir=folder)
    stages = {"imports": lambda: catches_sigterm(process.process), "preparation": (folder / ".lock").exists}
    output = process.when(stages[stage], number).wait(code=128 + number)
    assert output.count(f"stopped by {number.name}") == 1 and "Traceback" not in output
    assert not folder.exists() and not process.running()


def test_a_second_ctrl_c_ends_at_once_and_leaves_no_checkpoint_that_counts(root, fields):
    folder = root / "impatient"
    process = TrainProcess(root, variables=slow_saves(root / "slow", 600), **fields, output_dir=folder)
    process.when(process.logged(3), signal.SIGINT)
    process.wait_until(lambda: "saving checkpoint" in process.output and list(folder.glob(".checkpoint-*.draft")))
    time.sleep(2.5)  # what comes sooner is the same Ctrl-C, forwarded by a launcher
    output = process.when(lambda: True, signal.SIGINT).wait(code=130)
    assert "Traceback" not in output and "the last one is none." in output
    assert not saved_steps(folder) and list(folder.glob(".checkpoint-*")), "only a hidden draft"
    few_steps = fields | {"max_steps": 10_000, "output_dir": folder, "resume_from_checkpoint": "latest"}
    process = TrainProcess(root, **few_steps)
    process.when(process.logged(5), signal.SIGTERM).wait()
    assert "has no whole checkpoint yet" in process.output
    assert_stopped(process, "SIGTERM")


def test_a_save_that_outlasts_the_launchers_patience_is_warned_of_and_leaves_only_whole_checkpoints(root, fields):
    """torch's launcher kills its workers some seconds after SIGTERM; the one of this project waits for them."""
    folder = root / "killed"
    variables = slow_saves(root / "slow", 4) | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"}
    options = fields | {"save_steps": 3, "output_dir": folder}
    process = TrainProcess(root, 2, variables=variables, **options)
    process.wait_until(lambda: 3 in saved_steps(folder))
    process.wait_until(lambda: list(folder.glob(".checkpoint-6.draft")))
    process.process.terminate()
    process.process.wait()
    process.wait_for_all()
    assert "the launcher kills its processes 2 seconds after SIGTERM" in process.output
    assert "set TORCH_ELASTIC_SHUTDOWN_TIMEOUT to more than" in process.output
    assert saved_steps(folder) == [3]
    process = TrainProcess(root, 2, "jet", variables=variables, **options, resume_from_checkpoint="latest")
    process.wait_until(lambda: "after 3 of 10000 steps" in process.output)
    process.when(lambda: list(folder.glob(".checkpoint-6.draft")), signal.SIGTERM).wait(code=0)
    assert "this run takes over" in process.output, "the lock was left behind"
    assert saved_steps(folder) == [3, 6, 7] and not process.running() and "Traceback" not in process.output


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


def test_evaluations_that_a_stop_left_out_are_made_up_for(root, fields):
    folder = root / "evaluated"
    options = fields | {"max_steps": 8, "eval_steps": 1, "sample_steps": 1, "output_dir": folder}
    process = TrainProcess(root, **options)
    process.when(process.logged(3), signal.SIGTERM).wait(code=0)
    (stopped,) = saved_steps(folder)
    evaluated = [json.loads(line)["step"] for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert evaluated == list(range(stopped)), "the checkpoint comes first"
    run_to_end(root, **options, resume_from_checkpoint="latest")
    evaluated = [json.loads(line)["step"] for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert evaluated == list(range(9))
    for name in ("samples", "reconstructions"):
        assert len(list((folder / "samples").glob(f"{name}-*.png"))) == 9


def test_a_run_in_another_thread_leaves_signals_alone(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    few_steps = TINY | fields | {"max_steps": 1, "output_dir": tmp_path / "run"}
    arguments = parse_arguments([f"--{name}={value}" for name, value in few_steps.items()])
    results = []
    thread = threading.Thread(target=lambda: results.append(train(arguments)))
    thread.start()
    thread.join()
    assert results[0].finished
