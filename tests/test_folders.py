"""Folders of pictures: every picture is used, whatever it is called, and what is not used is said."""

import json
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from train_process import environment

from jet_hf import JetConfig, JetForDensityEstimation, JetImageProcessor
from jet_hf.data import (
    DataSource,
    Shares,
    UnknownSplitError,
    held_out_split,
    load_pixels,
    open_split,
    stream_batches,
    stream_fingerprint,
)


PROCESSOR = JetImageProcessor(size=2)
BOTH_WAYS = pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def write_pictures(folder: Path, *names: str, first: int = 0) -> Path:
    """Pictures of one grey level each, counted from `first`."""
    for level, name in enumerate(names, first):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}.get(name.rsplit(".")[-1].lower(), "PNG")
        Image.new("RGB", (2, 2), (level,) * 3).save(file, kind)
    return folder


def numbered(count: int, suffix: str = "png") -> list[str]:
    return [f"{i:02d}.{suffix}" for i in range(count)]


def levels(path: Path, split: str, streaming: bool, count: int, **options) -> list[int]:
    """The grey levels of the images that a run uses, `count` of them, sorted; other numbers of images show."""
    source = DataSource(path=str(path), streaming=streaming, **options)
    if streaming:
        (batch,) = stream_batches(source, split, PROCESSOR, Shares(count), 1, shuffle_buffer_size=1)
        pixels = batch.pixels.numpy()
    else:
        dataset = load_pixels(source, split, PROCESSOR).dataset
        pixels = dataset.with_format("numpy", dtype=np.uint8)["pixels"][:]
    return sorted(pixels[:, 0, 0, 0].tolist())


