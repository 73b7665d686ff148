"""Scores of datasets, and scripts/evaluate.py."""

import csv
import importlib.metadata
import json
import math
import re
import runpy
import shutil
import sys

import datasets
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, random_bytes, tiny_config, tiny_model
from PIL import Image
from train_process import run_in_two, write_images

import jet_hf
from jet_hf import JetImageProcessor
from jet_hf.analysis.evaluation import (
    Evaluation,
    check_scores_file,
    data_title,
    describe_evaluation,
    evaluate,
    evaluation_record,
    image_names,
    write_scores,
)
from jet_hf.analysis.sampling import sample_images
from jet_hf.data import DataSource, PixelSplit, ReadOptions, UnknownSplitError, held_out_split, load_pixels
from jet_hf.model.modeling_jet import scale_bytes
from jet_hf.utils.noise import uniform_noise


SCRIPT = str(ROOT / "scripts" / "evaluate.py")
NUM_IMAGES = 7
DIMS = 3 * 8 * 8


@pytest.fixture(scope="module")
def pixels():
    features = datasets.Features({"pixels": datasets.Array3D((3, 8, 8), "uint8")})
    images = random_bytes(NUM_IMAGES, tiny_config()).numpy()
    return datasets.Dataset.from_dict({"pixels": list(images)}, features=features)


@torch.no_grad()
def nats(model, draw: int, seed: int = 0) -> torch.Tensor:
    """Log-likelihood of every image with one draw of noise, all in one batch."""
    noise = uniform_noise(seed, torch.arange(NUM_IMAGES), (3, 8, 8), stream=2**32 - 1 - draw)
    images = random_bytes(NUM_IMAGES, model.config) / 127.5 - 1
    return model(images, noise=noise).log_likelihood.double()


def test_one_draw_is_the_models_own_score(model, pixels):
    result = evaluate(model, pixels, seed=3)
    expected = -nats(model, 0, seed=3) / (DIMS * math.log(2))
    torch.testing.assert_close(result.bits_per_dim, expected, rtol=1e-6, atol=0)
    assert result.bits_per_dim.dtype == torch.float64 and result.num_noise_samples == 1
    assert not torch.equal(evaluate(model, pixels, seed=4).bits_per_dim, result.bits_per_dim)


def test_more_draws_give_the_importance_weighted_bound(model, pixels):
    likelihoods = torch.stack([nats(model, draw) for draw in range(5)])
    # In units of the largest one, so that nothing overflows: an image has hundreds of nats.
    largest = likelihoods.max(dim=0).values
    mean = torch.stack([torch.exp(row - largest) for row in likelihoods]).mean(dim=0)
    expected = -(largest + torch.log(mean)) / (DIMS * math.log(2))
    result = evaluate(model, pixels, num_noise_samples=5)
    torch.testing.assert_close(result.bits_per_dim, expected, rtol=1e-6, atol=0)
    assert result.num_noise_samples == 5
    # It is at least as tight as the mean over the same draws, and tighter where they differ.
    single = -likelihoods.mean(dim=0) / (DIMS * math.log(2))
    assert (result.bits_per_dim < single).all()


def test_images_are_not_scored_with_the_noise_that_training_draws(model, pixels):
    """Training takes stream 0, under indices and often a seed that are the same numbers."""
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["noise"]), with_kwargs=True)
    evaluate(model, pixels, num_noise_samples=3)
    noise = torch.stack([uniform_noise(0, torch.arange(NUM_IMAGES), (3, 8, 8)), *seen]).flatten(2)
    assert len(seen) == 3 and len(noise.flatten(0, 1).unique(dim=0)) == 4 * NUM_IMAGES


def test_the_batch_size_changes_nothing(model, pixels):
    """The mean is over the images: a last batch of one image does not count as much as the others."""
    expected = evaluate(model, pixels, batch_size=3, num_noise_samples=2)
    assert expected.mean == pytest.approx(np.mean(expected.bits_per_dim.numpy()), rel=1e-12)
    for batch_size in (1, 2, 7, 64):
        ours = evaluate(model, pixels, batch_size=batch_size, num_noise_samples=2).bits_per_dim
        torch.testing.assert_close(ours, expected.bits_per_dim, rtol=1e-6, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_and_no_gradients_are_kept(model, pixels, training):
    seen = []
    hook = model.register_forward_hook(lambda module, _, out: seen.append((module.training, out.loss.requires_grad)))
    model.train(training)
    evaluate(model, pixels)
    assert seen == [(False, False)] and model.training is training and model.jet.training is training
    assert torch.is_grad_enabled()
    hook.remove()

    def fail(*_):
        raise RuntimeError("no more memory")

    model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        evaluate(model, pixels)
    assert model.training is training


def test_mean_and_standard_error_by_hand():
    result = Evaluation(torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64))
    assert result.mean == 3
    assert result.standard_error == pytest.approx(math.sqrt((4 + 1 + 1 + 4) / 3 / 4))
    assert Evaluation(torch.tensor([2.5])).mean == 2.5
    assert math.isnan(Evaluation(torch.tensor([2.5])).standard_error)
    with pytest.raises(ValueError, match="no image was scored"):
        Evaluation(torch.tensor([]))


