"""Anomaly scores: closed forms, p-values, files of detectors, and the command."""

import copy
import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, random_bytes, random_images, tiny_config, tiny_model
from PIL import Image
from scipy.stats import chisquare, norm
from sklearn.metrics import roc_auc_score

from examples.photographs import load_photograph
from jet_hf import JetForDensityEstimation, JetImageProcessor, anomaly
from jet_hf.analysis.anomaly import detector as anomaly_detector
from jet_hf.analysis.anomaly import metrics
from jet_hf.analysis.anomaly.metrics import metrics_with_intervals
from jet_hf.anomaly import AnomalyDetector
from jet_hf.arguments import ANOMALY_SCORES, AnomalyArguments
from jet_hf.commands import anomaly as command
from jet_hf.data import Batch
from jet_hf.model.modeling_jet import scale_bytes
from jet_hf.training import Trainer
from jet_hf.utils.arguments import parse


def new_model(**fields) -> JetForDensityEstimation:
    """Return a new Jet, which is the identity: its images are standard normal."""
    return JetForDensityEstimation(tiny_config(num_coupling_layers=2, **fields)).eval()


def arrays(count: int, config, seed: int = 0) -> list[np.ndarray]:
    """Return random images (H, W, C)."""
    return list(random_bytes(count, config, seed).permute(0, 2, 3, 1).numpy())


def noise_for(images: torch.Tensor) -> torch.Tensor:
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(1))


# Scores


@pytest.mark.parametrize(
    "fields", [{}, {"num_channels": 1, "num_levels": 17, "image_size": (4, 12)}], ids=["rgb", "gray"]
)
def test_scores_of_a_new_model_are_those_of_a_standard_normal_distribution(fields):
    model = new_model(**fields)
    config, images = model.config, random_images(3, model.config)
    noise, num_dims = noise_for(images), model.config.num_dims
    dequantized = (images + noise / config.levels_per_unit).double().flatten(1)
    mean_square = dequantized.square().mean(1)
    bits = anomaly.bits_of_images(model, images, noise)
    nats = mean_square / 2 + math.log(2 * math.pi) / 2 + math.log(config.levels_per_unit)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(anomaly.negative_log_likelihood(bits), nats / math.log(2), **close)
    torch.testing.assert_close(anomaly.latent_norm(bits), (mean_square.sqrt() - 1).abs(), **close)
    torch.testing.assert_close(anomaly.gradient_norm(model, images, noise), mean_square.sqrt(), **close)
    assert anomaly.patch_bits_per_dim(bits).shape == (3, *config.grid_shape) and bits.num_dims == num_dims


def test_a_constant_image_has_no_complexity_and_noise_has_all():
    config = tiny_config()
    levels = random_bytes(3, config).numpy()
    levels[0] = 70
    bits = anomaly.bits_of_images(new_model(), scale_bytes(torch.from_numpy(levels)), torch.zeros(3, 3, 8, 8))
    complexity = anomaly.negative_log_likelihood(bits) - anomaly.complexity_corrected(bits, levels)
    assert abs(complexity[0]) < 0.1 and (complexity[1:] > 7.9).all()
    # A smaller file of any codec counts.
    of_png = anomaly.complexity_corrected(bits, levels, ["png"])
    assert (anomaly.complexity_corrected(bits, levels, ["png", "webp"]) >= of_png).all()


def test_a_class_conditional_model_is_scored_by_the_mixture_of_its_classes_or_by_one():
    model = tiny_model(num_classes=3)
    images = random_images(4, model.config)
    noise = noise_for(images)
    points = model.add_noise(images, noise).requires_grad_()
    log_probs = [model.distribution(labels=torch.tensor([label])).log_prob(points) for label in range(3)]
    mixture = torch.logsumexp(torch.stack(log_probs), dim=0) - math.log(3)
    nats = mixture - model.config.num_dims * math.log(127.5)
    bits = anomaly.bits_of_images(model, images, noise)
    torch.testing.assert_close(bits.total.sum((1, 2)) * math.log(2), -nats.double(), rtol=1e-6, atol=1e-4)
    (gradient,) = torch.autograd.grad(mixture.sum(), points)
    expected = gradient.double().flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(anomaly.gradient_norm(model, images, noise), expected, rtol=1e-5, atol=0)
    labels = torch.ones(4, dtype=torch.int64)
    of_class = anomaly.negative_log_likelihood(anomaly.bits_of_images(model, images, noise, labels))
    torch.testing.assert_close(of_class, model(images, labels=labels, noise=noise).bits_per_dim.double())
    detector = AnomalyDetector(model, label=1, scores=["negative_log_likelihood"])
    assert not np.allclose(
        detector.score(arrays(4, model.config))["negative_log_likelihood"],
        AnomalyDetector(model, scores=detector.scores).score(arrays(4, model.config))["negative_log_likelihood"],
    )


