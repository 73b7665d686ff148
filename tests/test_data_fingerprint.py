"""A run goes on with the data that it began with, wherever they lie, and with no others."""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from train_process import run_to_end, write_images

from jet_hf import JetImageProcessor
from jet_hf.data import DataSource, load_pixels, stream_fingerprint


PROCESSOR = JetImageProcessor(size=8)
SHORT = {"max_steps": 4, "save_steps": 2, "eval_steps": 0, "sample_steps": 0}


@pytest.fixture
def isolated_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def change_contents(folder: Path) -> None:
    """Other pictures under the names of before, with the sizes and times of before where that is possible."""
    for file in folder.rglob("*.png"):
        status = file.stat()
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def save_arrays(folder: Path, seed: int, column: str) -> Path:
    """A saved data set of as many images as another one, as CIFAR-10 and CIFAR-100 are."""
    images = np.random.default_rng(seed).integers(256, size=(21, 3, 8, 8), dtype=np.uint8)
    features = datasets.Features({column: datasets.Array3D((3, 8, 8), "uint8")})
    data = datasets.Dataset.from_dict({column: list(images)}, features=features)
    datasets.DatasetDict({"train": data}).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["prepared", "streamed"])
def begun(request, tmp_path_factory):
    """The options of a run that was stopped after half of its steps, with its folder and that of its pictures."""
    root = tmp_path_factory.mktemp("begun")
    images = write_images(root / "images")
    options = SHORT | {"streaming": request.param, "resume_from_checkpoint": "latest"}
    run_to_end(root, dataset_path=images, output_dir=root / "straight", **options)
    shutil.copytree(root / "straight", root / "run")
    shutil.rmtree(root / "run" / "checkpoint-4")
    return root, images, options


def resume(begun, folder: Path, data: Path, code: int) -> str:
    root, _, options = begun
    shutil.copytree(root / "run", folder)
    return run_to_end(root, code, dataset_path=data, output_dir=folder, **options)


@pytest.mark.parametrize("case", ["another folder of as many images", "other contents under the same names"])
def test_a_run_does_not_go_on_with_other_data(begun, tmp_path, case):
    _, images, _ = begun
    data = tmp_path / "data"
    if case.startswith("other"):
        shutil.copytree(images, data)
        change_contents(data)
    else:
        write_images(data, num_train=26, num_validation=5)
        for i in range(5):
            (data / "train" / f"{i}.png").unlink()
    output = resume(begun, tmp_path / "run", data, code=1)
    assert "checkpoint-2: the training images are not the same ones in the same order" in output
    assert "Traceback" not in output


def test_a_run_does_not_compare_its_evaluations_with_those_of_other_images(begun, tmp_path):
    root, images, options = begun
    data = Path(shutil.copytree(images, tmp_path / "data"))
    evaluated = options | {"eval_steps": 2}
    run_to_end(root, dataset_path=data, output_dir=tmp_path / "run", **evaluated)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    next((data / "validation").rglob("*.png")).unlink()
    output = run_to_end(root, 1, dataset_path=data, output_dir=tmp_path / "run", **evaluated)
    assert "the held-out images are not the same ones in the same order" in output


def test_a_run_goes_on_with_data_that_were_moved_to_the_same_weights(begun, tmp_path):
    root, images, _ = begun
    shutil.copytree(images, tmp_path / "renamed")
    assert "after 2 of 4 steps" in resume(begun, tmp_path / "run", tmp_path / "renamed", code=0)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "run", root / "straight")]
    assert weights[0] == weights[1]


def test_another_data_set_of_as_many_images_is_refused_where_a_checkpoint_can_tell(tmp_path):
    ten, hundred = (save_arrays(tmp_path / name, seed, "img") for seed, name in enumerate(("cifar10", "cifar100")))
    options = SHORT | {"output_dir": tmp_path / "run", "resume_from_checkpoint": "latest"}
    run_to_end(tmp_path, dataset_path=ten, **options)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    output = run_to_end(tmp_path, 1, dataset_path=hundred, **options)
    assert "the training images are not the same ones in the same order" in output and "Traceback" not in output
    file = tmp_path / "run" / "checkpoint-2" / "checkpoint.json"
    manifest = json.loads(file.read_text())
    del manifest["trajectory"]["data"]  # as an earlier version wrote it
    file.write_text(json.dumps(manifest))
    output = run_to_end(tmp_path, dataset_path=ten, **options)
    assert "which did not record data:" in output and "after 2 of 4 steps" in output


def test_fingerprints_tell_pixels_classes_and_their_order_apart(tmp_path, isolated_cache):
    images = write_images(tmp_path / "a", num_train=6, num_validation=0)
    for i in range(6):
        (images / "train" / "xy"[i % 2]).mkdir(exist_ok=True)
        (images / "train" / f"{i}.png").rename(images / "train" / "xy"[i % 2] / f"{i}.png")

    def fingerprint(folder: Path, **options) -> str:
        return load_pixels(DataSource(path=str(folder)), "train", PROCESSOR, **options).fingerprint

    known = {fingerprint(images), fingerprint(images, num_classes=2), fingerprint(images, max_images=5)}
    moved = Path(shutil.copytree(images, tmp_path / "b"))
    assert {fingerprint(moved), fingerprint(moved, num_classes=2)} < known and len(known) == 3
    (moved / "train" / "x" / "0.png").rename(moved / "train" / "y" / "0.png")
    assert fingerprint(moved) not in known and fingerprint(moved, num_classes=2) not in known
    changed = Path(shutil.copytree(images, tmp_path / "c"))
    change_contents(changed)
    assert fingerprint(changed) not in known
    assert all(len(each) == 16 for each in known)


def test_arrays_have_the_fingerprint_of_the_same_pixels_in_files(tmp_path, isolated_cache):
    images = write_images(tmp_path / "images")
    decoded = load_pixels(DataSource(path=str(images)), "train", PROCESSOR)
    decoded.dataset.save_to_disk(tmp_path / "saved")
    before = set((tmp_path / "saved").iterdir())
    saved = load_pixels(DataSource(path=str(tmp_path / "saved")), "train", PROCESSOR)
    assert saved.fingerprint == decoded.fingerprint
    assert set((tmp_path / "saved").iterdir()) == before  # the data may lie where nothing may be written


@pytest.mark.parametrize("position", [0, 2**19, 2**20 - 1])
def test_fingerprints_of_streams_sample_large_files(tmp_path, isolated_cache, position):
    content = bytearray(np.random.default_rng(0).bytes(2**20))
    fingerprints = []
    for name in ("first", "moved", "changed"):
        (tmp_path / name).mkdir()
        if name == "changed":
            size = 2**17  # a few pictures of a shard
            start = min(position, len(content) - size)
            content[start : start + size] = bytes(size)
        (tmp_path / name / "train.parquet").write_bytes(content)
        fingerprints.append(stream_fingerprint(DataSource(path=str(tmp_path / name)), "train"))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
