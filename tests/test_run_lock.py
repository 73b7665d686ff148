"""Two runs in one folder: the second is refused, unless the first one is dead."""

import os
import signal
import subprocess
import sys
import time

import pytest
from filelock import SoftFileLease
from train_process import TrainProcess, run_to_end, write_images

from jet_hf.training import RunLockedError
from jet_hf.training.lock import HEARTBEAT_SECONDS, LOCK_FILE, TAKEOVER_SECONDS, RunLock


HOLDER = """
import socket, sys, time
socket.gethostname = lambda: "another-machine"
from filelock import SoftFileLease
lease = SoftFileLease(sys.argv[1], lease_duration=float(sys.argv[2]), heartbeat_interval=float(sys.argv[2]) / 4)
lease.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Hold the lock of `tmp_path` in a process that passes for one on another machine."""
    started = []

    def hold(seconds: float) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(tmp_path / LOCK_FILE), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_a_second_run_is_refused_by_name_and_does_not_disturb_the_first(tmp_path):
    images = write_images(tmp_path / "images")
    folder = tmp_path / "run"
    fields = {"dataset_path": images, "output_dir": folder, "max_steps": 10_000, "eval_steps": 0, "sample_steps": 0}
    first = TrainProcess(tmp_path, **fields)
    first.wait_until((folder / LOCK_FILE).exists)
    # Both processes of the second launch are told, and none is left waiting. It does not get as far as the data.
    fields |= {"dataset_path": "/nowhere", "resume_from_checkpoint": "latest"}
    second = TrainProcess(tmp_path, num_processes=2, **fields)
    output = second.wait(code=1)
    name = f"in use by process {first.process.pid} on {os.uname().nodename}, started 2"
    assert output.count(f"error: `output_dir` {folder} is {name}") == 2
    plan = run_to_end(tmp_path, **fields | {"dataset_path": images, "dry_run": True})
    assert "10000 steps" in plan
    first.when(first.logged(20), signal.SIGTERM)
    assert "stopped by SIGTERM" in first.wait() and not (folder / LOCK_FILE).exists()


def test_a_run_on_another_machine_is_respected_while_it_lives_and_taken_over_after_a_stated_time(
    tmp_path, holder, caplog
):
    process = holder(seconds=3.0)
    with pytest.raises(RunLockedError, match=f"in use by process {process.pid} on another-machine: wait"):
        RunLock(tmp_path, takeover_seconds=3.0).acquire()
    process.kill()
    process.wait()
    start = time.monotonic()
    lock = RunLock(tmp_path, takeover_seconds=3.0)
    lock.acquire()
    assert time.monotonic() - start >= 3.0, "its process id means nothing on this machine"
    assert f"locked by process {process.pid} on another-machine" in caplog.text and "takes over" in caplog.text
    lock.check()
    lock.release()
    assert not list(tmp_path.iterdir())
    assert HEARTBEAT_SECONDS < TAKEOVER_SECONDS / 10, "a few late heartbeats must not cost a run its folder"


def test_a_run_that_has_lost_its_folder_stops_before_it_writes(tmp_path):
    """As one does that was suspended for longer than the stated time."""
    lock = RunLock(tmp_path, takeover_seconds=0.4)
    lock.acquire()
    lock.check()
    (tmp_path / LOCK_FILE).unlink()
    deadline = time.monotonic() + 60
    with pytest.raises(RunLockedError, match="no longer this run's"):
        while time.monotonic() < deadline:
            lock.check()
            time.sleep(0.05)
    lock.release()


def test_a_folder_that_a_failed_start_made_is_deleted(tmp_path):
    lock = RunLock(tmp_path / "runs" / "new")
    lock.acquire()
    assert (tmp_path / "runs" / "new" / LOCK_FILE).exists()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_start_that_is_interrupted_right_after_the_file_was_written_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments):
        assert (tmp_path / "run" / LOCK_FILE).read_text()
        raise KeyboardInterrupt

    monkeypatch.setattr(SoftFileLease, "_start_heartbeat", interrupt)
    lock = RunLock(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    lock.release()
    assert not list(tmp_path.iterdir())