def test_the_gradient_is_taken_where_the_dequantization_flow_puts_the_image():
    model = tiny_model(dequantization="flow")
    images = random_images(2, model.config)
    noise = noise_for(images)
    with torch.no_grad():
        points = model.add_noise(images, model.dequantizer(images, noise)[0])
        expected = model.score(points).double().flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(anomaly.gradient_norm(model, images, noise), expected)


def test_the_likelihood_ratio_is_the_difference_of_bits():
    model, background = tiny_model(), tiny_model(std=0.2)
    images = arrays(3, model.config)
    detector = AnomalyDetector(model, background, scores=["likelihood_ratio", "negative_log_likelihood"])
    of_background = AnomalyDetector(background, scores=["negative_log_likelihood"]).score(images)
    scores = detector.score(images)
    difference = scores["negative_log_likelihood"] - of_background["negative_log_likelihood"]
    np.testing.assert_allclose(scores["likelihood_ratio"], difference, rtol=1e-6)
    assert list(AnomalyDetector(model).scores) == [name for name in ANOMALY_SCORES if name != "likelihood_ratio"]


def test_the_largest_patch_finds_a_defect_and_its_place():
    model = new_model()
    flat = [np.full((8, 8, 3), level, dtype=np.uint8) for level in range(120, 136)]
    detector = AnomalyDetector(model).fit(flat)
    defect = flat[3].copy()
    defect[2:4, 6:8] = 255
    heat_map = detector.heat_map([defect, flat[5]])
    assert heat_map.shape == (2, 4, 4) and np.unravel_index(heat_map[0].argmax(), (4, 4)) == (1, 3)
    scores, p_values = detector.score([defect, flat[5]]), detector.p_value([defect, flat[5]])
    np.testing.assert_allclose(scores["largest_patch"], heat_map.max((1, 2)))
    assert p_values["largest_patch"][0] == 1 / 17 < p_values["largest_patch"][1]


def test_scores_depend_on_the_image_alone():
    """Neither the batch size, nor the order, nor the other images, nor the mode of the model change them."""
    model = tiny_model().train()
    images = arrays(7, model.config)
    expected = AnomalyDetector(model, batch_size=7).fit(images).score(images)
    assert model.training
    for batch_size, order in ((1, [0, 1, 2, 3, 4, 5, 6]), (3, [6, 2, 0, 5, 1, 4, 3]), (2, [4, 4])):
        scores = AnomalyDetector(model, batch_size=batch_size).fit(images).score([images[i] for i in order])
        for name, values in scores.items():
            np.testing.assert_allclose(values, expected[name][order], rtol=1e-5, err_msg=name)
    other_seed = AnomalyDetector(model, seed=1, scores=["negative_log_likelihood"]).score(images)
    assert not np.allclose(other_seed["negative_log_likelihood"], expected["negative_log_likelihood"], rtol=1e-5)


def test_modules_keep_their_own_modes():
    model = tiny_model().train()
    model.jet.couplings[0].eval()  # such as a frozen part
    modes = [module.training for module in model.modules()]
    AnomalyDetector(model).fit(arrays(2, model.config))
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2


def test_images_of_all_kinds_are_fitted_to_the_model_as_by_the_image_processor():
    model = new_model()
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    fitted = JetImageProcessor(size=8).to_uint8(large)
    scores = AnomalyDetector(model, scores=["negative_log_likelihood"]).score(
        [large, fitted, torch.from_numpy(fitted)]
    )
    assert len(set(scores["negative_log_likelihood"])) == 1


# p-values and tests


