"""
Runs that are killed at random moments again and again end in the same bytes.

    python -m pytest tests/test_kills.py --kills 20
"""

import json
import random
import time

import pytest
from train_process import TrainProcess, run_to_end, write_images


SPEEDS = ("images_per_second", "peak_memory_gib")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("kills")
    write_images(root / "images")
    return root


def options_of(root, num_processes: int, name: str) -> dict:
    return {
        "num_processes": num_processes,
        "dataset_path": root / "images",
        "output_dir": root / f"{name}-{num_processes}" / "run",  # the model's card names the last part
        "use_ema": True,
        "ema_decay": 0.9,
        "save_total_limit": 2,
        "resume_from_checkpoint": "latest",
    }


def contents(folder) -> dict[str, bytes]:
    """Return the bytes of every file of a run, without speeds, paths and the names of saves that torch draws."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found = {name: path.read_bytes() for name, path in files.items() if path.name not in ("recipe.yaml", ".metadata")}
    rows = [json.loads(line) for line in found["metrics.jsonl"].splitlines()]
    kept = [{key: value for key, value in row.items() if key not in SPEEDS} for row in rows]
    for name in [name for name in found if name.endswith("checkpoint.json")]:
        manifest = json.loads(found[name])
        assert manifest["files"].pop("ema/.metadata")
        found[name] = json.dumps(manifest).encode()
    return found | {"metrics.jsonl": json.dumps(kept).encode()}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_random_kills_end_in_the_same_bytes(root, request, num_processes):
    run_to_end(root, **options_of(root, num_processes, "straight"))
    expected = contents(root / f"straight-{num_processes}" / "run")
    states = [f"checkpoint-12/{name}" for name in ("optimizer.bin", f"random_states_{num_processes - 1}.pkl")]
    assert expected.keys() >= {"model.safetensors", "samples/samples-00000012.png", "evaluations.jsonl", *states}

    options = options_of(root, num_processes, "killed")
    folder = options["output_dir"]
    moments, resumed = random.Random(num_processes), 0
    for _ in range(request.config.getoption("--kills")):
        process = TrainProcess(root, **options)
        # Of the time before, which is that of imports, one kill is as good as another.
        process.wait_until(lambda process=process: process.process.poll() is not None or (folder / ".lock").exists())
        time.sleep(moments.uniform(0, 6))
        process.kill_all()
        resumed += "going on from" in process.output
    output = run_to_end(root, **options)
    assert "this run takes over" in output or "going on from" in output
    found = contents(folder)
    assert found.keys() == expected.keys()
    assert not [name for name in expected if found[name] != expected[name]]
    print(f"{num_processes} process(es): {resumed} of {request.config.getoption('--kills')} starts had a checkpoint")
