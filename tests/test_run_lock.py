"""Two runs in one folder: the second is refused, unless the first one is dead."""

import os
import signal
import subprocess
import sys
import time

import pytest
from filelock import SoftFileLease
from train_process import TrainProcess, like_a_process, train_here, write_images

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


def test_a_second_run_is_refused_by_name_and_does_not_disturb_the_first(tmp_path, capsys):
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
    with like_a_process(tmp_path):
        train_here(**fields | {"dataset_path": images, "dry_run": True})
    plan = capsys.readouterr().out
    assert "21 training images, 10000 steps of 8 images" in plan and "images/s" in plan and "FLOPs" in plan
    first.when(first.logged(20), signal.SIGTERM)
    assert "stopped by SIGTERM" in first.wait() and not (folder / LOCK_FILE).exists()


def test_a_run_on_another_machine_is_respected_while_it_lives_and_taken_over_after_a_stated_time(
    tmp_path, holder, caplog
):
    process = holder(seconds=3.0)
    message = f"in use by process {process.pid} on another-machine: wait"
    with pytest.raises(RunLockedError, match=message), RunLock(tmp_path, takeover_seconds=3.0):
        pass
    process.kill()
    process.wait()
    start = time.monotonic()
    with RunLock(tmp_path, takeover_seconds=3.0) as lock:
        assert time.monotonic() - start >= 3.0, "its process id means nothing on this machine"
        assert f"took over the lock of {tmp_path} from process {process.pid} on another-machine" in caplog.text
        lock.check()
    assert not list(tmp_path.iterdir())
    assert HEARTBEAT_SECONDS < TAKEOVER_SECONDS / 10, "a few late heartbeats must not cost a run its folder"


def test_a_run_that_has_lost_its_folder_stops_before_it_writes(tmp_path):
    """As a run does that was suspended for longer than the stated time."""
    with RunLock(tmp_path, takeover_seconds=0.4) as lock:
        lock.check()
        (tmp_path / LOCK_FILE).unlink()
        deadline = time.monotonic() + 60
        with pytest.raises(RunLockedError, match="no longer holds `output_dir`"):
            while time.monotonic() < deadline:
                lock.check()
                time.sleep(0.05)


def test_a_folder_that_a_failed_start_created_is_deleted(tmp_path):
    with RunLock(tmp_path / "runs" / "new"):
        assert (tmp_path / "runs" / "new" / LOCK_FILE).exists()
    assert not list(tmp_path.iterdir())


def test_a_start_that_is_interrupted_right_after_the_file_was_written_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments):
        assert (tmp_path / "run" / LOCK_FILE).read_text()
        raise KeyboardInterrupt

    monkeypatch.setattr(SoftFileLease, "_start_heartbeat", interrupt)
    with pytest.raises(KeyboardInterrupt), RunLock(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_start_that_is_interrupted_before_the_file_was_written_leaves_nothing(tmp_path, monkeypatch):
    os_open, folder = os.open, tmp_path / "run"

    def interrupt(path, flags, *mode):
        descriptor = os_open(path, flags, *mode)
        if flags & os.O_CREAT and os.fspath(path) == str(folder / LOCK_FILE):
            os.close(descriptor)
            raise KeyboardInterrupt
        return descriptor

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "open", interrupt)
        with RunLock(folder):
            pass
    assert not list(tmp_path.iterdir())


def test_the_file_of_a_killed_takeover_is_deleted_at_the_end(tmp_path):
    left = tmp_path / f"{LOCK_FILE}.break.4194304.0123456789abcdef0123456789abcdef"
    left.write_text("of a process that was killed")
    with RunLock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_end_of_a_run_leaves_the_lock_that_another_has_just_created(tmp_path, monkeypatch):
    release, marker = SoftFileLease.release, tmp_path / LOCK_FILE

    def release_to_another(lease):
        release(lease)
        marker.touch()

    with monkeypatch.context() as patch, RunLock(tmp_path):
        patch.setattr(SoftFileLease, "release", release_to_another)
    assert marker.exists()
