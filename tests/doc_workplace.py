"""The files that the pages of the documentation use."""

import dataclasses
import io
import os
import shutil
import tarfile
from contextlib import chdir
from pathlib import Path

import numpy as np
from conftest import FIXTURES, ROOT
from doc_blocks import GIVEN, smaller
from PIL import Image
from sklearn.datasets import load_digits

from examples.odd_products import draw_button
from examples.photographs import SPLITS, load_photograph
from jet_hf.training import parse_arguments, train


# Folders of the checkout, and their places.
SHIPPED = {
    "space/model": ("space/model", "demo/models/photographs"),
    "space/digits": ("space/digits", "demo/models/digits", "runs/digits"),
    "space/examples": ("space/examples",),
}
CHECKPOINTS = {"jet.npz": "default_kinds_16px.npz", "model.safetensors": "jet_pytorch_16px.safetensors"}
LINKS = ("recipes", "scripts", "examples", "Makefile", "pyproject.toml", "constraints.txt", "constraints-tpu.txt")


def write_workplace(folder: Path) -> None:
    """
    Write the files that the pages use. Each page gets a copy.

    - `photos/`: 24 photographs, `new_photos/`: 8 others, each of 60 x 80 pixels; `a.png` and `b.png` are two of them
    - `runs/photos`, `runs/bottles`: a model of 32 x 32 pixels after two steps, with `checkpoint-1` and `checkpoint-2`;
      a new training in one of these folders replaces it
    - `runs/photographs`, `runs/cifar10`: the same with their recipes, which can be resumed and extended
    - `space/model`, `space/digits`: the models of the demo; also as `runs/digits`, `demo/models/photographs` and
      `demo/models/digits`; and `space/examples`
    - `bottles/train/good`, `bottles/test/good`, `bottles/test/broken`: 20, 6 and 6 pictures of products
    - `photographs`, `data/photographs`, `demo/data/photographs`: small photographs in `train` and `validation`, among
      them `validation/coffee.png` and `validation/china.png`
    - `data/digits`: 6 digits of each class in `train` and 4 in `test`
    - `data/cifar10`: 20 pictures in `train` and 12 in `test`, of two classes, for the dataset on the Hub
    - `data/imagenet64_vandenoord/train_64x64.tar` and `valid_64x64.tar`, `imagenet21k/train/`: photographs
    - The Hub is a stand-in, where `my-name` is logged in and may push to `my-name/...`; it has no other repositories
    - `jet.npz`, `model.safetensors`: checkpoints of big_vision and of jet-pytorch
    - `recipes`, `scripts`, `examples`, `Makefile`, `pyproject.toml` and `constraints*.txt` of the checkout, as links
    """
    folder.mkdir()
    for name in LINKS:
        (folder / name).symlink_to(ROOT / name)
    for target, source in CHECKPOINTS.items():
        (folder / target).symlink_to(FIXTURES / source)
    for source, targets in SHIPPED.items():
        for target in targets:
            shutil.copytree(ROOT / source, folder / target, copy_function=place)
    with chdir(folder):
        write_pictures()
        for flags in (
            ["--dataset_path=photos", "--output_dir=runs/photos"],
            ["--config=recipes/photographs.yaml"],
            ["--config=recipes/cifar10.yaml"],
        ):
            train(dataclasses.replace(smaller(parse_arguments(flags)), save_steps=1))
        shutil.copytree("runs/photos", "runs/bottles")
        for model in Path("runs").iterdir():
            (model / GIVEN).touch()


def copy_workplace(source: Path, folder: Path) -> None:
    """Give a page its own files."""
    shutil.copytree(source, folder, symlinks=True)


def place(source: str, target: str) -> None:
    """Copy a file, or link to it if it is large."""
    if source.endswith(".safetensors"):
        os.symlink(source, target)
    else:
        shutil.copy(source, target)


def write_pictures() -> None:
    """Write the images of [`write_workplace`]."""
    rng = np.random.default_rng(0)
    names = [name for split in SPLITS.values() for name in split]
    photographs = {name: [crop(load_photograph(name), rng) for _ in range(4)] for name in names}
    for name, (new, *others) in photographs.items():
        save(new, f"new_photos/{name}.png")
        for i, image in enumerate(others):
            save(image, f"photos/{name}_{i}.png")
        split = "train" if name in SPLITS["train"] else "validation"
        for data in ("photographs", "data/photographs", "demo/data/photographs"):
            save(new, f"{data}/{split}/{name}.png")
    save(photographs["coffee"][0], "a.png")
    save(photographs["chelsea"][0], "b.png")
    for i, image in enumerate(image for crops in photographs.values() for image in crops):
        save(image, f"imagenet21k/train/{i}.png")
        save(image.resize((32, 32)), f"data/cifar10/{'train' if i < 20 else 'test'}/{i % 2}/{i}.png")
    for part in ("train", "valid"):
        write_tar(photographs["china"], Path("data", "imagenet64_vandenoord", f"{part}_64x64.tar"))
    write_products(rng)
    write_digits()


def write_products(rng: np.random.Generator) -> None:
    for group, count, defect in (("train/good", 20, None), ("test/good", 6, None), ("test/broken", 6, "scratch")):
        for i in range(count):
            save(draw_button(rng, defect), f"bottles/{group}/{i}.png")


def write_digits() -> None:
    digits = load_digits()
    for digit in range(10):
        for i, row in enumerate(np.flatnonzero(digits.target == digit)[:10]):
            image = Image.fromarray(digits.images[row].astype(np.uint8))
            save(image, f"data/digits/{'train' if i < 6 else 'test'}/{digit}/{row}.png")


def crop(pixels: np.ndarray, rng: np.random.Generator) -> Image.Image:
    row, column = rng.integers(pixels.shape[0] - 240), rng.integers(pixels.shape[1] - 320)
    return Image.fromarray(pixels[row : row + 240, column : column + 320]).reduce(4)


def save(image: Image.Image, path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_tar(images: list[Image.Image], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(images):
            content = io.BytesIO()
            image.resize((64, 64)).save(content, "PNG")
            member = tarfile.TarInfo(f"{i}.png")
            member.size = content.tell()
            content.seek(0)
            tar.addfile(member, content)
