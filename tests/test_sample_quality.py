"""Figures for samples: closed forms, features, and `jet-hf evaluate --samples`."""

import json
import math
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import ROOT, random_bytes, tiny_config, tiny_model
from hub_repos import card_errors, card_metadata
from huggingface_hub import ModelCard
from PIL import Image
from train_process import write_images
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification

import jet_hf_cli
from examples.demo import read_digits
from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.evaluation import score_classes, score_images
from jet_hf.analysis.features import PixelFeatures, build_extractor, extract_features
from jet_hf.analysis.sample_quality import (
    FeatureSet,
    SampleOptions,
    classifier_accuracy,
    compare,
    evaluate_samples,
    frechet_distance,
    kernel_distance,
    nearest_neighbor_accuracy,
    precision_recall,
    seam_strength,
)
from jet_hf.analysis.sampling import sample_images, sample_levels
from jet_hf.arguments import FIGURES
from jet_hf.data import Batch
from jet_hf.hub import SampleRecord, add_samples
from jet_hf.training import Trainer
from jet_hf.utils.noise import MASK, normal_noise


def normals(count: int, dims: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dims))


# Closed forms


def test_frechet_distance_is_that_of_the_moments():
    def with_moments(mean: list[float], deviations: list[float], seed: int) -> np.ndarray:
        """Draw points whose mean and covariance are exactly these."""
        points = normals(50, len(mean), seed)
        points -= points.mean(axis=0)
        points @= np.linalg.inv(np.linalg.cholesky(np.cov(points.T)).T)
        return points * deviations + mean

    first, second = with_moments([0, 1, 2], [1, 2, 3], 0), with_moments([1, 1, 0], [2, 0.5, 3], 1)
    # |m1 - m2|^2 + sum of (s1 - s2)^2
    assert frechet_distance(first, second) == pytest.approx((1 + 4) + (1 + 1.5**2), rel=1e-9)
    assert frechet_distance(first, np.roll(first, 7, axis=0)) == pytest.approx(0, abs=1e-9)
    errors = compare(FeatureSet(first), FeatureSet(second), ["frechet_distance"])["frechet_distance"]
    assert 0.1 < errors.standard_error < 10
    of_many = [frechet_distance(normals(200, seed=i), normals(200, seed=i + 100)) for i in range(40)]
    halves = compare(FeatureSet(normals(200)), FeatureSet(normals(200, seed=9)), ["frechet_distance"])
    assert halves["frechet_distance"].standard_error == pytest.approx(np.std(of_many), rel=1), "within a factor of two"


