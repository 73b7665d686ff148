"""
Runs that are killed again and again end in the same bytes.

    python -m pytest tests/test_kills.py --kills 20
"""

import json
import random
import re
import time

import pytest
from train_process import TrainProcess, command, like_a_process, run_to_end, train_here, write_images


SPEEDS = ("images_per_second", "peak_memory_gib")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("kills")
    write_images(root / "images")
    with like_a_process(root):
        yield root


def train_to_end(root, monkeypatch, **options) -> None:
    """Train in this process, or start two; the model card states the command line."""
    if options.pop("num_processes") == 2:
        run_to_end(root, num_processes=2, **options)
        return
    monkeypatch.setattr("sys.argv", command(**options)[1:])
    train_here(**options)


def options_of(root, num_processes: int, name: str, kills: int) -> dict:
    return {
        "num_processes": num_processes,
        "dataset_path": root / "images",
        "output_dir": root / f"{name}-{num_processes}" / "run",  # the model card states the last part
        "use_ema": True,
        "ema_decay": 0.9,
        "save_best": True,
        "max_steps": 6 * (kills + 2),
        "save_total_limit": 2,
        "resume_from_checkpoint": "latest",
    }


def contents(folder) -> dict[str, bytes]:
    """Return the bytes of every file of a run, without speeds and paths."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found = {name: path.read_bytes() for name, path in files.items() if path.name != "recipe.yaml"}
    rows = [json.loads(line) for line in found["metrics.jsonl"].splitlines()]
    kept = [{key: value for key, value in row.items() if key not in SPEEDS} for row in rows]
    return found | {"metrics.jsonl": json.dumps(kept).encode()}


def resumed_step(output: str) -> int:
    """Return the step of the checkpoint that a run was resumed from."""
    found = re.search(r"resuming from .*, after (\d+) of", output)
    return int(found[1]) if found else 0


def num_steps_of(process: TrainProcess) -> int:
    """Return the number of steps that a run has logged since its start."""
    output, log = process.output, process.folder / "metrics.jsonl"
    if ("resuming from" not in output and "starting from scratch" not in output) or not log.exists():
        return 0
    return log.read_text().count("\n") - resumed_step(output)


# Paths that appear when a checkpoint is being written, when it is complete, and when the finished model is written.
MOMENTS = (".checkpoint-*.draft", "checkpoint-6", ".model.draft")


def kill(process: TrainProcess, moment: str | None, generator: random.Random) -> None:
    """Kill a run as soon as a path appears in its folder, or else at a random moment of a random step."""
    if moment is not None:
        process.wait_until(lambda: any(process.folder.glob(moment)))
    else:
        # One kill in five comes before the first new step, the others up to two saves after it.
        steps = generator.choice([0, 1, 2, 4, 6])
        process.wait_until((process.folder / ".lock").exists if not steps else lambda: num_steps_of(process) >= steps)
        time.sleep(generator.uniform(0, 0.3))
    process.kill_all()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_kills_end_in_the_same_bytes(root, request, monkeypatch, num_processes):
    """
    One process is killed at each of `MOMENTS` and at random in between. Two processes, whose every start costs twice,
    are killed at random, and once less.
    """
    kills = max(1, request.config.getoption("--kills") - (num_processes - 1))
    options = options_of(root, num_processes, "straight", kills)
    train_to_end(root, monkeypatch, **options)
    expected = contents(options["output_dir"])
    last = f"checkpoint-{options['max_steps']}"
    states = [f"{last}/optimizer.bin", *(f"{last}/random_states_{i}.pkl" for i in range(num_processes))]
    models = ("model.safetensors", "best/model.safetensors", f"{last}/training_weights/model.safetensors")
    assert expected.keys() >= {*models, "samples/samples-00000012.png", "evaluations.jsonl", *states}

    options = options_of(root, num_processes, "killed", kills)
    moments: list[str | None] = [None] * kills
    if num_processes == 1 and kills >= len(MOMENTS):
        moments[0], moments[1], moments[-1] = MOMENTS  # the last one comes at the end of a run
    elif kills:
        moments[0] = "checkpoint-*"  # however busy the machine is, a kill comes after a checkpoint
    generator, starts = random.Random(num_processes), []
    for moment in moments:
        process = TrainProcess(root, **options)
        kill(process, moment, generator)
        for path in process.folder.glob("checkpoint-*"):
            assert (path / "checkpoint.json").exists(), "a checkpoint that is visible is complete"
        starts.append(resumed_step(process.output))
    assert list(options["output_dir"].glob("checkpoint-*")), "no kill came after a checkpoint"
    train_to_end(root, monkeypatch, **options)
    found = contents(options["output_dir"])
    assert found.keys() == expected.keys()
    assert not [name for name in expected if found[name] != expected[name]]
    print(f"{num_processes} process(es), {kills} kills: resumed from steps {starts}, {len(found)} files are the same")
