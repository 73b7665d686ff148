"""Folders of images: every image is used, whatever its name, and everything that is not used is reported."""

import json
import logging
import os
import runpy
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

from jet_hf import JetConfig, JetForDensityEstimation, JetImageProcessor
from jet_hf.data import (
    BatchSharding,
    DataSource,
    ReadOptions,
    UnknownSplitError,
    decoding,
    held_out_split,
    load_pixels,
    open_split,
    split_to_score,
    stream_batches,
    stream_fingerprint,
)
from jet_hf.data.scan import FolderScan
from jet_hf.data.splits import held_out_rows


PROCESSOR = JetImageProcessor(size=2)
BOTH_WAYS = pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])


def write_images(folder: Path, *names: str, first: int = 0) -> Path:
    """Images of one gray level each, counted from `first`."""
    for level, name in enumerate(names, first):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}.get(name.rsplit(".")[-1].lower(), "PNG")
        Image.new("RGB", (2, 2), (level,) * 3).save(file, kind)
    return folder


def numbered(count: int, suffix: str = "png") -> list[str]:
    return [f"{i:02d}.{suffix}" for i in range(count)]


def array_dataset(*levels: int, column: str = "image") -> datasets.Dataset:
    """Arrays of one gray level each."""
    features = datasets.Features({column: datasets.Array3D((3, 2, 2), "uint8")})
    return datasets.Dataset.from_dict({column: [np.full((3, 2, 2), i, np.uint8) for i in levels]}, features=features)


def levels_and_labels(source: DataSource, split: str, count: int, num_classes: int | None = None) -> list[tuple]:
    """The gray level and the label of each image that a run uses, sorted by level. A stream must have `count`."""
    options = ReadOptions(num_classes=num_classes)
    if source.streaming:
        sharding = BatchSharding(count)
        (batch,) = stream_batches(source, split, PROCESSOR, options, sharding, range(1), shuffle_buffer_size=1)
        pixels, labels = batch.pixels, batch.labels
    else:
        rows = load_pixels(source, split, PROCESSOR, options).dataset.with_format("numpy", dtype=np.uint8)[:]
        pixels, labels = rows["pixels"], rows.get("label")
    found = pixels[:, 0, 0, 0].tolist()
    return sorted(zip(found, [None] * len(found) if labels is None else labels.tolist(), strict=True))


def levels(path: Path, split: str, streaming: bool, count: int, **fields) -> list[int]:
    source = DataSource(path=str(path), streaming=streaming, **fields)
    return [level for level, _ in levels_and_labels(source, split, count)]


def labels(path: Path, split: str, streaming: bool, count: int, num_classes: int, **fields) -> list[int]:
    """The labels of the images, sorted by their gray levels."""
    source = DataSource(path=str(path), streaming=streaming, **fields)
    return [label for _, label in levels_and_labels(source, split, count, num_classes)]