def test_kernel_distance_of_point_masses():
    first, second = np.tile([1.0, 2.0], (30, 1)), np.tile([3.0, -1.0], (24, 1))
    kernel = {"first": (5 / 2 + 1) ** 3, "second": (10 / 2 + 1) ** 3, "both": (1 / 2 + 1) ** 3}
    state = torch.get_rng_state()
    value, deviation = kernel_distance(first, second)
    assert value == pytest.approx(kernel["first"] + kernel["second"] - 2 * kernel["both"]) and deviation < 1e-9
    equal = kernel_distance(normals(80), normals(90, seed=1), seed=3)
    assert abs(equal.value) < 3 * equal.standard_error and equal == kernel_distance(
        normals(80), normals(90, seed=1), 3
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_precision_and_recall_of_copies_of_a_collapsed_and_of_a_lost_sampler():
    real = normals(100)
    (precision, error), (recall, _) = precision_recall(real, real)
    assert (precision, recall, error) == (1, 1, 0)
    collapsed = real[:1] + 1e-3 * normals(100, seed=1)
    (precision, _), (recall, error) = precision_recall(collapsed, real)
    assert precision == 1 and recall <= 0.01
    assert error == pytest.approx(math.sqrt(recall * (1 - recall) / 100))
    (precision, _), (recall, _) = precision_recall(real + 100, real)
    assert (precision, recall) == (0, 0)


def test_the_nearest_neighbor_tells_disjoint_sets_apart_and_equal_ones_not():
    real = normals(400)
    same, error = nearest_neighbor_accuracy(normals(400, seed=1), real)
    assert abs(same - 0.5) < 3 * error and error == pytest.approx(0.5 / math.sqrt(800), rel=0.01)
    assert nearest_neighbor_accuracy(real + 50, real) == (1, 0)
    assert nearest_neighbor_accuracy(real, real)[0] == 0, "copies"


def test_equal_distances_count_alike_whatever_their_rounding_and_order():
    rng = np.random.default_rng(0)
    first, second = rng.integers(-1, 2, (2, 40, 16)).astype(float)
    rotation = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    orders = rng.permuted(np.tile(np.arange(40), (2, 1)), axis=1)
    turned = [(part[order] + 5) @ rotation for part, order in zip((first, second), orders, strict=True)]
    for measure in (nearest_neighbor_accuracy, precision_recall):
        np.testing.assert_allclose(measure(*turned), measure(first, second), rtol=1e-12)


def test_a_classifier_learns_from_samples_what_their_labels_say():
    labels = np.arange(60) % 2
    real = FeatureSet(normals(60) + 8 * labels[:, None], labels)
    assert classifier_accuracy(FeatureSet(normals(60, seed=1) + 8 * labels[:, None], labels), real) == (1, 0)
    assert classifier_accuracy(FeatureSet(real.features, 1 - labels), real) == (0, 0)


def test_the_strength_of_seams():
    ramp = np.broadcast_to(np.arange(16), (5, 3, 8, 16)).astype(np.int32)  # steps of 1 along rows, of 0 along columns
    strength, error = seam_strength(ramp, 4)
    assert strength == pytest.approx(((8 * 3) / (8 * 3 + 16)) / ((8 * 12) / (8 * 12 + 16 * 6))) and error == 0
    noise = np.random.default_rng(0).integers(0, 256, (200, 1, 8, 8))
    strength, error = seam_strength(noise, 4)
    assert abs(strength - 1) < 3 * error < 0.1
    blocks = np.repeat(np.repeat(noise[:, :, :2, :2], 4, axis=2), 4, axis=3)
    assert seam_strength(blocks + (noise & 1), 4).value > 50
    assert math.isnan(seam_strength(blocks[:, :, :4, :4], 2).value), "images of one color"


# Features


def test_pixel_features_keep_distances_and_leave_the_variance_of_few_components():
    images = random_bytes(20, tiny_config(num_levels=17, image_size=4)).numpy()
    features = extract_features(build_extractor("pixels", images, num_levels=17), images, 17, batch_size=7)
    pixels = torch.from_numpy(images).double().flatten(1) / 8 - 1
    expected = torch.cdist(pixels, pixels)
    torch.testing.assert_close(torch.cdist(*[torch.from_numpy(features)] * 2), expected, rtol=1e-4, atol=1e-4)
    # Of an image that is a multiple of one picture, one component is all of it.
    picture = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2)
    line = PixelFeatures(torch.linspace(0, 1, 5).reshape(5, 1, 1, 1) * picture)
    assert line(picture)[0, 1:].abs().max() < 1e-5 < line(picture)[0, 0].abs()


def test_extractors_that_give_no_features_are_refused():
    images = random_bytes(5, tiny_config()).numpy()
    for extractor, message in (
        (lambda x: x.flatten(1) * math.nan, "extractor of finite numbers, got NaN"),
        (lambda x: x, r"output has shape \(5, D\) for 5 images, got \(5, 3, 8, 8\)"),
        (lambda x: x.flatten(1).mean(0, keepdim=True), r"output has shape \(5, D\) for 5 images, got \(1, 192\)"),
    ):
        with pytest.raises(ValueError, match=message):
            extract_features(extractor, images)
    with pytest.raises(ValueError, match=r"`features` no/such/place is a path that does not exist"):
        build_extractor("no/such/place", images)
    with pytest.raises(
        ValueError, match=r"`features` must be pixels, inception, or an image model .* pixel cannot be"
    ):
        build_extractor("pixel", images)