def metadata(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def captions(folder: Path) -> None:
    for i in range(9):
        (folder / f"{i}.txt").write_text("A caption.")


def linked_album(folder: Path) -> None:
    (folder / "linked").symlink_to(write_pictures(folder.parent / "elsewhere", *numbered(6), first=4))


FOLDERS = {
    "one name has a word of training": (["old train station.png", *numbered(20)], None),
    "one name is that of a split": (["training.png", *numbered(10)], None),
    "every name is that of a split": (["train.png", "test.png", "val.png"], None),
    "only test.png": (["test.png"], None),
    "an album with a word of training": ([f"{a}/{n}" for a in ("rome", "train trip") for n in numbered(6)], None),
    "suffixes in any case": (["a.Png", "b.pNg", "c.PNG", "d.jpeG", "e.TIF"], None),
    "suffixes after suffixes": (["a.jpg.png", "b.v2.final.png", "c.png", "c.tif"], None),
    "names with a meaning in addresses and patterns": (["a::b/zip:/c[1]*.png", "d?/e#f%20.png", "ü 图.png"], None),
    "pictures at several depths": (["a.png", "b/c.png", "b/d/e.png"], None),
    "metadata of some": (numbered(12), lambda f: metadata(f, [{"file_name": n, "text": "x"} for n in numbered(10)])),
    "metadata of no picture": (numbered(2), lambda f: (f / "metadata.csv").write_text("a,b\n1,2\n")),
    "more captions than pictures": (numbered(4), captions),
    "a linked album beside a real one": ([f"real/{name}" for name in numbered(4)], linked_album),
    "all in one folder": ([f"photos/{name}" for name in numbered(3)], None),
}


@BOTH_WAYS
@pytest.mark.parametrize("case", FOLDERS)
def test_all_pictures_of_a_folder_are_used_whatever_they_are_called(tmp_path, case, streaming):
    names, more = FOLDERS[case]
    folder = write_pictures(tmp_path / "photos", *names)
    if more:
        more(folder)
    count = len(names) + 6 * (case == "a linked album beside a real one")
    expected = list(range(count))
    found = levels(folder, "train", streaming, count)
    assert np.abs(np.subtract(found, expected)).max() <= 2 * any("jp" in name for name in names)  # JPEG rounds
    with pytest.raises(UnknownSplitError):
        held_out_split(DataSource(path=str(folder)))


def test_a_stream_mixes_the_pictures_of_all_folders(tmp_path):
    folder = write_pictures(tmp_path / "photos", *(f"{album}/{i:02d}.png" for album in "abcd" for i in range(25)))
    source = DataSource(path=str(folder), streaming=True)
    batches = stream_batches(source, "train", PROCESSOR, Shares(20), 5, shuffle_buffer_size=5)
    found = [batch.pixels[:, 0, 0, 0] for batch in batches]
    assert sorted(torch.cat(found).tolist()) == list(range(100))
    assert all(len(set((levels // 25).tolist())) == 4 for levels in found)


@BOTH_WAYS
@pytest.mark.parametrize("layout", ["folders", "wrapped", "links", "dot", "names in other cases"])
def test_subfolders_with_whole_names_of_splits_are_the_splits(tmp_path, monkeypatch, layout, streaming):
    train, validation = {"names in other cases": ("Training", "VAL")}.get(layout, ("train", "validation"))
    folder = write_pictures(tmp_path / "real", *(f"{train}/{name}" for name in numbered(5)))
    write_pictures(folder, *(f"{validation}/train/{name}" for name in numbered(2)), first=5)
    if layout == "wrapped":
        folder.rename(tmp_path / "photos")
        (tmp_path / "real").mkdir()
        folder = (tmp_path / "photos").rename(tmp_path / "real" / "photos").parent
    elif layout == "links":
        folder = tmp_path / "links"
        folder.mkdir()
        for name in (train, validation):
            (folder / name).symlink_to(tmp_path / "real" / name)
    elif layout == "dot":
        monkeypatch.chdir(folder)
        folder = Path()
    assert levels(folder, "train", streaming, 5) == [0, 1, 2, 3, 4]
    assert held_out_split(DataSource(path=str(folder))) == "validation"
    assert levels(folder, "validation", streaming, 2) == levels(folder, "val", streaming, 2) == [5, 6]
    assert levels(folder, "all", streaming, 7) == list(range(7))


@BOTH_WAYS
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/a.png", "plane/b.png"],
            r"train/ may be a split, or hold pictures like the 1 beside it \(plane/b\.png",
        ),
        (["train/a.png", "cover.png"], r"train/ may be a split, .* \(cover\.png\); give .*/train as the data set"),
        (["val/a.png", "valid/b.png", "c.png"], r"may be a split, or hold pictures like the 1 beside it"),
        (
            ["cats/train/a.png", "cats/test/b.png", "dogs/train/c.png"],
            "folders cats/test and cats/train have the n",
        ),
    ],
)
def test_a_folder_that_can_mean_two_things_is_refused_and_all_of_it_can_be_meant(tmp_path, names, message, streaming):
    folder = write_pictures(tmp_path / "photos", *names)
    with pytest.raises(UnknownSplitError, match=f"{message}.*name the split `all` to use every picture"):
        levels(folder, "train", streaming, 1)
    assert levels(folder, "all", streaming, len(names)) == list(range(len(names)))


def logged(caplog, path: Path, split: str = "train", **options) -> tuple[list[str], list[str]]:
    """The sentences, as information and as warnings, on the pictures of a folder."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "jet_hf"):
        load_pixels(DataSource(path=str(path)), split, PROCESSOR, **options)
    records = [record for record in caplog.records if record.name.startswith("jet_hf")]
    return tuple([each.getMessage() for each in records if each.levelname == level] for level in ("INFO", "WARNING"))


def test_the_numbers_of_pictures_found_used_and_passed_over_are_said(tmp_path, caplog):
    folder = write_pictures(tmp_path / "photos", *numbered(21))
    for name in ("notes.txt", "clip.MOV", "list.txt", ".DS_Store"):
        (folder / name).write_text("no picture")
    information, warnings = logged(caplog, folder)
    kinds, names = "2 .txt, 1 no suffix, 1 .mov", ".DS_Store, clip.MOV, list.txt and so on"
    assert information == [
        f"found 21 pictures in {folder}, using 21 as train; "
        f"passed over 4 files without the suffix of a picture ({kinds}): {names}.",
        f"split 'train' of {folder}: using 21 of 21 images.",
    ]
    assert not warnings
    information, _ = logged(caplog, folder, max_images=3)
    assert information[1] == f"split 'train' of {folder}: using 3 of 21 images; only the first 3 were asked for."
    information, _ = logged(caplog, folder, "train[:10]")
    assert information[0].startswith(f"found 21 pictures in {folder}, using 10 as train[:10]; passed over 4 files")


@pytest.mark.parametrize("script", ["train", "evaluate", "prepare_imagenet"])
def test_every_script_says_which_pictures_it_uses(tmp_path, script):
    folder = write_pictures(tmp_path / "photos", *(f"train/{name}" for name in numbered(3)), "val/a.png", "b.png")
    (folder / "notes.txt").write_text("no picture")
    sizes = {"image_size": 4, "patch_size": 2, "hidden_size": 8, "num_attention_heads": 1, "num_coupling_layers": 1}
    flags = {"dataset_path": folder, "output_dir": tmp_path / "out"}
    if script == "train":
        flags |= sizes | {"num_hidden_layers": 1, "train_batch_size": 2, "max_steps": 1, "num_samples": 1}
    elif script == "prepare_imagenet":
        flags |= {"image_size": 2, "num_shards": 1}
    else:
        model = JetForDensityEstimation(JetConfig(num_hidden_layers=1, **sizes))
        model.save_pretrained(tmp_path / "model")
        JetImageProcessor(size=4).save_pretrained(tmp_path / "model")
        flags = {"dataset": folder, "model": tmp_path / "model"}
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *(f"--{k}={v}" for k, v in flags.items())]
    process = subprocess.run(command, env=environment(tmp_path / "cache"), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = f"found 5 pictures in {folder} (3 in train/, 1 in val/), using"
    used = {"train": ["3 as train", "1 as validation"], "evaluate": ["1 as validation"]}.get(script, ["3 as train"])
    for part in used:
        assert (
            f"{found} {part}; passed over 1 file without the suffix of a picture (1 .txt): notes.txt."
            in process.stderr
        )
    assert "not using 1 picture beside the folders of splits: b.png" in process.stderr
    if script == "evaluate":
        assert json.loads(process.stdout)["num_images"] == 1


def test_pictures_beside_the_folders_of_splits_are_named(tmp_path, caplog):
    folder = write_pictures(tmp_path / "photos", "train/a.png", "val/b.png", "cover.png", "more/c.png")
    information, warnings = logged(caplog, folder)
    assert information[0] == f"found 4 pictures in {folder} (1 in train/, 1 in val/), using 1 as train."
    (warning,) = warnings
    assert "not using 2 pictures beside the folders of splits: cover.png, more/c.png" in warning


def test_entries_that_cannot_be_used_are_named_with_the_reason(tmp_path, caplog):
    folder = write_pictures(tmp_path / "photos", "a.png", "b/c.png", "._a.png", ".thumbnails/a.png")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "b" / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "a.png").read_bytes())
    _, (warning,) = logged(caplog, folder)
    for part in (
        "2 entries (hidden by a dot before the name): ._a.png, .thumbnails",
        "2 entries (broken link): gone.png, loop.png",
        "1 entry (link to a folder around it): b/up",
        "1 entry (not a regular file): pipe.png",
        r"1 entry (the name is not UTF-8): 'caf\udce9.png'",
    ):
        assert part in warning


@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_hidden_shards_are_passed_over_and_named(tmp_path, caplog, suffix):
    for name, level in ((f"a.{suffix}", 1), (f".train-00000-of-00004.{suffix}", 2)):
        if suffix == "tar":
            write_tar(tmp_path / name, {"a.png": level})
        else:
            picture = write_pictures(tmp_path / f"p{level}.folder", "a.png", first=level) / "a.png"
            features = datasets.Features({"image": datasets.Image()})
            row = {"image": [{"bytes": picture.read_bytes(), "path": None}]}
            datasets.Dataset.from_dict(row, features=features).to_parquet(tmp_path / name)
    (tmp_path / "data").mkdir()
    for file in tmp_path.glob(f"*.{suffix}"):
        file.rename(tmp_path / "data" / file.name)
    for streaming in (False, True):
        assert levels(tmp_path / "data", "train", streaming, 1) == [1]
    (warning,) = logged(caplog, tmp_path / "data")[1]
    assert f"1 entry (hidden by a dot before the name): .train-00000-of-00004.{suffix}" in warning


def test_a_folder_that_cannot_be_listed_is_an_error():
    with tempfile.TemporaryDirectory() as place:  # not in pytest's folder, which is root's alone
        os.chmod(place, 0o755)
        folder = write_pictures(Path(place), "a.png", "locked/b.png")
        (folder / "locked").chmod(0)
        user = os.geteuid()
        os.seteuid(user or 65534)  # root may read everything
        try:
            with pytest.raises(ValueError, match=r"the folder .*/locked/? cannot be listed: Permission denied"):
                open_split(DataSource(path=place), "train")
        finally:
            os.seteuid(user)
            (folder / "locked").chmod(0o755)


def test_several_kinds_of_data_in_a_folder_are_refused(tmp_path):
    folder = write_pictures(tmp_path / "photos", "a.png")
    (folder / "train.parquet").write_bytes(b"")
    (folder / "train.tar").write_bytes(b"")
    message = (
        r"holds several kinds of data: 1 pictures \(such as a\.png\), 1 parquet .*, 1 tars \(such as train\.tar\)"
    )
    with pytest.raises(ValueError, match=message):
        open_split(DataSource(path=str(folder)), "train")


# Classes


def labels_of(path: Path, split: str, streaming: bool, num_classes: int, **options) -> dict[int, int]:
    """The class of each grey level."""
    source = DataSource(path=str(path), streaming=streaming, **options)
    if not streaming:
        dataset = load_pixels(source, split, PROCESSOR, num_classes=num_classes).dataset
        rows = dataset.with_format("numpy")[:]
        return dict(zip(rows["pixels"][:, 0, 0, 0].tolist(), rows["label"].tolist(), strict=True))
    count = len(open_split(source, split))
    options = {"shuffle_buffer_size": 1, "num_classes": num_classes}
    (batch,) = stream_batches(source, split, PROCESSOR, Shares(count), 1, **options)
    return dict(zip(batch.pixels[:, 0, 0, 0].tolist(), batch.labels.tolist(), strict=True))


@BOTH_WAYS
def test_folders_are_classes_with_the_same_numbers_in_every_split(tmp_path, streaming):
    names = ["train/dog/a.png", "train/cat/b.png", "val/dog/c.png", "val/eel/d.png"]
    folder = write_pictures(tmp_path / "animals", *names)
    assert labels_of(folder, "train", streaming, 3) == {0: 1, 1: 0}
    assert labels_of(folder, "validation", streaming, 3) == {2: 1, 3: 2}
    whole = write_pictures(tmp_path / "vehicles", "train/a.png", "plane/b.png")
    assert labels_of(whole, "all", streaming, 2) == {0: 1, 1: 0}


@BOTH_WAYS
def test_classes_of_metadata(tmp_path, streaming):
    folder = write_pictures(tmp_path / "photos", "a.png", "b/c.png")
    metadata(folder, [{"file_name": "a.png", "kind": 4}])
    metadata(folder / "b", [{"file_name": "c.png", "kind": 2, "text": "of this folder"}])
    assert labels_of(folder, "train", streaming, 5, label_column="kind") == {0: 4, 1: 2}


@BOTH_WAYS
def test_pictures_without_a_class_are_an_error_where_classes_are_needed(tmp_path, streaming):
    folder = write_pictures(tmp_path / "photos", *numbered(4))
    metadata(folder, [{"file_name": name, "kind": 0} for name in numbered(2)])
    with pytest.raises(ValueError, match=r"got (0 to 0, 2|none, 1) missing; the first wrong ones are of .*02\.png"):
        labels_of(folder, "train", streaming, 1, label_column="kind")
    deep = write_pictures(tmp_path / "deep", "a/b.png", "c/d.png", "cover.png")
    with pytest.raises(ValueError, match=r"Folders are no classes here, .* several depths: cover\.png, .*/.\.png"):
        labels_of(deep, "train", streaming, 2)


def test_empty_metadata_are_none_and_columns_of_one_name_are_refused(tmp_path, caplog):
    folder = write_pictures(tmp_path / "photos", "a.png")
    for name in ("metadata.csv", "b/metadata.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert "passed over 2 files without the suffix of a picture" in logged(caplog, folder)[0][0]
    (folder / "metadata.csv").write_text("file_name,file_name\na.png,a.png\n")
    with pytest.raises(ValueError, match=r"metadata\.csv has several columns 'file_name', expected one a name"):
        levels(folder, "train", False, 1)


@pytest.mark.parametrize("name", ["max_images", "random_crops_per_image"])
def test_numbers_below_one_are_refused_by_name(tmp_path, name):
    source = DataSource(path=str(write_pictures(tmp_path / "photos", "a.png")))
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1, got 0"):
        load_pixels(source, "train", PROCESSOR, **{name: 0})


def test_pictures_that_the_card_of_a_folder_does_not_name_are_said(tmp_path, caplog):
    folder = write_pictures(tmp_path / "photos", "some/a.png", "some/b.png", "more/c.png")
    files = "data_files:\n  - split: train\n    path: some/*.png\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {files}---\n")
    assert logged(caplog, folder)[1] == [f"{folder}: not using 1 file that its card does not name: more/c.png."]


def test_metadata_that_do_not_fit_are_said(tmp_path, caplog):
    folder = write_pictures(tmp_path / "photos", "a.png")
    metadata(folder, [{"file_name": "a.png"}, {"file_name": "gone.png"}])
    _, (warning,) = logged(caplog, folder)
    assert "the metadata name 1 missing file: gone.png" in warning
    metadata(folder, [{"file_name": "a.png", "kind": 1}, {"file_name": "a.png", "kind": 2}])
    with pytest.raises(ValueError, match=r"the metadata have 2 rows for a\.png, expected one row a picture"):
        open_split(DataSource(path=str(folder)), "train")
    (folder / "metadata.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"the metadata file .*metadata\.jsonl cannot be read"):
        open_split(DataSource(path=str(folder)), "train")


# Listing and caching


def test_no_folder_is_listed_twice(tmp_path, monkeypatch):
    names = [f"{split}/{album}/{i}.png" for split in ("train", "val") for album in "ab" for i in range(3)]
    folder = write_pictures(tmp_path / "photos", *names)
    listed = []
    for module in ("scandir", "listdir"):
        original = getattr(os, module)
        monkeypatch.setattr(os, module, lambda path=".", original=original: listed.append(str(path)) or original(path))
    source = DataSource(path=str(folder))
    assert held_out_split(source) == "validation"
    for split in ("train", "validation"):
        load_pixels(source, split, PROCESSOR)
    list(stream_batches(source, "train", PROCESSOR, Shares(6), 1))
    ours = [os.path.normpath(path) for path in listed if path.startswith(str(folder))]
    assert len(ours) == len(set(ours)) == 7


@pytest.mark.parametrize("name", ["photo.png", "train.parquet", "saved"])
def test_replaced_files_of_the_same_size_and_time_are_read_anew(tmp_path, name):
    folder = tmp_path / "data"

    def write(level: int) -> None:
        if name == "photo.png":
            write_pictures(tmp_path / "new", name, first=level)
        else:
            pictures = write_pictures(tmp_path / "pictures", "a.png", first=level)
            features = datasets.Features({"image": datasets.Image()})
            data = datasets.Dataset.from_dict({"image": [str(pictures / "a.png")]}, features=features)
            (tmp_path / "new").mkdir()
            data.save_to_disk(tmp_path / "new") if name == "saved" else data.to_parquet(tmp_path / "new" / name)
        for file in (tmp_path / "new").iterdir():
            os.utime(file, ns=(10**18, 10**18))
        if folder.exists():
            folder.rename(tmp_path / f"old{level}")
        (tmp_path / "new").rename(folder)

    for level in (1, 2):
        write(level)
        assert levels(folder, "train", False, 1) == [level]


# Tars, parquet and saved data sets


def write_tar(path: Path, members: dict[str, bytes | int | dict]) -> Path:
    """A tar of files; a number stands for a picture of that grey level."""
    scratch = path.with_suffix(".folder")
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            file = scratch / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, int):
                Image.new("RGB", (2, 2), (content,) * 3).save(file, "PNG")
            else:
                file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
            tar.add(file, name)
    return path


@BOTH_WAYS
def test_every_picture_in_a_tar_is_an_image(tmp_path, streaming, caplog):
    members = {
        "a/0.jpg": 0,
        "a/0.txt": b"A caption.",
        "a/1.png": 1,
        "a/2.PNG": 2,
        "a/._3.png": b"junk of macOS",
        "a/4.JPG": 3,
        "a/5.jpg": 4,
        "a/5.png": 5,
        "a/6.left.png": 6,
    }
    tar = write_tar(tmp_path / "train.tar", members)
    assert levels(tar, "train", streaming, 7) == list(range(7))
    (tmp_path / "folder").mkdir()
    tar.rename(tmp_path / "folder" / "valid_2x2.tar")
    assert levels(tmp_path / "folder", "validation", streaming, 7) == list(range(7))
    if not streaming:  # otherwise another process says it
        assert "passed over 1 other member: a/._3.png" in caplog.text
    assert levels(tmp_path / "folder", "val", streaming, 3, image_column="jpg") == [0, 3, 4]


@BOTH_WAYS
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_links_in_a_tar_count_as_the_pictures_they_point_to(tmp_path, streaming, suffix, caplog):
    folder = write_pictures(tmp_path / "photos", "a.png", "b.png", "c.png", first=5)
    links = [
        ("hard.png", tarfile.LNKTYPE, "photos/a.png"),
        ("links/soft.png", tarfile.SYMTYPE, "../photos/b.png"),
        ("links/chain.png", tarfile.SYMTYPE, "soft.png"),
        ("links/ahead.png", tarfile.SYMTYPE, "../photos/c.png"),
        ("gone.png", tarfile.SYMTYPE, "nothing.png"),
        ("loop.png", tarfile.SYMTYPE, "loop.png"),
        ("pipe.png", tarfile.FIFOTYPE, ""),
    ]
    path = tmp_path / f"train{suffix}"
    with tarfile.open(path, "w:gz" if suffix == ".tgz" else "w") as tar:
        for name in ("a.png", "b.png"):
            tar.add(folder / name, f"photos/{name}")
        for name, kind, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        tar.add(folder / "c.png", "photos/c.png")
    assert levels(path, "train", streaming, 7) == [5, 5, 6, 6, 6, 7, 7]
    if not streaming:
        assert "3 members without data" in caplog.text and "gone.png, loop.png, pipe.png" in caplog.text


def test_the_members_of_a_tar_that_are_passed_over_are_said_at_each_start(tmp_path, caplog):
    tar = write_tar(tmp_path / "train.tar", {"a.png": 1, "notes.md": b"no picture"})
    sentence = f"{tar}: found 1 picture; passed over 1 other member: notes.md."
    for _ in range(2):
        assert logged(caplog, tar)[1] == [sentence]
    for notes in (Path(datasets.config.HF_DATASETS_CACHE) / "jet_hf").glob("*.json"):
        notes.unlink()
    assert logged(caplog, tar)[1] == [sentence]


@BOTH_WAYS
def test_classes_in_a_tar(tmp_path, streaming):
    members = {
        "0.cls": b"3",
        "0.png": 0,
        "1.jpg": 1,
        "1.cls": b"0\n",
        "2.json": {"kind": 2, "cls": 1},
        "2.png": 2,
    }
    tar = write_tar(tmp_path / "train.tar", members)
    assert labels_of_tar(tar, streaming, "cls") == {0: 3, 1: 0, 2: 1}
    with pytest.raises(ValueError, match=r"got (2 to 2, 2|none, 1) missing; the first wrong ones are of 0\.png"):
        labels_of_tar(tar, streaming, "kind")
    broken = write_tar(tmp_path / "broken.tar", {"0.png": 0, "0.cls": b"cat"})
    with pytest.raises(ValueError, match=r"0\.cls in .*broken\.tar must hold a class as a whole number, got b'cat'"):
        labels_of_tar(broken, streaming, "cls")


def labels_of_tar(tar: Path, streaming: bool, column: str) -> dict[int, int]:
    source = DataSource(path=str(tar), label_column=column, streaming=streaming)
    if not streaming:
        rows = load_pixels(source, "train", PROCESSOR, num_classes=4).dataset.with_format("numpy")[:]
        return dict(zip(rows["pixels"][:, 0, 0, 0].tolist(), rows["label"].tolist(), strict=True))
    options = {"shuffle_buffer_size": 1, "num_classes": 4}
    (batch,) = stream_batches(source, "train", PROCESSOR, Shares(3), 1, **options)
    return dict(zip(batch.pixels[:, 0, 0, 0].tolist(), batch.labels.tolist(), strict=True))


@BOTH_WAYS
def test_tar_files_joined_into_one_are_refused(tmp_path, streaming):
    first, second = (write_tar(tmp_path / f"{i}.tar", {"a.png": i}) for i in range(2))
    (tmp_path / "train.tar").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ValueError, match=r"train\.tar cannot be read: there are data behind its end"):
        levels(tmp_path / "train.tar", "train", streaming, 2)


def saved_splits(folder: Path, *names: str) -> Path:
    features = datasets.Features({"pixels": datasets.Array3D((3, 2, 2), "uint8")})
    saved = {
        name: datasets.Dataset.from_dict({"pixels": [np.full((3, 2, 2), i, np.uint8)]}, features=features)
        for i, name in enumerate(names)
    }
    datasets.DatasetDict(saved).save_to_disk(folder)
    return folder


@BOTH_WAYS
@pytest.mark.parametrize("name", ["val", "valid", "dev", "eval", "Validation", "testing"])
def test_splits_that_were_saved_under_another_name_are_held_out(tmp_path, name, streaming):
    folder = saved_splits(tmp_path / "saved", "train", name)
    split = held_out_split(DataSource(path=str(folder)))
    assert split == ("test" if name in ("eval", "testing") else "validation")
    for asked in (split, name):
        assert levels(folder, asked, streaming, 1) == [1]
    assert levels(folder, f"train+{split}", False, 2) == [0, 1]


def test_two_splits_that_may_both_be_meant_are_refused(tmp_path):
    folder = saved_splits(tmp_path / "saved", "train", "val", "dev")
    with pytest.raises(ValueError, match="the split 'validation' may mean val or dev, name one of them"):
        held_out_split(DataSource(path=str(folder)))
    assert levels(folder, "dev", False, 1) == [2]


def test_a_split_of_two_names_is_refused_in_a_folder_and_said_elsewhere(tmp_path, caplog):
    folder = write_pictures(tmp_path / "photos", "Train/a.png", "train/b.png", "training/c.png", "val/d.png")
    for spec in ("train", "train[:50%]", "train+val"):
        with pytest.raises(ValueError, match="the split 'train' may mean Train or train or training: rename the fold"):
            levels(folder, spec, False, 1)
    assert levels(folder / "train", "train", False, 1) == [1]
    assert logged(caplog, folder, "training")[1] == [
        f"{folder}: using the split training, and not Train and train beside it."
    ]
    saved = saved_splits(tmp_path / "saved", "train", "validation", "dev")
    assert logged(caplog, saved, "validation")[1] == [f"{saved}: using the split validation, and not dev beside it."]


@BOTH_WAYS
def test_shards_tell_their_split_by_a_whole_word_of_their_name_or_folder(tmp_path, streaming):
    names = ["train-00.parquet", "more.parquet", "dev/a.parquet", "test_b.parquet", "trainer.parquet"]
    features = datasets.Features({"image": datasets.Array3D((3, 2, 2), "uint8")})
    for i, name in enumerate(names):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        rows = {"image": [np.full((3, 2, 2), i, np.uint8)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / name)
    assert levels(tmp_path / "data", "train", streaming, 3) == [0, 1, 4]
    assert levels(tmp_path / "data", "validation", streaming, 1) == [2]
    assert levels(tmp_path / "data", "test", streaming, 1) == [3]
    (tmp_path / "data" / "train_val.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train_val\.parquet tells several splits, train and validation"):
        open_split(DataSource(path=str(tmp_path / "data")), "train")


@BOTH_WAYS
def test_numbered_shards_are_complete_or_refused(tmp_path, streaming):
    features = datasets.Features({"image": datasets.Array3D((3, 2, 2), "uint8")})
    data = datasets.Dataset.from_dict(
        {"image": [np.full((3, 2, 2), i, np.uint8) for i in range(4)]}, features=features
    )
    for i in range(4):
        data.select([i]).to_parquet(tmp_path / "data" / f"train-{i:05d}-of-00004.parquet")
    assert levels(tmp_path / "data", "train", streaming, 4) == [0, 1, 2, 3]
    (tmp_path / "data" / "train-00002-of-00004.parquet").rename(tmp_path / "elsewhere.parquet")
    with pytest.raises(ValueError, match=r"1 of the 4 shards train-\*-of-\*\.parquet are missing; the first one is 2"):
        levels(tmp_path / "data", "train", streaming, 3)
    (tmp_path / "elsewhere.parquet").rename(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"the shards .* are of 1 and of 4: keep those of one preparation"):
        levels(tmp_path / "data", "train", streaming, 4)


@BOTH_WAYS
def test_columns_that_are_named_after_kinds_of_files_are_one_column(tmp_path, streaming):
    pictures = write_pictures(tmp_path / "pictures", *numbered(3))
    first, second, third = ((pictures / name).read_bytes() for name in numbered(3))
    rows = {"jpg": [first, None, third], "png": [None, second, None]}
    (tmp_path / "data").mkdir()
    binary = datasets.Features({"jpg": datasets.Value("binary"), "png": datasets.Value("binary")})
    datasets.Dataset.from_dict(rows, features=binary).to_parquet(tmp_path / "data" / "train.parquet")
    assert levels(tmp_path / "data", "train", streaming, 3) == [0, 1, 2]


# The Hub, in place of which stand functions of `datasets`: no test needs a network


@pytest.fixture
def hub_data(monkeypatch):
    """A data set on the Hub, with the revision of its files."""
    saved = datasets.Dataset.from_dict({"image": [None]}, features=datasets.Features({"image": datasets.Image()}))
    revision = ["1a2b"]

    def load_builder(path: str, **options):
        files = {"val": [f"hf://datasets/{path}@{revision[0]}/val.parquet"]}
        return SimpleNamespace(config=SimpleNamespace(data_files=files), hash="of the builder")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(val=saved, eval=saved))
    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    return revision


def test_splits_of_the_hub_are_known_by_their_aliases_and_revision(hub_data):
    source = DataSource(name="someone/photos")
    assert held_out_split(source) == "validation"
    assert len(open_split(source, "validation")) == len(open_split(source, "test")) == 1
    assert len(open_split(source, "valid+test")) == 2
    first = stream_fingerprint(source, "validation")
    assert stream_fingerprint(source, "val") == first
    hub_data[0] = "3c4d"
    assert stream_fingerprint(source, "validation") != first