def test_p_values_of_exchangeable_images_are_uniform():
    names = ["negative_log_likelihood", "typicality", "latent_norm"]
    detector = AnomalyDetector(new_model(), scores=names)
    images = arrays(120 * 10, detector.model.config)
    found = {name: [] for name in names}
    for start in range(0, len(images), 10):
        *reference, image = images[start : start + 10]
        for name, (value,) in detector.fit(reference).p_value([image]).items():
            found[name].append(round(10 * value))
    for name, ranks in found.items():
        assert min(ranks) >= 1 and max(ranks) <= 10
        assert chisquare(np.bincount(ranks, minlength=11)[1:]).pvalue > 0.01, name


def test_p_values_count_reference_images_that_are_at_least_as_strange():
    config = tiny_config()
    detector = AnomalyDetector(new_model()).fit(arrays(9, config))
    judgment = detector.judge(arrays(9, config)[:2] + arrays(2, config, seed=5))
    for name, values in judgment.scores.items():
        if name not in ("typicality", "largest_patch"):
            counts = (detector.reference_scores[name] >= values[:, None]).sum(1)
            np.testing.assert_allclose(judgment.p_values[name], (1 + counts) / 10, err_msg=name)
        assert (judgment.p_values[name] >= 1 / 10).all() and (judgment.p_values[name] <= 1).all()


def test_rounding_breaks_no_ties():
    """Copies of one image have scores that differ by rounding, with the batch size and the division of its patches."""
    image = arrays(1, tiny_config())[0]
    detector = AnomalyDetector(tiny_model(std=0.05), batch_size=7).fit([image] * 9)
    for values in detector.reference.values():
        values += np.linspace(-1e-6, 1e-6, 9)
    detector.mean_patch_bits -= 2e-6
    judgment = detector.judge([image] * 2)
    for name in detector.scores:
        assert judgment.p_values[name].tolist() == [1, 1], name
    detector.reference["negative_log_likelihood"] -= 2e-6
    assert detector.judge([image] * 4).batch == (0, 0, 1)


def test_a_batch_is_compared_with_random_divisions_of_it_and_the_reference():
    config = tiny_config()
    detector = AnomalyDetector(new_model(), scores=["negative_log_likelihood"]).fit(arrays(200, config))
    bits = detector.reference_scores["negative_log_likelihood"]
    normal = detector.batch_test(arrays(16, config, seed=1))
    assert normal.p_value > 0.01 and normal.distance < normal.threshold
    expected = norm.ppf(0.995) * bits.std() * (1 / 16 + 1 / 200) ** 0.5
    assert normal.threshold == pytest.approx(expected, rel=0.05)
    gray = detector.batch_test([np.full((8, 8, 3), 128, dtype=np.uint8)] * 16)
    assert gray.p_value == 1e-4 and gray.distance > 2 * gray.threshold
    judgment = detector.judge(arrays(1, config, seed=1))
    assert judgment.batch is None
    with pytest.raises(ValueError, match="`images` must be at least two images for the test of a batch, got one"):
        detector.batch_test(arrays(1, config))


def test_batches_as_large_as_the_reference_are_rarely_called_untypical(monkeypatch):
    """The p-values of batches of normal images are uniform, though the reference is a sample too."""
    monkeypatch.setattr(anomaly_detector, "NUM_RESAMPLES", 199)
    detector = AnomalyDetector(new_model(), scores=["negative_log_likelihood"], batch_size=2000)
    bits = detector.score(arrays(200 * 20, detector.model.config))["negative_log_likelihood"].reshape(200, 2, 10)
    p_values = []
    for reference, batch in bits:
        detector.reference = {"negative_log_likelihood": np.sort(reference)}
        p_values.append(detector._batch_test({"negative_log_likelihood": batch}).p_value)
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert abs(np.mean(p_values) - 0.5) < 4 * (1 / 12 / 200) ** 0.5


@pytest.fixture(scope="module")
def photographs():
    """Crops of a photograph that the shipped model was not trained on."""
    photograph = load_photograph("china")
    corners = np.random.default_rng(0).integers(0, 380, (48, 2))
    return [photograph[y : y + 32, x : x + 32] for y, x in corners]


def test_the_likelihood_calls_constant_images_normal_and_the_complexity_correction_does_not(photographs):
    model = JetForDensityEstimation.from_pretrained(ROOT / "space" / "model").eval()
    detector = AnomalyDetector(model, scores=["negative_log_likelihood", "complexity_corrected"]).fit(photographs)
    constants = [np.full((32, 32, 3), level, dtype=np.uint8) for level in (40, 90, 128, 200)]
    p_values = detector.p_value(constants)
    assert np.median(p_values["negative_log_likelihood"]) > 0.2
    assert (p_values["complexity_corrected"] == 1 / 49).all()