def test_a_package_that_inception_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match=r"`features` inception needs torch-fidelity, .* torch_fidelity"):
        build_extractor("inception", np.zeros((2, 3, 8, 8), np.uint8))


PREPROCESSING = {
    "do_resize": True,
    "size": {"height": 14, "width": 14},
    "do_center_crop": False,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def test_an_image_model_of_transformers_gives_its_pooled_output(tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 14, "patch_size": 7}
    torch.manual_seed(0)
    network = Dinov2Model(Dinov2Config(**sizes)).eval()
    network.save_pretrained(tmp_path / "dino")
    ViTForImageClassification(ViTConfig(**sizes, intermediate_size=12)).save_pretrained(tmp_path / "classifier")
    for name, kind in (("dino", "BitImageProcessor"), ("classifier", "ViTImageProcessor")):
        content = json.dumps(PREPROCESSING | {"image_processor_type": kind})
        (tmp_path / name / "preprocessor_config.json").write_text(content)
    config = tiny_config(num_channels=1, image_size=14, num_levels=16, coupling_kinds=("channels",))
    gray = random_bytes(3, config)
    features = extract_features(build_extractor(str(tmp_path / "dino"), gray.numpy(), 16), gray.numpy(), 16)
    with torch.no_grad():
        expected = network((gray / 7.5 - 1).expand(-1, 3, -1, -1)).pooler_output
    torch.testing.assert_close(torch.from_numpy(features).float(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"classifier has no weights for pooler.*its features would be random"):
        build_extractor(str(tmp_path / "classifier"), gray.numpy())


# The model


def dataset(images: torch.Tensor, labels: list[int] | None = None) -> datasets.Dataset:
    columns = {"pixels": list(images.numpy())} | ({} if labels is None else {"label": labels})
    features = {"pixels": datasets.Array3D(tuple(images.shape[1:]), "uint8")}
    features |= {} if labels is None else {"label": datasets.Value("int64")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@torch.no_grad()
def test_levels_are_those_of_the_samples_of_jet_hf_sample():
    model, processor = tiny_model(), JetImageProcessor(size=8)
    levels = sample_levels(model, processor, 5, seed=2, batch_size=2, temperature=0.7)
    images = sample_images(model, processor, 5, temperature=0.7, seed=2)
    assert np.array_equal(levels.transpose(0, 2, 3, 1), np.stack([np.asarray(image) for image in images]))
    conditional = tiny_model(num_classes=3, noise_std=0.2)
    labels = torch.tensor([2, 0, 2, 1])
    levels = sample_levels(conditional, processor, 4, labels, batch_size=3, guidance_scale=2.0)
    for label in range(3):
        options = {"label": label, "guidance_scale": 2.0}
        images = np.stack([np.asarray(image) for image in sample_images(conditional, processor, 4, **options)])
        of_label = (labels == label).numpy()
        assert np.array_equal(levels.transpose(0, 2, 3, 1)[of_label], images[of_label])
    with pytest.raises(ValueError, match="the samples must be finite, got NaN or infinite values"):
        sample_levels(model, processor, 1, temperature=1e30)


@torch.no_grad()
def test_losses_of_classes_are_means_over_the_same_noise():
    model = tiny_model(num_classes=3, noise_std=0.2)
    images = random_bytes(4, model.config)
    losses = score_classes(model, dataset(images), batch_size=3, num_noise_samples=2, seed=5)
    for label in range(3):
        draws = [normal_noise(5, torch.arange(4), (3, 8, 8), stream=MASK - draw) for draw in range(2)]
        labels = torch.full((4,), label)
        direct = [model(images / 127.5 - 1, labels=labels, noise=noise).noisy_nats_per_dim for noise in draws]
        torch.testing.assert_close(losses[:, label].float(), (direct[0] + direct[1]) / 2)
    assert torch.equal(losses[:, 1], score_images(model, dataset(images, [1] * 4), 3, 2, 5))
    with pytest.raises(ValueError, match=r"need a model with classes, but `config.num_classes` is None"):
        score_classes(tiny_model(), dataset(images))


def test_sets_that_are_too_small_and_figures_without_labels_are_refused():
    model, processor = tiny_model(), JetImageProcessor(size=8)
    few, many = (dataset(random_bytes(count, model.config)) for count in (9, 12))
    for held_out, real, options, message in (
        (few, many, {}, "at least 10 held-out images, got 9"),
        (many, few, {"num_samples": 9}, "at least 10 samples, got 9"),
        (many, few, {}, "must be at most as many as the real images beside them, 9, got 10"),
        (many, many, {"figures": ["recall", "bayes_accuracy"]}, "`figures` bayes_accuracy needs a model with classes"),
        (many, many, {"figures": ["fid"]}, "`figures` must be of frechet_distance, .*, got 'fid'"),
        (many, many, {"sampling": {"denoise": True}}, "`denoise` needs a model that was trained with Gaussian noise"),
        (many, many, {"features": lambda x: x}, r"output has shape \(2, D\)"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_samples(model, processor, held_out, real, SampleOptions(**{"num_samples": 10} | options))
    one_class = dataset(random_bytes(12, model.config), [0] * 12)
    with pytest.raises(ValueError, match="needs real images of two classes or more, got one class"):
        evaluate_samples(tiny_model(num_classes=3), processor, one_class, one_class, SampleOptions(10))


# The command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of two classes, dark and light images, trained with noise, with a card; its data; and another model."""
    place = tmp_path_factory.mktemp("figures")
    torch.manual_seed(0)
    fields = {"image_size": 4, "num_channels": 1, "num_coupling_layers": 6, "noise_std": 0.2, "num_classes": 2}
    config = tiny_config(**fields, num_levels=17)
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    levels = (np.where(labels, 12, 4)[:, None, None, None] + rng.integers(-1, 2, (64, 1, 4, 4))).astype(np.uint8)
    model = JetForDensityEstimation(config)
    trainer = Trainer(model, 60, learning_rate=1e-2, label_dropout=0.0)
    for i in range(60):
        batch = Batch(torch.from_numpy(levels), torch.arange(64) + 64 * i, torch.from_numpy(labels))
        trainer.step([batch])
    for name, saved in (("model", model.eval()), ("plain", tiny_model())):
        saved.save_pretrained(place / name)
        (place / name / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    JetImageProcessor(size=4, num_channels=1, num_levels=17).save_pretrained(place / "model")
    JetImageProcessor(size=8).save_pretrained(place / "plain")
    for i, (image, label) in enumerate(zip(levels, labels, strict=True)):
        folder = place / "images" / ("test" if i < 24 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].astype(np.uint8)).save(folder / f"{i}.png")
    write_images(place / "photographs", num_train=12, num_validation=11)
    return place


@pytest.fixture
def evaluate(place, capsys, monkeypatch):
    """Run `jet-hf evaluate` in this process; return the JSON, and stderr or the message of the error."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")

    def call(*flags: object, model: str = "model", data: str = "images") -> tuple[dict | None, str]:
        words = ["evaluate", "--model", place / model, "--dataset", place / data, *flags]
        try:
            jet_hf_cli.main([str(word) for word in words])
        except SystemExit as stop:
            assert capsys.readouterr().out == ""
            return None, str(stop.code)
        stdout, stderr = capsys.readouterr()
        return json.loads(stdout), stderr

    return call


def test_a_noise_model_gets_all_figures_and_no_bits(evaluate, place):
    result, text = evaluate("--samples", 40, "--write_model_card")
    assert not {"bits_per_dim", "standard_error", "images_per_second"} & result.keys()
    samples = result["samples"]
    expected = {"num_samples": 40, "num_held_out": 24, "real_split": "train", "features": "pixels", "num_features": 16}
    assert {name: samples[name] for name in expected} == expected and result["num_images"] == 24
    figures = samples["figures"]
    assert tuple(figures) == FIGURES
    assert figures["bayes_accuracy"] == {
        "samples": 1,
        "standard_error": 0,
        "real": None,
        "real_standard_error": None,
    }
    assert figures["classifier_accuracy"]["samples"] == figures["classifier_accuracy"]["real"] == 1
    assert 0 < figures["frechet_distance"]["real"] < 1 and figures["frechet_distance"]["samples"] < 4
    assert 0.25 < figures["nearest_neighbor_accuracy"]["real"] < 0.75
    for values in figures.values():
        assert math.isfinite(values["samples"]) and values["standard_error"] >= 0
    assert "| Fréchet distance, lower is better |" in text

    card = (place / "model" / "README.md").read_text()
    metrics = {m["type"]: m for m in card_metadata(card)["model-index"][0]["results"][0]["metrics"]}
    assert card_errors(card) == [] and tuple(metrics) == FIGURES
    assert metrics["recall"]["value"] == figures["recall"]["samples"]
    assert metrics["recall"]["args"]["real"] == figures["recall"]["real"]
    assert "A model.\n" in card and "40 samples, and as many real images of the split `train`" in card

    again, _ = evaluate("--samples", 40, "--batch_size", 7)  # the same to rounding
    for name, values in again["samples"]["figures"].items():
        assert values["samples"] == pytest.approx(figures[name]["samples"], rel=1e-3, abs=1e-6), name
    other, _ = evaluate("--samples", 40, "--seed", 1, "--figures", "frechet_distance")
    assert list(other["samples"]["figures"]) == ["frechet_distance"]
    assert other["samples"]["figures"]["frechet_distance"]["samples"] != figures["frechet_distance"]["samples"]


def test_without_a_held_out_split_the_images_that_training_keeps_stand_beside_the_samples(evaluate, place):
    write_images(place / "lone", num_train=220, num_validation=0)
    flags = ["--samples", 20, "--figures", "recall", "precision"]
    result, _ = evaluate(*flags, model="plain", data="lone")
    assert (result["split"], result["samples"]["real_split"]) == ("train[held_out]", "train[kept]")
    assert result["samples"]["num_held_out"] == 11 and list(result["samples"]["figures"]) == ["precision", "recall"]
    halves = ["--split", "train[:50%]", "--real_split", "train[50%:]"]
    result, _ = evaluate(*flags, *halves, model="plain", data="lone")
    assert result["samples"]["num_held_out"] == 110 and result["samples"]["real_split"] == "train[50%:]"


def test_a_model_of_images_gets_figures_beside_its_bits(evaluate, place):
    flags = ["--samples", 12, "--temperature", "0", "--write_model_card"]
    result, _ = evaluate(*flags, model="plain", data="photographs")
    alone, _ = evaluate(model="plain", data="photographs")
    assert result["bits_per_dim"] == alone["bits_per_dim"] and "samples" not in alone
    samples = result["samples"]
    assert samples["temperature"] == 0 and samples["num_features"] == 11
    assert tuple(samples["figures"]) == FIGURES[:6]  # there are no classes
    # All samples are the same image.
    recall, accuracy = (samples["figures"][name] for name in ("recall", "nearest_neighbor_accuracy"))
    assert recall["samples"] == 0 and accuracy["samples"] > accuracy["real"]
    card = (place / "plain" / "README.md").read_text()
    types = [metric["type"] for metric in card_metadata(card)["model-index"][0]["results"][0]["metrics"]]
    assert sorted(types) == sorted(["bits_per_dim", *FIGURES[:6]]) and "12 samples (temperature 0.0)" in card


def test_wrong_input_ends_in_one_line(evaluate):
    for flags, message in (
        (["--samples", 9], "`samples` must be a whole number of at least 10, got 9"),
        (["--samples", 41], "must be at most as many as the real images beside them, 40, got 41"),
        (["--features", "inception"], "`features` must be given with `samples`"),
        (["--denoise", "false"], "`denoise` must be given with `samples`"),
        (["--samples", 10, "--features", "nowhere/at/all"], "`features` nowhere/at/all is a path that does not exist"),
        (["--samples", 10, "--max_images", 4], "at least 10 held-out images, got 4"),
        (["--samples", 10, "--real_split", "test"], "`real_split` must have other images than the split 'test'"),
        (["--samples", 10, "--real_split", "tset"], "`real_split` must be a split of real images"),
        (["--samples", 10, "--scores_file", "x.csv"], "`scores_file` is for bits per dimension"),
        (["--samples", 10, "--guidance_scale", "1", "2", "3"], "`guidance_scale` must be one number, or the two"),
        ([], "has no bits per dimension of images"),
    ):
        result, text = evaluate(*flags)
        assert result is None and text.startswith("error: ") and message in text and "\n" not in text, flags


def test_a_package_that_samples_need_is_named(evaluate, monkeypatch):
    monkeypatch.delitem(sys.modules, "jet_hf.analysis.sample_quality")
    monkeypatch.delattr("jet_hf.analysis.sample_quality")
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    _, text = evaluate("--samples", 10)
    message = "the package torchmetrics.image.fid, which is not installed: it comes with the extra `samples`."
    assert text == f"error: `samples` needs {message}"


# The card


def test_figures_replace_earlier_ones_in_a_card(tmp_path):
    path = tmp_path / "README.md"
    comments = "<!-- figures of samples -->\n<!-- end of figures of samples -->"
    path.write_text(f"---\nlicense: mit\n---\nBefore.\n\n{comments}\n\nAfter.\n")
    values = {"samples": 0.75, "standard_error": 0.01, "real": 0.5, "real_standard_error": None}
    names = {"dataset_name": "digits", "dataset_type": "imagefolder", "split": "test", "real_split": "train"}
    for precision in (0.25, 0.75):
        figures = {"precision": values | {"samples": precision}, "bayes_accuracy": values | {"real": None}}
        record = SampleRecord(
            **names, num_samples=1000, num_held_out=360, features="pixels", options={}, figures=figures
        )
        add_samples(tmp_path, record)
    text = path.read_text()
    assert card_errors(text) == []
    (result,) = card_metadata(text)["model-index"][0]["results"]
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [("precision", 0.75), ("bayes_accuracy", 0.75)]
    assert text.count("## Figures of samples") == 1 and text.index("Before.") < text.index("## Fig") < text.index(
        "After."
    )
    assert "| precision, higher is better | 0.75 ± 0.01 | 0.5 |" in text
    assert "on held-out images, higher is better | 0.75 ± 0.01 |  |" in text


def test_the_shipped_digits_have_the_figures_of_their_card(tmp_path):
    folder = ROOT / "space" / "digits"
    model = JetForDensityEstimation.from_pretrained(folder).eval()
    data = read_digits(tmp_path / "digits")
    names = ["nearest_neighbor_accuracy", "seam_strength", "classifier_accuracy", "bayes_accuracy"]
    report = evaluate_samples(
        model, data.processor, data.held_out, data.train, SampleOptions(1000, figures=names, batch_size=500)
    )
    card = {
        result.metric_type: result.metric_value for result in ModelCard.load(folder / "README.md").data.eval_results
    }
    for name, figure in report.samples.items():
        assert figure.value == pytest.approx(card[name], abs=0.006), name  # two images of 360
    assert report.samples["bayes_accuracy"].value >= 0.985 and report.samples["classifier_accuracy"].value >= 0.94
    assert report.samples["nearest_neighbor_accuracy"].value <= 0.65
