"""A run resumes on the data that it began with, wherever they are moved, and on no other data."""

import json
import logging
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from train_process import TINY, rows, write_images

from jet_hf import JetImageProcessor
from jet_hf.data import DataSource, ReadOptions, load_pixels, stream_fingerprint
from jet_hf.training import parse_arguments, train


PROCESSOR = JetImageProcessor(size=8)
SHORT = TINY | {"max_steps": 4, "save_steps": 2, "eval_steps": 0, "sample_steps": 0}


def run(data: Path, folder: Path, **fields) -> None:
    """A run of four steps with checkpoints at 2 and 4, which resumes the one in the folder."""
    fields = SHORT | {"dataset_path": data, "output_dir": folder, "resume_from_checkpoint": "latest"} | fields
    train(parse_arguments([f"--{name}={value}" for name, value in fields.items()]))


def stop_halfway(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoint-4")


def change_contents(folder: Path) -> None:
    """Other images under the previous names, times and, where possible, sizes."""
    for file in folder.rglob("*.png"):
        status = file.stat()
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module", params=[False, True], ids=["prepared", "streamed"])
def begun(request, tmp_path_factory):
    """The images of a run, its straight execution, a copy stopped halfway, and its options."""
    root = tmp_path_factory.mktemp("begun")
    images, options = write_images(root / "images"), {"streaming": request.param}
    run(images, root / "straight", **options)
    stop_halfway(Path(shutil.copytree(root / "straight", root / "run")))
    return images, root / "straight", root / "run", options


def test_a_run_does_not_resume_on_other_images(begun, tmp_path):
    images, _, stopped, options = begun
    changed = Path(shutil.copytree(images, tmp_path / "changed"))
    change_contents(changed)
    renamed = write_images(tmp_path / "renamed", num_train=26)  # as many images as before
    for i in range(5):
        (renamed / "train" / f"{i}.png").unlink()
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    for data in (changed, renamed):
        with pytest.raises(ValueError, match=r"checkpoint-2.*training images"):
            run(data, folder, **options)


def test_a_run_does_not_compare_evaluations_on_different_images(begun, tmp_path):
    images, _, _, options = begun
    data = Path(shutil.copytree(images, tmp_path / "data"))
    run(data, tmp_path / "run", **options, eval_steps=2)
    stop_halfway(tmp_path / "run")
    next((data / "validation").rglob("*.png")).unlink()
    with pytest.raises(ValueError, match="held-out images"):
        run(data, tmp_path / "run", **options, eval_steps=2)


def test_a_run_resumes_on_moved_data_with_the_same_weights(begun, tmp_path, caplog):
    images, straight, stopped, options = begun
    shutil.copytree(images, tmp_path / "renamed")
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    with caplog.at_level(logging.INFO, "jet_hf"):
        run(tmp_path / "renamed", folder, **options)
    assert "after 2 of 4 steps" in caplog.text
    assert (folder / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_a_folder_without_a_held_out_split_is_divided_and_resumes_divided(tmp_path):
    images = write_images(tmp_path / "images", num_train=20, num_validation=0)
    run(images, tmp_path / "straight", eval_steps=2)
    assert [row["num_images"] for row in rows(tmp_path / "straight", "evaluations.jsonl")] == [4, 4, 4]
    assert rows(tmp_path / "straight")[-1]["epoch"] == 4 * 8 / 16
    stopped = Path(shutil.copytree(tmp_path / "straight", tmp_path / "run"))
    stop_halfway(stopped)
    run(images, stopped, eval_steps=0)  # without evaluations, it still does not train on the held-out images
    assert (stopped / "model.safetensors").read_bytes() == (tmp_path / "straight" / "model.safetensors").read_bytes()
    run(images, tmp_path / "named", eval_split="train[held_out]")
    assert rows(tmp_path / "named")[-1]["epoch"] == 4 * 8 / 16
    run(images, tmp_path / "whole", eval_split="none")
    assert rows(tmp_path / "whole")[-1]["epoch"] == 4 * 8 / 20
    assert not (tmp_path / "whole" / "evaluations.jsonl").exists()


def test_a_run_that_began_on_the_whole_folder_resumes_on_it(tmp_path, caplog):
    """Earlier commits did not divide folders."""
    images = write_images(tmp_path / "images", num_train=20, num_validation=0)
    run(images, tmp_path / "straight")
    stopped = Path(shutil.copytree(tmp_path / "straight", tmp_path / "run"))
    stop_halfway(stopped)
    run(images, stopped, eval_steps=2)
    assert "no images are held out, so nothing is evaluated" in caplog.text
    assert (stopped / "model.safetensors").read_bytes() == (tmp_path / "straight" / "model.safetensors").read_bytes()


def test_another_dataset_of_as_many_images_is_refused_if_the_checkpoint_records_data(tmp_path, caplog):
    """As CIFAR-10 and CIFAR-100; checkpoints of early versions did not record their data."""
    features = datasets.Features({"img": datasets.Array3D((3, 8, 8), "uint8")})
    folder, names = tmp_path / "run", ("cifar10", "cifar100")
    for seed, name in enumerate(names):
        images = np.random.default_rng(seed).integers(256, size=(21, 3, 8, 8), dtype=np.uint8)
        saved = datasets.Dataset.from_dict({"img": list(images)}, features=features)
        datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / name)
    run(tmp_path / "cifar10", folder)
    stop_halfway(folder)
    with pytest.raises(ValueError, match="training images"):
        run(tmp_path / "cifar100", folder)
    file = folder / "checkpoint-2" / "checkpoint.json"
    manifest = json.loads(file.read_text())
    del manifest["trajectory"]["data"]
    file.write_text(json.dumps(manifest))
    with caplog.at_level(logging.INFO, "jet_hf"):
        run(tmp_path / "cifar10", folder)
    assert "did not record data" in caplog.text and "after 2 of 4 steps" in caplog.text


def test_fingerprints_distinguish_pixels_classes_and_their_order(tmp_path):
    images = write_images(tmp_path / "a", num_train=6, num_validation=0)
    for i in range(6):
        (images / "train" / "xy"[i % 2]).mkdir(exist_ok=True)
        (images / "train" / f"{i}.png").rename(images / "train" / "xy"[i % 2] / f"{i}.png")

    def fingerprint(folder: Path, **options) -> str:
        return load_pixels(DataSource(path=str(folder)), "train", PROCESSOR, ReadOptions(**options)).fingerprint

    known = {fingerprint(images), fingerprint(images, num_classes=2), fingerprint(images, max_images=5)}
    moved = Path(shutil.copytree(images, tmp_path / "b"))
    assert {fingerprint(moved), fingerprint(moved, num_classes=2)} < known and len(known) == 3
    (moved / "train" / "x" / "0.png").rename(moved / "train" / "y" / "0.png")
    assert fingerprint(moved) not in known and fingerprint(moved, num_classes=2) not in known
    changed = Path(shutil.copytree(images, tmp_path / "c"))
    change_contents(changed)
    assert fingerprint(changed) not in known
    assert all(len(each) == 16 for each in known)


def test_arrays_have_the_fingerprint_of_the_same_pixels_in_files(tmp_path):
    images = write_images(tmp_path / "images")
    decoded = load_pixels(DataSource(path=str(images)), "train", PROCESSOR)
    decoded.dataset.save_to_disk(tmp_path / "saved")
    before = set((tmp_path / "saved").iterdir())
    saved = load_pixels(DataSource(path=str(tmp_path / "saved")), "train", PROCESSOR)
    assert saved.fingerprint == decoded.fingerprint
    assert set((tmp_path / "saved").iterdir()) == before  # the folder of the data may be read-only


def test_fingerprints_of_streams_sample_large_files(tmp_path):
    def fingerprint(name: str, content: bytes) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.parquet").write_bytes(content)
        return stream_fingerprint(DataSource(path=str(tmp_path / name)), "train")

    content = np.random.default_rng(0).bytes(2**20)
    known = fingerprint("first", content)
    assert fingerprint("moved", content) == known
    size = 2**17  # a few images of a shard
    for start in (0, 2**19, 2**20 - size):
        changed = content[:start] + bytes(size) + content[start + size :]
        assert fingerprint(f"changed{start}", changed) != known