def test_invalid_arguments_are_refused(model, pixels):
    for argument in ("batch_size", "num_noise_samples"):
        for value in (0, -1, 1.5):
            with pytest.raises(ValueError, match=f"`{argument}` must be a whole number of at least 1"):
                evaluate(model, pixels, **{argument: value})
    with pytest.raises(ValueError, match="`dataset` has no images"):
        evaluate(model, pixels.select([]))


def test_the_place_of_a_scores_file_is_checked(tmp_path, pixels):
    (tmp_path / "file").touch()
    source = DataSource(name="a/b")
    check_scores_file(tmp_path / "scores.json", source)
    check_scores_file(tmp_path / "file", source)
    scores = Evaluation(torch.tensor([3.0]))
    for path, reason in (
        (tmp_path, "it is no regular file"),
        ("/dev/null", "it is no regular file"),
        (tmp_path / "missing" / "scores.json", "No such file or directory"),
        (tmp_path / "file" / "scores.json", "Not a directory"),
        ("/proc/scores.csv", ""),  # which even root cannot write
    ):
        message = f"`scores_file` must be a file in an existing, writable folder, got {path}: {reason}"
        with pytest.raises(ValueError, match=re.escape(message)):
            check_scores_file(path, source)
        with pytest.raises(ValueError, match="`scores_file` must be a file"):
            write_scores(path, scores, source, "test", PixelSplit(pixels, 0, None))
    (tmp_path / "data.parquet").touch()
    for dataset, path in (("data.parquet", "data.parquet"), (".", "scores.csv"), (".", "a/../metadata.csv")):
        with pytest.raises(ValueError, match=r"`scores_file` .* must not lie inside `dataset` "):
            check_scores_file(tmp_path / path, DataSource(path=str(tmp_path / dataset)))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "data.parquet"}


def test_only_bytes_are_read(model, pixels):
    """Images scaled to [0, 1] would become zeros, and score well."""
    for dtype, scale in (("float32", 255), ("int64", 1)):
        images = np.array(pixels["pixels"]) / scale
        features = datasets.Features({"pixels": datasets.Array3D((3, 8, 8), dtype)})
        scaled = datasets.Dataset.from_dict({"pixels": list(images.astype(dtype))}, features=features)
        with pytest.raises(ValueError, match=r"a column `pixels` of uint8 or uint16 arrays \(C, H, W\), got Array3D"):
            evaluate(model, scaled)
        with pytest.raises(ValueError, match=r"`pixels` must be bytes .*got torch.float64"):
            scale_bytes(torch.from_numpy(images).double())


def test_labels_are_checked_before_anything_is_scored(pixels):
    conditional = tiny_model(num_classes=3)
    for label, accepted in ((0, True), (3, True), (4, False), (-1, False)):
        labeled = pixels.add_column("label", [label] + [1] * (NUM_IMAGES - 1))
        if accepted:  # 3 stands for no label
            evaluate(conditional, labeled)
        else:
            with pytest.raises(ValueError, match="classes of `dataset`"):
                evaluate(conditional, labeled)


def test_a_float64_model_is_scored_and_sampled(pixels):
    model = tiny_model()
    expected = evaluate(model, pixels).bits_per_dim
    torch.testing.assert_close(evaluate(model.double(), pixels).bits_per_dim, expected, rtol=1e-5, atol=0)
    assert len(sample_images(model, JetImageProcessor(size=8), 2)) == 2
    with pytest.raises(ValueError, match=r"the processor must scale bytes to \[-1, 1\].* do_normalize=False"):
        sample_images(model, JetImageProcessor(size=8, do_normalize=False), 2)