def logged(caplog, path: Path, split: str = "train", **options) -> tuple[list[str], list[str]]:
    """The messages on the images of a folder, at the levels INFO and WARNING."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "jet_hf"):
        load_pixels(DataSource(path=str(path)), split, PROCESSOR, ReadOptions(**options))
    records = [record for record in caplog.records if record.name.startswith("jet_hf")]
    return tuple([each.getMessage() for each in records if each.levelname == level] for level in ("INFO", "WARNING"))


def metadata(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# Which images are used, in which split


def captions(folder: Path) -> None:
    for i in range(9):
        (folder / f"{i}.txt").write_text("A caption.")


def linked_album(folder: Path) -> None:
    (folder / "linked").symlink_to(write_images(folder.parent / "elsewhere", *numbered(6), first=4))


FOLDERS = {
    "a word of training in one name": (["old train station.png", *numbered(20)], None),
    "names of splits": (["train.png", "test.png", "val.png"], None),
    "only test.png": (["test.png"], None),
    "an album with a word of training": ([f"{a}/{n}" for a in ("rome", "train trip") for n in numbered(6)], None),
    "suffixes": (
        ["a.Png", "b.pNg", "c.PNG", "d.jpeG", "e.TIF", "f.jpg.png", "g.v2.final.png", "a.png", "a.tif"],
        None,
    ),
    "names with a meaning in addresses and patterns": (["a::b/zip:/c[1]*.png", "d?/e#f%20.png", "ü 图.png"], None),
    "several depths": (["a.png", "b/c.png", "b/d/e.png"], None),
    "metadata of some": (numbered(12), lambda f: metadata(f, [{"file_name": n, "text": "x"} for n in numbered(10)])),
    "metadata of no image": (numbered(2), lambda f: (f / "metadata.csv").write_text("a,b\n1,2\n")),
    "more captions than images": (numbered(4), captions),
    "a linked album beside a real one": ([f"real/{name}" for name in numbered(4)], linked_album),
    "all in one folder": ([f"photos/{name}" for name in numbered(3)], None),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_all_images_of_a_folder_are_used_whatever_their_names(tmp_path, case):
    names, more = FOLDERS[case]
    folder = write_images(tmp_path / "photos", *names)
    if more:
        more(folder)
    expected = list(range(len(names) + 6 * (case == "a linked album beside a real one")))
    for streaming in (False, True) if case.startswith("names") else (False,):
        found = levels(folder, "train", streaming, len(expected))
        assert np.abs(np.subtract(found, expected)).max() <= 2 * any("jp" in name for name in names)  # JPEG rounds
    with pytest.raises(UnknownSplitError):
        held_out_split(DataSource(path=str(folder)))


def test_a_stream_mixes_the_images_of_all_folders(tmp_path):
    folder = write_images(tmp_path / "photos", *(f"{album}/{i:02d}.png" for album in "abcd" for i in range(25)))
    source = DataSource(path=str(folder), streaming=True)
    batches = stream_batches(source, "train", PROCESSOR, ReadOptions(), BatchSharding(20), range(5), 5)
    found = [batch.pixels[:, 0, 0, 0] for batch in batches]
    assert sorted(torch.cat(found).tolist()) == list(range(100))
    assert all(len(set((levels // 25).tolist())) == 4 for levels in found)


@pytest.mark.parametrize("layout", ["folders", "wrapped", "links", "dot", "names in other cases"])
def test_subfolders_with_whole_names_of_splits_are_the_splits(tmp_path, monkeypatch, layout):
    train, validation = {"names in other cases": ("Training", "VAL")}.get(layout, ("train", "validation"))
    folder = write_images(tmp_path / "real", *(f"{train}/{name}" for name in numbered(5)))
    write_images(folder, *(f"{validation}/train/{name}" for name in numbered(2)), first=5)
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
    assert held_out_split(DataSource(path=str(folder))) == "validation"
    for streaming in (False, True) if layout == "dot" else (False,):
        assert levels(folder, "train", streaming, 5) == [0, 1, 2, 3, 4]
        assert levels(folder, "validation", streaming, 2) == levels(folder, "val", streaming, 2) == [5, 6]
        assert levels(folder, "all", streaming, 7) == list(range(7))


def test_a_folder_without_a_held_out_split_can_be_divided(tmp_path, caplog):
    names = [f"{album}/{i:02d}.png" for album in "abcd" for i in range(25)]
    folder = write_images(tmp_path / "photos", *names)
    held_out = [10, 30, 50, 70, 90]
    for streaming in (False, True):
        assert levels(folder, "train[held_out]", streaming, 5) == held_out
        assert levels(folder, "train[kept]", streaming, 95) == sorted(set(range(100)) - set(held_out))
    assert split_to_score(DataSource(path=str(folder))) == "train[held_out]"
    assert "scoring train[held_out], the images that training holds out by default" in caplog.text
    for count, expected in ((15, 0), (16, 4), (50, 4), (200, 10), (14_000_000, 5000)):
        rows = held_out_rows(count)
        assert len(set(rows)) == len(rows) == expected and all(0 <= row < count for row in rows)
    few = write_images(tmp_path / "few", *numbered(15))
    with pytest.raises(UnknownSplitError, match="neither a validation nor a test split"):
        split_to_score(DataSource(path=str(few)))


def test_an_ambiguous_folder_is_refused_unless_all_images_are_requested(tmp_path):
    cases = {
        r"train/ may be a split, or hold images like the 1 beside it \(plane/b\.png": ["train/a.png", "plane/b.png"],
        r"train/ may be a split, .* \(cover\.png\); pass .*/train as the dataset": ["train/a.png", "cover.png"],
        "may be a split, or hold images like the 1 beside it": ["val/a.png", "valid/b.png", "c.png"],
        "folders cats/test and cats/train have the names": ["cats/train/a.png", "cats/test/b.png", "dogs/train/c.png"],
    }
    for i, (message, names) in enumerate(cases.items()):
        folder = write_images(tmp_path / str(i), *names)
        for streaming in (False, True) if i == 0 else (False,):
            with pytest.raises(UnknownSplitError, match=f"{message}.*pass the split `all` to use every image"):
                levels(folder, "train", streaming, 1)
            assert levels(folder, "all", streaming, len(names)) == list(range(len(names)))


# What is reported


def test_the_numbers_of_images_found_used_and_skipped_are_logged(tmp_path, caplog):
    folder = write_images(tmp_path / "photos", *numbered(21))
    for name in ("notes.txt", "clip.MOV", "list.txt", ".DS_Store"):
        (folder / name).write_text("no image")
    information, warnings = logged(caplog, folder)
    kinds, names = "2 .txt, 1 no suffix, 1 .mov", ".DS_Store, clip.MOV, list.txt and so on"
    assert information == [
        f"found 21 images in {folder}, using 21 as train; skipped 4 files without an image suffix ({kinds}): {names}.",
        f"split 'train' of {folder}: using 21 of 21 images.",
    ]
    assert not warnings
    information, _ = logged(caplog, folder, max_images=3)
    assert information[1] == f"split 'train' of {folder}: using 3 of 21 images; only the first 3 were requested."
    information, _ = logged(caplog, folder, "train[:10]")
    assert information[0].startswith(f"found 21 images in {folder}, using 10 as train[:10]; skipped 4 files")


def test_every_script_reports_which_images_it_uses(tmp_path, monkeypatch, caplog, capsys):
    folder = write_images(tmp_path / "photos", *(f"train/{name}" for name in numbered(3)), "val/a.png", "b.png")
    (folder / "notes.txt").write_text("no image")
    sizes = {"image_size": 4, "patch_size": 2, "hidden_size": 8, "num_attention_heads": 1, "num_coupling_layers": 1}
    JetForDensityEstimation(JetConfig(num_hidden_layers=1, **sizes)).save_pretrained(tmp_path / "model")
    JetImageProcessor(size=4).save_pretrained(tmp_path / "model")
    short = {"num_hidden_layers": 1, "train_batch_size": 2, "max_steps": 1, "num_samples": 1}
    runs = {
        "prepare_imagenet": {"output_dir": tmp_path / "prepared", "image_size": 2, "num_shards": 1},
        "evaluate": {"dataset": folder, "model": tmp_path / "model"},
        "train": {"output_dir": tmp_path / "run"} | sizes | short,
    }
    used = {"prepare_imagenet": ["3 as train"], "evaluate": ["1 as validation"]}
    scan, scanned = FolderScan.of, []
    monkeypatch.setattr(FolderScan, "of", lambda path: scanned.append(path) or scan(path))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    caplog.set_level(logging.NOTSET, "jet_hf")  # the scripts set it, and it is restored
    for script, flags in runs.items():
        flags = flags if "dataset" in flags else {"dataset_path": folder} | flags
        caplog.clear()
        monkeypatch.setattr(sys, "argv", [script, *(f"--{name}={value}" for name, value in flags.items())])
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
        assert scanned == [folder], script
        scanned.clear()
        for part in used.get(script, ["3 as train", "1 as validation"]):
            found = f"found 5 images in {folder} (3 in train/, 1 in val/), using {part}; skipped 1 file without an "
            assert f"{found}image suffix (1 .txt): notes.txt." in caplog.messages, script
        assert "not using 1 image beside the folders of splits: b.png" in caplog.text
        if script == "evaluate":
            assert '"num_images": 1' in capsys.readouterr().out


def test_files_that_cannot_be_used_are_named_with_the_reason(tmp_path, caplog):
    folder = write_images(tmp_path / "photos", "a.png", "b/c.png", "._a.png", ".thumbnails/a.png")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "b" / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "a.png").read_bytes())
    _, (warning,) = logged(caplog, folder)
    for part in (
        "2 entries (hidden by a leading dot): ._a.png, .thumbnails",
        "2 entries (broken link): gone.png, loop.png",
        "1 entry (link to a parent folder): b/up",
        "1 entry (not a regular file): pipe.png",
        r"1 entry (the name is not UTF-8): 'caf\udce9.png'",
    ):
        assert part in warning
    beside = write_images(tmp_path / "beside", "train/a.png", "val/b.png", "cover.png", "more/c.png")
    information, (warning,) = logged(caplog, beside)
    assert information[0] == f"found 4 images in {beside} (1 in train/, 1 in val/), using 1 as train."
    assert "not using 2 images beside the folders of splits: cover.png, more/c.png" in warning


@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_hidden_shards_are_skipped_and_named(tmp_path, caplog, suffix):
    (tmp_path / "data").mkdir()
    for name, level in ((f"a.{suffix}", 1), (f".train-00000-of-00004.{suffix}", 2)):
        if suffix == "tar":
            write_tar(tmp_path / name, {"a.png": level}).rename(tmp_path / "data" / name)
        else:
            array_dataset(level).to_parquet(tmp_path / "data" / name)
    for streaming in (False, True):
        assert levels(tmp_path / "data", "train", streaming, 1) == [1]
    information, (warning,) = logged(caplog, tmp_path / "data")
    assert f"1 entry (hidden by a leading dot): .train-00000-of-00004.{suffix}" in warning
    assert information[0].startswith(f"found 1 {suffix} file (1 of train) in {tmp_path / 'data'}")


def test_a_folder_that_cannot_be_listed_is_an_error():
    with tempfile.TemporaryDirectory() as place:  # pytest's own folder is accessible to its owner alone
        os.chmod(place, 0o755)
        folder = write_images(Path(place), "a.png", "locked/b.png")
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
    folder = write_images(tmp_path / "photos", "a.png")
    (folder / "train.parquet").write_bytes(b"")
    (folder / "train.tar").write_bytes(b"")
    message = r"several kinds of data: images \(1, such as a\.png\), parquet .*, tar files \(1, such as train\.tar\)"
    with pytest.raises(ValueError, match=message):
        open_split(DataSource(path=str(folder)), "train")


def test_images_that_the_card_of_a_folder_does_not_name_are_reported(tmp_path, caplog):
    folder = write_images(tmp_path / "photos", "some/a.png", "some/b.png", "more/c.png")
    files = "data_files:\n  - split: train\n    path: some/*.png\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {files}---\n")
    assert logged(caplog, folder)[1] == [f"{folder}: not using 1 file that its card does not name: more/c.png."]


# Classes and metadata


@BOTH_WAYS
def test_folders_are_classes_with_the_same_numbers_in_every_split(tmp_path, streaming):
    names = ["train/dog/a.png", "train/cat/b.png", "val/dog/c.png", "val/eel/d.png"]
    folder = write_images(tmp_path / "animals", *names)
    assert labels(folder, "train", streaming, 2, 3) == [1, 0]
    assert labels(folder, "validation", streaming, 2, 3) == [1, 2]
    whole = write_images(tmp_path / "vehicles", "train/a.png", "plane/b.png")
    assert labels(whole, "all", streaming, 2, 2) == [1, 0]


@BOTH_WAYS
def test_labels_of_metadata(tmp_path, streaming):
    folder = write_images(tmp_path / "photos", "a.png", "b/c.png")
    metadata(folder, [{"file_name": "a.png", "kind": 4}])
    metadata(folder / "b", [{"file_name": "c.png", "kind": 2, "text": "of this folder"}])
    assert labels(folder, "train", streaming, 2, 5, label_column="kind") == [4, 2]


@BOTH_WAYS
def test_images_without_a_label_are_an_error_if_labels_are_read(tmp_path, streaming):
    folder = write_images(tmp_path / "photos", *numbered(4))
    metadata(folder, [{"file_name": name, "kind": 0} for name in numbered(2)])
    with pytest.raises(ValueError, match=r"got (0 to 0, 2|none, 1) missing; the first wrong ones are of .*02\.png"):
        labels(folder, "train", streaming, 4, 1, label_column="kind")
    deep = write_images(tmp_path / "deep", "a/b.png", "c/d.png", "cover.png")
    with pytest.raises(ValueError, match=r"Folders are not classes here: .* depths \(cover\.png, .*/.\.png\)"):
        labels(deep, "train", streaming, 3, 2)


def test_metadata_that_do_not_match_are_reported(tmp_path, caplog):
    folder = write_images(tmp_path / "photos", "a.png")
    for name in ("metadata.csv", "b/metadata.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert "skipped 2 files without an image suffix" in logged(caplog, folder)[0][0]
    metadata(folder, [{"file_name": "a.png"}, {"file_name": "gone.png"}])
    _, (warning,) = logged(caplog, folder)
    assert "the metadata name 1 missing file: gone.png" in warning
    for content, message in (
        ('{"file_name": "a.png", "kind": 1}\n' * 2, r"the metadata have 2 rows for a\.png, expected at most one per"),
        ("{", r"the metadata file .*metadata\.jsonl cannot be read"),
    ):
        (folder / "metadata.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            open_split(DataSource(path=str(folder)), "train")
    (folder / "metadata.csv").write_text("file_name,file_name\na.png,a.png\n")
    with pytest.raises(ValueError, match=r"metadata\.csv has several columns named 'file_name', expected one"):
        open_split(DataSource(path=str(folder)), "train")


# Scanning and caching


def test_no_folder_is_listed_twice(tmp_path, monkeypatch):
    names = [f"{split}/{album}/{i}.png" for split in ("train", "val") for album in "ab" for i in range(3)]
    folder = write_images(tmp_path / "photos", *names)
    listed = []
    for name in ("scandir", "listdir"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path=".", original=original: listed.append(str(path)) or original(path))
    source = DataSource(path=str(folder))
    assert held_out_split(source) == "validation"
    for split in ("train", "validation"):
        load_pixels(source, split, PROCESSOR)
    list(stream_batches(source, "train", PROCESSOR, ReadOptions(), BatchSharding(6), range(1)))
    ours = [os.path.normpath(path) for path in listed if path.startswith(str(folder))]
    assert len(ours) == len(set(ours)) == 7


def test_a_restart_reads_no_image_again(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "photos", *(f"{album}/{i}.png" for album in "ab" for i in range(10)))
    for _ in range(2):
        source = DataSource(path=str(folder))  # as in a new process
        for split in ("train[kept]", split_to_score(source)):
            assert len(load_pixels(source, split, PROCESSOR, ReadOptions(num_classes=2)).dataset) in (16, 4)
        monkeypatch.setattr(decoding, "_read_file", lambda image: pytest.fail(f"read {image} again"))


@pytest.mark.parametrize("name", ["photo.png", "train.parquet", "saved"])
def test_replaced_files_of_the_same_size_and_time_are_read_again(tmp_path, name):
    folder = tmp_path / "data"
    for level in (1, 2):
        new = tmp_path / "new"
        if name == "photo.png":
            write_images(new, name, first=level)
        elif name == "saved":
            array_dataset(level).save_to_disk(new)
        else:
            new.mkdir()
            array_dataset(level).to_parquet(new / name)
        for file in new.iterdir():
            os.utime(file, ns=(10**18, 10**18))
        if folder.exists():
            folder.rename(tmp_path / "old")
        new.rename(folder)
        assert levels(folder, "train", False, 1) == [level]


# Tars, parquet and saved datasets


def write_tar(path: Path, members: dict[str, bytes | int | dict]) -> Path:
    """A tar of files; an integer stands for an image of that gray level."""
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
def test_every_image_file_in_a_tar_is_an_image(tmp_path, streaming, caplog):
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
    if not streaming:  # otherwise another process logs it
        assert "skipped 1 other member: a/._3.png" in caplog.text
    assert levels(tmp_path / "folder", "val", streaming, 3, image_column="jpg") == [0, 3, 4]


@BOTH_WAYS
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_links_in_a_tar_count_as_the_images_they_point_to(tmp_path, streaming, suffix, caplog):
    folder = write_images(tmp_path / "photos", "a.png", "b.png", "c.png", first=5)
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


def test_the_skipped_members_of_a_tar_are_reported_at_each_start(tmp_path, caplog):
    tar = write_tar(tmp_path / "train.tar", {"a.png": 1, "notes.md": b"no image"})
    sentence = f"{tar}: found 1 image; skipped 1 other member: notes.md."
    for _ in range(2):
        assert logged(caplog, tar)[1] == [sentence]
    for notes in (Path(datasets.config.HF_DATASETS_CACHE) / "jet_hf").glob("*.json"):
        notes.unlink()
    assert logged(caplog, tar)[1] == [sentence]


@BOTH_WAYS
def test_labels_in_a_tar(tmp_path, streaming):
    members = {
        "0.cls": b"3",
        "0.png": 0,
        "1.jpg": 1,
        "1.cls": b"0\n",
        "2.json": {"kind": 2, "cls": 1},
        "2.png": 2,
    }
    tar = write_tar(tmp_path / "train.tar", members)
    assert labels(tar, "train", streaming, 3, 4, label_column="cls") == [3, 0, 1]
    assert labels(tar, "train", streaming, 3, 4) == [3, 0, 1]  # found as in preparation
    with pytest.raises(ValueError, match=r"got (2 to 2, 2|none, 1) missing; the first wrong ones are of 0\.png"):
        labels(tar, "train", streaming, 3, 4, label_column="kind")
    broken = write_tar(tmp_path / "broken.tar", {"0.png": 0, "0.cls": b"cat"})
    with pytest.raises(ValueError, match=r"0\.cls in .*broken\.tar must hold an integer label, got b'cat'"):
        labels(broken, "train", streaming, 1, 4, label_column="cls")


@BOTH_WAYS
def test_concatenated_tar_files_are_refused(tmp_path, streaming):
    first, second = (write_tar(tmp_path / f"{i}.tar", {"a.png": i}) for i in range(2))
    (tmp_path / "train.tar").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ValueError, match=r"train\.tar cannot be read: there are data after its end"):
        levels(tmp_path / "train.tar", "train", streaming, 2)


def saved_splits(folder: Path, *names: str) -> Path:
    datasets.DatasetDict({name: array_dataset(i) for i, name in enumerate(names)}).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("name", ["val", "valid", "dev", "eval", "Validation", "testing"])
def test_saved_splits_are_found_by_their_aliases(tmp_path, name):
    folder = saved_splits(tmp_path / "saved", "train", name)
    split = held_out_split(DataSource(path=str(folder)))
    assert split == ("test" if name in ("eval", "testing") else "validation")
    for asked in (split, name):
        assert levels(folder, asked, False, 1) == [1]
    assert levels(folder, split, True, 1) == [1]
    assert levels(folder, f"train+{split}", False, 2) == [0, 1]


def test_ambiguous_aliases_are_refused_in_folders_and_reported_elsewhere(tmp_path, caplog):
    saved = saved_splits(tmp_path / "several", "train", "val", "dev")
    with pytest.raises(ValueError, match="the split 'validation' may mean val or dev: pass one of these names"):
        held_out_split(DataSource(path=str(saved)))
    assert levels(saved, "dev", False, 1) == [2]
    folder = write_images(tmp_path / "photos", "Train/a.png", "train/b.png", "training/c.png", "val/d.png")
    for spec in ("train", "train[:50%]", "train+val"):
        with pytest.raises(ValueError, match="the split 'train' may mean Train or train or training: rename the fold"):
            levels(folder, spec, False, 1)
    assert levels(folder / "train", "train", False, 1) == [1]
    assert logged(caplog, folder, "training")[1] == [
        f"{folder}: using the split training, but not its aliases Train and train."
    ]
    saved = saved_splits(tmp_path / "saved", "train", "validation", "dev")
    assert logged(caplog, saved, "validation")[1] == [f"{saved}: using the split validation, but not its aliases dev."]


def test_the_split_of_a_shard_is_a_whole_word_of_its_name_or_folder(tmp_path):
    for i, name in enumerate(
        ["train-00.parquet", "more.parquet", "dev/a.parquet", "test_b.parquet", "trainer.parquet"]
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        array_dataset(i).to_parquet(tmp_path / name)
    assert levels(tmp_path, "train", False, 3) == [0, 1, 4]
    assert levels(tmp_path, "validation", True, 1) == [2]
    assert levels(tmp_path, "test", False, 1) == [3]
    (tmp_path / "train_val.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train_val\.parquet names several splits, train and validation"):
        open_split(DataSource(path=str(tmp_path)), "train")


def test_numbered_shards_are_complete_or_refused(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(4):
        array_dataset(i).to_parquet(tmp_path / "data" / f"train-{i:05d}-of-00004.parquet")
    for streaming in (False, True):
        assert levels(tmp_path / "data", "train", streaming, 4) == [0, 1, 2, 3]
    source = DataSource(path=str(tmp_path / "data"))
    (tmp_path / "data" / "train-00002-of-00004.parquet").rename(tmp_path / "elsewhere.parquet")
    with pytest.raises(ValueError, match=r"1 of the 4 shards train-\*-of-\*\.parquet are missing; .* one is 2"):
        open_split(DataSource(path=source.path), "train")
    (tmp_path / "elsewhere.parquet").rename(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"the shards .* belong to sets of 1 and 4: keep only one set"):
        open_split(DataSource(path=source.path), "train")


@BOTH_WAYS
def test_columns_that_are_named_after_image_formats_are_merged(tmp_path, streaming):
    images = write_images(tmp_path / "images", *numbered(3))
    first, second, third = ((images / name).read_bytes() for name in numbered(3))
    rows = {"jpg": [first, None, third], "png": [None, second, None]}
    binary = datasets.Features({"jpg": datasets.Value("binary"), "png": datasets.Value("binary")})
    datasets.Dataset.from_dict(rows, features=binary).to_parquet(tmp_path / "train.parquet")
    assert levels(tmp_path / "train.parquet", "train", streaming, 3) == [0, 1, 2]


# The Hub. Functions of `datasets` are replaced, so no test needs a network.


@pytest.fixture
def hub_revision(monkeypatch):
    """The revision of the files of a dataset on the Hub, in a list to change it."""
    saved = datasets.Dataset.from_dict({"image": [None]}, features=datasets.Features({"image": datasets.Image()}))
    revision = ["1a2b"]

    def load_builder(path: str, **options):
        files = {"val": [f"hf://datasets/{path}@{revision[0]}/val.parquet"]}
        return SimpleNamespace(config=SimpleNamespace(data_files=files), hash="of the builder")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(val=saved, eval=saved))
    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    return revision


def test_splits_of_the_hub_are_known_by_their_aliases_and_revision(hub_revision):
    source = DataSource(name="someone/photos")
    assert held_out_split(source) == "validation"
    assert len(open_split(source, "validation")) == len(open_split(source, "test")) == 1
    assert len(open_split(source, "valid+test")) == 2
    first = stream_fingerprint(source, "validation")
    assert stream_fingerprint(source, "val") == first
    hub_revision[0] = "3c4d"
    assert stream_fingerprint(source, "validation") != first