def test_metrics_are_those_of_separated_and_of_equal_scores():
    low, high = np.arange(50.0), np.arange(100.0, 130.0)
    perfect = metrics_with_intervals(low, high)
    assert [perfect[name]["value"] for name in ("auroc", "aupr", "fpr_at_95_tpr")] == [1, pytest.approx(1), 0]
    equal = metrics_with_intervals(low, low)
    assert equal["auroc"]["value"] == 0.5 and equal["auroc"]["low"] < 0.5 < equal["auroc"]["high"]
    assert metrics_with_intervals(high, low)["fpr_at_95_tpr"]["value"] == 1
    # Of equal scores, 48 of 50 normal images reach the threshold that 48 of 50 anomalies reach.
    assert equal["fpr_at_95_tpr"]["value"] == 48 / 50
    with pytest.raises(ValueError, match="at least 2 anomalous images to measure detection, got 1"):
        metrics_with_intervals(low, high[:1])


# Saved detectors


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A detector, and the folder in which it is saved with its model."""
    model = tiny_model()
    detector = AnomalyDetector(model, tiny_model(std=0.2)).fit(arrays(9, model.config))
    folder = tmp_path_factory.mktemp("fitted") / "model"
    detector.save_pretrained(folder)
    return detector, folder


def test_a_saved_detector_gives_the_same_scores_and_p_values(fitted):
    detector, folder = fitted
    loaded = AnomalyDetector.from_pretrained(folder, detector.background)
    images = arrays(4, detector.model.config, seed=2)
    for before, after in zip(detector.judge(images)[:2], loaded.judge(images)[:2], strict=True):
        assert before.keys() == after.keys() == set(ANOMALY_SCORES)
        for name, values in before.items():
            np.testing.assert_array_equal(values, after[name])
    np.testing.assert_array_equal(detector.heat_map(images), loaded.heat_map(images))
    # In the folder of the model, only the file of the detector changes.
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    loaded.fit(images).save_pretrained(folder)
    assert AnomalyDetector.from_pretrained(folder, detector.background).num_reference_images == 4
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights and not list(folder.glob(".*"))
    detector.save_pretrained(folder)


def test_a_detector_is_saved_with_the_image_processor_that_it_was_fitted_with(fitted, tmp_path):
    detector, folder = fitted
    images = arrays(3, detector.model.config)
    stretching = JetImageProcessor(size=8, do_center_crop=False)
    other = AnomalyDetector(detector.model, processor=stretching, scores=["latent_norm"]).fit(images)
    with pytest.raises(ValueError, match=r"`processor` must be that of .*: its `do_center_crop` is True, got False"):
        other.save_pretrained(folder)
    detector.model.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    assert not AnomalyDetector.from_pretrained(tmp_path).processor.do_center_crop
    with pytest.raises(ValueError, match=r"`background` must be None for .*, whose detector was fitted without one"):
        AnomalyDetector.from_pretrained(tmp_path, detector.background)


DAMAGES = {
    "no JSON": ("{", "is damaged: "),
    "no object": ("[1]", "is damaged: it has no format"),
    "another format": ({"format": 2}, "must have the format 1, got 2 of jet_hf 0.1.0"),
    "no seed": ({"seed": None}, "is damaged: `seed` must be"),
    "not a number": (
        {"reference": {"latent_norm": [1.0, math.nan]}},
        "is damaged: `latent_norm` must hold finite numbers",
    ),
    "a missing score": ({"reference": {"latent_norm": None}}, "is damaged: `latent_norm` must hold finite numbers"),
    "not sorted": ({"reference": {"latent_norm": [2, 1, *range(3, 10)]}}, "latent_norm must be in ascending order"),
    "other images": ({"reference": {"latent_norm": [1, 2]}}, "all scores must be of the same images, at least 2"),
    "no map": ({"mean_patch_bits": "none"}, "is damaged: `mean_patch_bits` must hold finite numbers"),
    "a map of another size": (
        {"mean_patch_bits": [[0.0]]},
        r"is damaged: `mean_patch_bits` must have the shape \(4, 4\), got \(1, 1\)",
    ),
    "no codecs": ({"codecs": []}, "is damaged: `codecs` must be <class 'list'>, got \\[\\]"),
    "scores that are no names": ({"scores": [{}]}, "is damaged: `scores` must be <class 'list'>, got"),
    "another model": ({"model": "0" * 16}, "`model` must be the one with the hash 0000000000000000 in "),
    "a codec": ({"codecs": ["png", "jpeg9"]}, "needs the codec jpeg9, which the package imagecodecs brings"),
}


@pytest.mark.parametrize("change, message", DAMAGES.values(), ids=DAMAGES)
def test_damaged_and_foreign_files_are_refused(fitted, change, message):
    detector, folder = fitted
    file = folder / "anomaly.json"
    text = file.read_text()
    if not isinstance(change, str):
        state = json.loads(text)
        change = json.dumps(state | change | {"reference": state["reference"] | change.get("reference", {})})
    file.write_text(change)
    try:
        with pytest.raises(ValueError, match=message):
            AnomalyDetector.from_pretrained(folder, detector.background)
    finally:
        file.write_text(text)


def test_scores_and_heat_maps_that_are_not_finite_are_refused(fitted):
    detector, _ = fitted
    images = arrays(3, detector.model.config)
    broken = copy.copy(detector)
    broken.model = copy.deepcopy(detector.model)
    next(broken.model.parameters()).data.fill_(math.nan)
    for call in (broken.score, broken.heat_map):
        with pytest.raises(ValueError, match=r"`images\[0\]` must have finite scores, but its .* is NaN or infinite"):
            call(images)


def test_detectors_refuse_wrong_arguments_and_images(fitted, tmp_path, monkeypatch):
    detector, folder = fitted
    model, images = detector.model, arrays(3, detector.model.config)
    with pytest.raises(ValueError, match=r"`background` must be the one with the hash .*, got None"):
        AnomalyDetector.from_pretrained(folder)
    with pytest.raises(ValueError, match="`folder` must hold the detector's model"):
        AnomalyDetector(new_model()).fit(images).save_pretrained(folder)
    unfitted = AnomalyDetector(model)
    for call, words in (
        (unfitted.score, "the score `largest_patch` needs reference images: call `fit` first"),
        (unfitted.p_value, "the score `largest_patch` needs reference images: call `fit` first"),
        (unfitted.judge, "the score `largest_patch` needs reference images: call `fit` first"),
        (AnomalyDetector(model, scores=["latent_norm"]).judge, "a p-value needs reference images"),
        (unfitted.batch_test, "the test of a batch needs reference images"),
        (unfitted.heat_map, "a heat map needs reference images"),
        (lambda _: unfitted.save_pretrained(tmp_path / "new"), "a saved detector needs reference images"),
        (lambda images: unfitted.fit(images[:1]), "`images` must be at least 2 reference images, got 1"),
        (lambda _: detector.score([]), "`images` must be at least one image, got none"),
        (lambda _: detector.score([images[0], np.full((8, 8, 3), np.nan)]), r"`images\[1\]` cannot be scored: .*nan"),
        (lambda _: detector.score([np.zeros((8, 8, 3, 2))]), r"`images\[0\]` cannot be scored"),
        (
            lambda images: detector.score(images[0]),
            r"`images` must be a list of images, .*, got an array of shape \(8, 8",
        ),
        (lambda images: detector.fit(Image.fromarray(images[0])), "`images` must be a list of images, .*, got Image"),
        (lambda images: detector.score(dict(enumerate(images))), "`images` must be a list of images, .*, got dict"),
        (lambda _: detector.score(np.array(3)), "`images` must be a list of images, .*, got"),
        (lambda _: detector.score({1, 2}), "`images` must be a list of images, .*, got set"),
        (lambda _: AnomalyDetector(model.jet), "`model` must be a JetForDensityEstimation, got JetModel"),
        (lambda _: AnomalyDetector(model, model.jet), "`background` must be a JetForDensityEstimation, got JetModel"),
        (lambda _: AnomalyDetector(new_model().to("meta")), "`model` must have weights, got one on the device meta"),
    ):
        with pytest.raises(ValueError, match=words):
            call(images)
    # A detector that cannot give a result says so before the model runs.
    monkeypatch.setattr(AnomalyDetector, "_passes", None)
    for call in (unfitted.score, unfitted.p_value, unfitted.judge, unfitted.batch_test):
        with pytest.raises(ValueError, match="needs reference images"):
            call(images)
    monkeypatch.undo()
    assert not (tmp_path / "new").exists()
    small = JetImageProcessor(size=4)
    with pytest.raises(ValueError, match=r"`processor` must make images of the model's shape \(3, 8, 8\), got \(3, 4"):
        AnomalyDetector(model, processor=small, scores=["latent_norm"]).score(images)
    for error, arguments in (
        ("must have the model's image_shape", {"background": new_model(image_size=16)}),
        ("must have the model's num_levels", {"background": new_model(num_levels=17)}),
        (
            "`background` cannot be used: this model was trained with Gaussian noise",
            {"background": new_model(noise_std=0.1)},
        ),
        ("the score `likelihood_ratio` needs a background model", {"scores": ["likelihood_ratio"]}),
        ("`scores` must contain only negative_log_likelihood, .*, got 'nll'", {"scores": ["nll"]}),
        ("`scores` must be a list of at least one of .*, got 'latent_norm'", {"scores": "latent_norm"}),
        (r"`scores` must be a list of at least one of .*, got \[\]", {"scores": []}),
        ("`seed` must be a whole number of at least 0, got -1", {"seed": -1}),
        ("this model has no classes", {"label": 1}),
        ("`batch_size` must be", {"batch_size": 0}),
    ):
        with pytest.raises(ValueError, match=error):
            AnomalyDetector(model, **arguments)
    for error, fields in (
        ("this model was trained with Gaussian noise", {"noise_std": 0.1}),
        ("`context_size` must be None for anomaly scores", {"context_size": 4}),
    ):
        with pytest.raises(ValueError, match=error):
            AnomalyDetector(new_model(**fields))
    with pytest.raises(
        ValueError, match="`complexity_corrected` needs images of 1 or 3 channels and at most 256 levels"
    ):
        AnomalyDetector(new_model(num_levels=1024), scores=["complexity_corrected"])
    deep = AnomalyDetector(new_model(num_levels=1024), scores=["latent_norm", "gradient_norm"])
    assert np.isfinite(deep.score(arrays(2, deep.model.config))["latent_norm"]).all()


# The command


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(metrics, "NUM_RESAMPLES", 15)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A saved model, a folder of reference images, and one of images in two classes."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    model = tiny_model(std=0.05)
    model.save_pretrained(root / "model")
    JetImageProcessor(size=8).save_pretrained(root / "model")
    groups = ("reference/validation", 12, 256), ("images/good", 6, 256), ("images/flat", 5, 3), ("tested/test", 2, 256)
    for folder, count, high in groups:
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, high, (8, 8, 3), dtype=np.uint8)).save(root / folder / f"{i}.png")
    for name, files in (("other", ("report.json", "notes.txt")), ("partly", ("metadata.csv",))):
        (root / name).mkdir()
        for file in files:
            (root / name / file).write_text("file_name,state\n0.png,fine\n2.png,fine\n")
    for i in range(3):
        Image.new("RGB", (8, 8)).save(root / "partly" / f"{i}.png")
    return root


def run_command(data: Path, *flags) -> None:
    words = ["--model", data / "model", "--images", data / "images", *flags]
    command.run(parse(AnomalyArguments, [str(word) for word in words], "jet-hf anomaly"))


def test_the_command_writes_scores_tables_and_pictures(data, tmp_path, capsys):
    reference = ["--reference", data / "reference", "--save_reference"]
    run_command(data, *reference, "--normal_label", "good", "-o", tmp_path / "report", "--num_heat_maps", "3")
    out, err = capsys.readouterr()
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert json.loads(out) == report and "| complexity_corrected |" in err and "As a batch, the 11 images" in err
    rows = list(csv.DictReader((tmp_path / "report" / "scores.csv").open()))
    assert [row["file"] for row in rows] == sorted(
        f"{kind}/{i}.png" for kind, count in (("good", 6), ("flat", 5)) for i in range(count)
    )
    normal = np.array([row["normal"] == "1" for row in rows])
    assert normal.sum() == 6 and all(
        row["file"].startswith("good") == is_good for row, is_good in zip(rows, normal, strict=True)
    )
    images = [Image.open(data / "images" / row["file"]) for row in rows]
    detector = AnomalyDetector.from_pretrained(data / "model")
    judgment = detector.judge(images)
    for name in detector.scores:
        assert [float(row[name]) for row in rows] == pytest.approx(judgment.scores[name].tolist(), rel=1e-6)
        assert [float(row[f"p_value_{name}"]) for row in rows] == pytest.approx(judgment.p_values[name].tolist())
        auroc = report["scores"][name]["auroc"]
        assert auroc["value"] == pytest.approx(roc_auc_score(~normal, judgment.scores[name]))
        assert auroc["low"] <= auroc["value"] <= auroc["high"]
    for name in ("histograms.png", "worst.png"):
        assert Image.open(tmp_path / "report" / name).size > (300, 150)
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == [
        *("histograms.png", "report.json", "scores.csv", "worst.png"),
    ]
    # The saved reference replaces the images of the first call, and the new report the old one.
    run_command(data, "-o", tmp_path / "report", "--rank_by", "latent_norm")
    again = list(csv.DictReader((tmp_path / "report" / "scores.csv").open()))
    assert "normal" not in again[0] and [row["typicality"] for row in again] == [row["typicality"] for row in rows]


def test_labels_may_be_a_text_column_of_metadata(data, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    lines = ["file_name,state"]
    for i, path in enumerate(sorted((data / "images").glob("*/*.png"))):
        (folder / f"{i}.png").write_bytes(path.read_bytes())
        lines.append(f"{i}.png,{'fine' if path.parent.name == 'good' else 'broken'}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    flags = ["--images", folder, "--normal_label", "fine", "--label_column", "state", "--scores", "latent_norm"]
    run_command(data, "--reference", data / "reference", *flags, "-o", tmp_path / "report")
    rows = list(csv.DictReader((tmp_path / "report" / "scores.csv").open()))
    assert sum(row["normal"] == "1" for row in rows) == 6 and "fpr_at_95_tpr" in capsys.readouterr().out


BAD_CALLS = {
    "no reference split": (
        ["--reference", "{data}/images"],
        "`reference_split` must be given: there is neither a validation nor a test split",
    ),
    "a test split as the reference": (
        ["--reference", "{data}/tested"],
        "`reference_split` must be given, since .*/tested has no validation split, and its test split may hold anom",
    ),
    "no saved reference": ([], "has no anomaly.json: fit a detector with reference images, and save it there"),
    "output inside the images": (["-o", "{data}/images/report"], "`output` .* must not lie inside `images`"),
    "output with files": (
        ["-o", "{data}"],
        "already exists and is not an empty folder or a folder with a file report.json",
    ),
    "unknown label": (
        ["--normal_label", "fine"],
        "`normal_label` must be the label of at least two .*'fine' for 0 of 11 .* flat, good",
    ),
    "unknown column": (
        ["--normal_label", "good", "--label_column", "state"],
        "`label_column` must be one of image, label, got 'state'",
    ),
    "no background": (["--scores", "likelihood_ratio"], "the score `likelihood_ratio` needs a background model"),
    "missing background": (
        ["--background", "{data}/modle"],
        "`background` .*/modle is a path that does not exist: did you mean .*/model",
    ),
    "a rank without its score": (
        ["--rank_by", "likelihood_ratio"],
        "`rank_by` must be one of negative_log.*, which are computed",
    ),
    "output with other files": (
        ["-o", "{data}/other"],
        "/other must hold nothing but an earlier report, got notes.txt",
    ),
    "output below a file": (["-o", "{data}/model/config.json/report"], "Not a directory|File exists"),
    "missing images": (["--images", "{data}/imagse"], "the dataset .*/imagse does not exist"),
    "missing labels": (
        ["--images", "{data}/partly", "--normal_label", "fine", "--label_column", "state"],
        "`normal_label` needs a label of every image in the column 'state', but 1 of 3 have none, such as 1.png",
    ),
    "unused column": (["--label_column", "label"], "`label_column` must be given with `normal_label`"),
    "a share in percent": (["--max_undecodable_share", "5"], "`max_undecodable_share` must be at most 1, got 5"),
    "rank": (["--scores", "latent_norm", "--rank_by", "typicality"], "`rank_by` must be one of `scores` latent_norm"),
    "a split": (["--reference_split", "test"], "test"),
}


@pytest.mark.parametrize("flags, message", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_one_sentence_before_the_scoring_and_write_nothing(data, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(AnomalyDetector, "judge", None)
    (data / "model" / "anomaly.json").unlink(missing_ok=True)
    flags = ["-o", tmp_path / "report", *(flag.format(data=data) for flag in flags)]
    if flags[2:]:
        flags[2:2] = ["--reference", data / "reference"]
    with pytest.raises((ValueError, OSError), match=message) as caught:
        run_command(data, *flags)
    assert "\n" not in str(caught.value) and not (tmp_path / "report").exists()
    assert not (data / "images" / "report").exists()


def test_a_call_that_fails_late_leaves_no_part_of_a_report(data, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(command, "plot_heat_maps", fail)
    with pytest.raises(OSError, match="no space left"):
        run_command(data, "--reference", data / "reference", "--scores", "latent_norm", "-o", tmp_path / "report")
    assert not list(tmp_path.iterdir())


def test_names_of_files_are_written_and_drawn_as_they_are(data, tmp_path):
    names = [r"$\frac$.png", "a,b.png", 'two\nlines "quoted".png', "größe €.png", "=1+1.png"]
    (tmp_path / "images").mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / "images" / name)
    flags = ["--reference", data / "reference", "--images", tmp_path / "images", "--scores", "latent_norm"]
    run_command(data, *flags, "-o", tmp_path / "report")
    with (tmp_path / "report" / "scores.csv").open(encoding="utf-8", newline="") as file:
        assert sorted(row["file"] for row in csv.DictReader(file)) == sorted(names)


def test_a_single_image_is_no_batch(data, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "0.png")
    flags = ["--reference", data / "reference", "--images", tmp_path / "images", "--scores", "latent_norm"]
    run_command(data, *flags, "-o", tmp_path / "report")
    out, err = capsys.readouterr()
    assert json.loads(out)["batch_test"] is None and "| latent_norm |" in err and "As a batch" not in err


def test_a_report_says_what_limits_its_p_values(data, tmp_path, capsys):
    copies = tmp_path / "copies" / "validation"
    shutil.copytree(data / "reference" / "validation", copies)
    (copies / "0.png").unlink()
    Image.new("RGB", (8, 8)).save(copies / "new.png")
    flags = ["--reference", data / "reference", "--scores", "latent_norm", "-o", tmp_path / "report"]
    run_command(data, *flags, "--images", copies.parent)
    out, err = capsys.readouterr()
    assert "With 12 reference images, no image has a p-value below 0.077: 0.05 takes at least 19." in err
    assert "11 of 12 images are reference images themselves" in err
    assert json.loads(out)["num_images_in_reference"] == 11
    run_command(data, *flags)
    out, err = capsys.readouterr()
    assert json.loads(out)["num_images_in_reference"] == 0 and "themselves" not in err


# The background model


def test_mutations_replace_a_share_of_the_numbers_by_levels_drawn_by_the_index_of_the_image():
    model = tiny_model(num_levels=17)
    levels = torch.full((64, 3, 8, 8), 8, dtype=torch.uint8)

    def mutated(indices: torch.Tensor, **settings) -> torch.Tensor:
        trainer = Trainer(model, 4, **settings)
        return (trainer._scale(Batch(levels[: len(indices)], indices, None)) + 1) * 8

    images = mutated(torch.arange(64), mutation_rate=0.5)
    counts = torch.bincount(images.flatten().long(), minlength=17).double() / images.numel()
    assert torch.equal(images, images.round()) and counts[8].item() == pytest.approx(0.5 + 0.5 / 17, abs=0.02)
    torch.testing.assert_close(counts[torch.arange(17) != 8], torch.full((16,), 0.5 / 17).double(), rtol=0.2, atol=0)
    assert torch.equal(mutated(torch.arange(63, 20, -2), mutation_rate=0.5), images[torch.arange(63, 20, -2)])
    assert torch.equal(mutated(torch.arange(64)), torch.full_like(images, 8))
    with pytest.raises(ValueError, match=r"`mutation_rate` must lie in \[0, 1\], got 1.5"):
        Trainer(model, 4, mutation_rate=1.5)