def test_reports_say_which_release_and_which_lossy_format(pixels):
    scores = Evaluation(torch.tensor([3.0], dtype=torch.float64), num_noise_samples=4)
    source = DataSource(name="someone/imagenet", release="imagenet1k_vandenoord")
    described = describe_evaluation(scores, source, "validation", PixelSplit(pixels, 2, "JPEG, PNG"))
    assert described["release"] == "downsampled ImageNet-1k of van den Oord et al."
    assert described["lossy_source_format"] == "JPEG, PNG" and described["num_skipped"] == 2
    assert described["standard_error"] is None  # JSON knows no NaN
    record = evaluation_record(source, "validation", described)
    assert (record.dataset_name, record.dataset_type) == (described["release"], "someone/imagenet")
    assert (record.num_images, record.bits_per_dim, record.num_noise_samples) == (1, 3.0, 4)
    plain = describe_evaluation(scores, DataSource(name="a/b"), "test", PixelSplit(pixels, 0, "PNG"))
    assert plain["release"] is None and plain["lossy_source_format"] is None
    assert evaluation_record(DataSource(path="/home/me/cats"), "test", plain).dataset_name == "cats"


def test_reports_need_no_installed_package(pixels, monkeypatch):
    """A checkout on the path has no metadata of its own."""
    find = importlib.metadata.Distribution.from_name

    def from_name(name):
        if name == "jet_hf":
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", from_name)
    scores = Evaluation(torch.tensor([3.0, 4.0]).double())
    described = describe_evaluation(scores, DataSource(name="a/b"), "test", PixelSplit(pixels, 0, "PNG"))
    assert described["versions"]["jet_hf"] == jet_hf.__version__


def test_a_release_that_its_files_tell_is_named_without_being_given(tmp_path):
    (tmp_path / "val_data.npz").touch()
    assert data_title(DataSource(path=str(tmp_path))) == "downsampled ImageNet-1k of Chrabaszcz et al."


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model with a card, and folders of images."""
    place = tmp_path_factory.mktemp("evaluate")
    tiny_model().save_pretrained(place / "model")
    JetImageProcessor(size=8, num_channels=3).save_pretrained(place / "model")
    (place / "model" / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    write_images(place / "images", num_train=3, num_validation=5)
    write_images(place / "more", num_train=2, num_validation=2)
    (place / "more" / "validation").rename(place / "more" / "test")
    write_images(place / "train only", num_train=2, num_validation=0)
    (place / "bad card").mkdir()
    (place / "bad card" / "README.md").write_text("---\nlicense: [\n---\n")
    return place


def command(place, *flags: str) -> list[str]:
    return [SCRIPT, "--model", str(place / "model"), "--dataset", str(place / "images"), *flags]


def run_here(monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(SCRIPT, run_name="__main__")


def test_the_script_gives_the_same_from_one_process_and_two(place, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    arguments = command(place, "--num-noise-samples", "3", "--batch_size", "2", "--write_model_card")
    run_here(monkeypatch, arguments)
    output, table = capsys.readouterr()
    one = json.loads(output)

    two = json.loads(run_in_two(arguments, place / "cache"))  # nothing else on stdout, and from one process only
    for name in ("bits_per_dim", "standard_error"):
        assert two.pop(name) == pytest.approx(one[name], rel=1e-5)
        assert name in table and str(one[name]) in table
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert one["images_per_second"] > 0 and two["images_per_second"] > 0
    for name in two.keys() - {"num_processes", "images_per_second"}:
        assert two[name] == one[name], name
    assert one["versions"]["torch"] == torch.__version__
    expected = {"split": "validation", "num_images": 5, "num_skipped": 0, "release": None, "num_noise_samples": 3}
    assert {name: one[name] for name in expected} == expected

    _, card, text = (place / "model" / "README.md").read_text().split("---\n", 2)
    assert text == "A model.\n" and yaml.safe_load(card)["license"] == "mit"
    (result,) = yaml.safe_load(card)["model-index"][0]["results"]  # the second run took the place of the first
    assert (result["dataset"]["name"], result["dataset"]["split"]) == ("images", "validation")
    (metric,) = result["metrics"]
    assert metric["value"] == pytest.approx(one["bits_per_dim"], rel=1e-5)
    assert metric["args"]["standard_error"] == pytest.approx(one["standard_error"], rel=1e-5)
    assert metric["args"]["num_images"] == 5 and metric["args"]["num_noise_samples"] == 3


def test_splits_and_limits_that_are_asked_for(place, monkeypatch, capsys, model):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    run_here(monkeypatch, command(place, "--split", "train", "--max_images", "2", "--seed", "4"))
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["num_images"], result["seed"]) == ("train", 2, 4)
    scores = place / "scores.json"
    run_here(monkeypatch, command(place, "--dataset", str(place / "more"), "--scores_file", str(scores)))
    result = json.loads(capsys.readouterr().out)
    assert result["split"] == "test"
    written = json.loads(scores.read_text())
    assert (written["dataset"], written["split"], written["num_images"]) == ("more", "test", 2)
    assert sum(written["bits_per_dim"]) / 2 == pytest.approx(result["bits_per_dim"], abs=1e-4)
    with pytest.raises(UnknownSplitError, match="neither a validation nor a test split"):
        held_out_split(DataSource(path=str(place / "train only")))


def test_scores_have_the_names_of_their_images_and_full_precision(place, tmp_path, monkeypatch, capsys, model):
    """An image that cannot be decoded is left out, and shifts no name."""
    folder, scores = tmp_path / "images", tmp_path / "scores.csv"
    shutil.copytree(place / "images" / "validation", folder / 'deep, "er"')
    (folder / 'deep, "er"' / "1.png").write_bytes(b"not an image")
    flags = ["--dataset", str(folder), "--split", "train", "--scores_file", str(scores)]
    with pytest.raises(SystemExit, match=r"error: 1 of 5 images .* cannot be decoded, more than the allowed share"):
        run_here(monkeypatch, command(place, *flags))
    assert not scores.exists()
    run_here(monkeypatch, command(place, *flags, "--max_undecodable_share", "0.2"))
    result = json.loads(capsys.readouterr().out)
    with scores.open(newline="") as file:
        table = {row["name"]: float(row["bits_per_dim"]) for row in csv.DictReader(file)}
    assert list(table) == [f'deep, "er"/{i}.png' for i in (0, 2, 3, 4)]
    assert result["num_skipped"] == 1 and np.mean(list(table.values())) == result["bits_per_dim"]
    # Scores by name are those of the image alone, whose noise depends on its row.
    processor = JetImageProcessor(size=8)
    for row, (name, bits) in enumerate(table.items()):
        pixels = processor(Image.open(folder / name), return_tensors="pt").pixel_values
        noise = uniform_noise(0, torch.tensor([row]), (3, 8, 8), stream=2**32 - 1)
        with torch.no_grad():
            assert bits == pytest.approx(model(pixels, noise=noise).bits_per_dim.item(), abs=1e-5), name


def test_names_of_crops_and_of_images_without_files(place, tmp_path, pixels):
    source = DataSource(path=str(place / "images"))
    processor = JetImageProcessor(size=4)
    crops = load_pixels(source, "validation", processor, ReadOptions(random_crops_per_image=2, max_images=2))
    assert image_names(source, crops) == [f"validation/{i}.png" for i in (0, 0, 1, 1)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    stored = [(place / "images" / "train" / f"{i}.png").read_bytes() for i in range(3)]
    rows = [{"bytes": data, "path": None} for data in (stored[0], b"broken", stored[1], stored[2])]
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "train.parquet")
    source = DataSource(path=str(tmp_path / "train.parquet"))
    options = ReadOptions(random_crops_per_image=2, max_undecodable_share=0.5)
    assert image_names(source, load_pixels(source, "train", processor, options)) == ["0", "0", "2", "2", "3", "3"]
    write_scores(
        tmp_path / "s.csv", Evaluation(torch.ones(NUM_IMAGES).double()), source, "x", PixelSplit(pixels, 0, None)
    )
    assert (tmp_path / "s.csv").read_text() == "name,bits_per_dim\n" + "".join(f"{i},1.0\n" for i in range(NUM_IMAGES))


def test_wrong_input_ends_in_one_line(place, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    for flags, message in (
        (["--model", "nowhere"], "find them in the cached files"),
        (["--dataset", "no/where"], "no/where"),
        (["--split", "tset"], "no split 'tset'"),
        (["--image_column", "jpeg"], "`image_column` is 'jpeg'"),
        (["--dataset_release", "imagenet"], "`dataset_release` must be one of"),
        (["--dataset_release", "imagenet1k_vandenoord"], "49,999"),
        (["--mixed_precision", "int3"], "int3"),
        (["--model", "someone/model", "--write_model_card"], "needs a folder with a card"),
        (["--model", str(place / "bad card"), "--write_model_card"], "the metadata of"),
        (["--scores_file", str(place / "images" / "metadata.csv")], "must not lie inside `dataset`"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_here(monkeypatch, command(place, *flags))
        text = stopped.value.code
        assert text.startswith("error: ") and message in text and "\n" not in text, flags
        assert capsys.readouterr().out == ""


def test_processes_that_do_not_see_each_other_are_refused(place, monkeypatch, capsys):
    """`accelerate launch` starts such processes without GPUs: each would score everything, and print."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", command(place))
    with pytest.raises(SystemExit, match="ACCELERATE_USE_CPU=true"):
        runpy.run_path(SCRIPT, run_name="__main__")
    assert capsys.readouterr().out == ""
