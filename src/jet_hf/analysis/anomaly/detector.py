# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""All anomaly scores of images at once, and their p-values among reference images."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from ... import __version__
from ...arguments import ANOMALY_SCORES
from ...model.configuration_jet import JetConfig
from ...model.image_processing_jet import JetImageProcessor
from ...model.modeling_jet import JetForDensityEstimation, scale_bytes
from ...model.validation_jet import check_labels, check_whole
from ...utils.files import new_folder, replace_text
from ...utils.noise import MASK, uniform_noise
from ..baselines import available_codecs
from ..density import PatchBits
from ..fingerprint import fingerprint
from ..inference import check_density_model, evaluation_mode, prepared_for_inference
from . import scores as formulas


FILE = "anomaly.json"
FORMAT = 1
PATCHES = "patch_bits"  # name of the bits of patches among the scores of images
# Share of batches of normal images that exceed the threshold of the test of a batch.
LEVEL = 0.01
# Permutations that [`AnomalyDetector.batch_test`] draws.
NUM_RESAMPLES = 9999
# Difference up to which scores count as equal, relative to those above 1: rounding depends on the batch size.
ROUNDING = 1e-5


class BatchTest(NamedTuple):
    """
    Result of the typicality test of a batch.

    Args:
        distance: Distance of the batch's mean bits per dimension from the mean of the reference images.
        threshold: Distance that one in a hundred random divisions of both into batch and reference exceeds.
        p_value: Share of the random divisions with at least this distance.
    """

    distance: float
    threshold: float
    p_value: float


class Judgment(NamedTuple):
    """
    All results for some images.

    Args:
        scores, p_values: Arrays (B,) by the name of the score.
        batch: Test of all images together; `None` for a single image, whose test is the p-value of typicality.
        heat_maps: See [`AnomalyDetector.heat_map`].
    """

    scores: dict[str, np.ndarray]
    p_values: dict[str, np.ndarray]
    batch: BatchTest | None
    heat_maps: np.ndarray


class AnomalyDetector:
    """
    Anomaly scores of images under a model, and their p-values among reference images.

    The score of an image depends on its pixels and on the `seed` alone, since its dequantization noise is drawn by a
    hash of its pixels. The other images, their order and the batch size change it by rounding at most.

    Args:
        model: Density model of 8-bit images.
        background: Model for the likelihood ratio, with images of the same shape and number of levels.
        processor: Image processor, which fits images to the model's size; by default that of `model.config`.
        scores: Names out of `ANOMALY_SCORES`; by default all that the model has: the likelihood ratio needs a
            `background`, and the complexity correction images that codecs take.
        label: Class of all images, for a class-conditional model; by default, images are scored by the mixture of all
            classes, in as many passes as there are classes.
        batch_size: Number of images that the model scores at a time.
        seed: Seed of the dequantization noise.

    Raises:
        ValueError: for a model with `noise_std` or `context_size`, a background model of other images, or scores or
            a label that the model does not have.

    Example:

    ```python
    >>> import numpy as np
    >>> from jet_hf import JetConfig, JetForDensityEstimation
    >>> from jet_hf.anomaly import AnomalyDetector

    >>> config = JetConfig(image_size=16, num_coupling_layers=2, hidden_size=32, num_attention_heads=2)
    >>> detector = AnomalyDetector(JetForDensityEstimation(config).eval())
    >>> images = list(np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8))
    >>> detector = detector.fit(images[:15])
    >>> detector.p_value(images[15:])["complexity_corrected"].shape
    (5,)
    ```"""

    def __init__(
        self,
        model: JetForDensityEstimation,
        background: JetForDensityEstimation | None = None,
        processor: JetImageProcessor | None = None,
        scores: Sequence[str] | None = None,
        label: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ):
        check_whole("batch_size", batch_size)
        check_whole("seed", seed, low=0)
        check_density_model("model", model)
        config = model.config
        check_model(config)
        if background is not None:
            check_density_model("background", background)
            check_background(background.config, config)
        if label is not None:
            check_whole("label", label, low=0)
            check_labels(torch.tensor([label]), config, 1)
        self.model, self.background = model, background
        self.processor = processor or JetImageProcessor(
            size=dict(zip(("height", "width"), config.image_shape[1:], strict=True)),
            num_channels=config.num_channels,
            num_levels=config.num_levels,
        )
        self.label, self.batch_size, self.seed = label, batch_size, seed
        self.codecs = available_codecs()
        self.scores = _check_scores(scores, config, background is not None)
        self.reference: dict[str, np.ndarray] = {}
        self.mean_patch_bits = np.empty((0, 0))

    @property
    def num_reference_images(self) -> int:
        """Number of reference images; 0 before [`fit`]."""
        return len(next(iter(self.reference.values()), ()))

    @property
    def mean_bits_per_dim(self) -> float:
        """Mean bits per dimension of the reference images."""
        return float(self._fitted("the mean bits per dimension")["negative_log_likelihood"].mean())

    @property
    def reference_scores(self) -> dict[str, np.ndarray]:
        """Scores of the reference images by name, float64 (num_reference_images,), in no useful order."""
        reference = self._fitted("the scores of the reference images")
        return {name: self._score(name, reference) for name in self.scores}

    def fit(self, images: Sequence[Any], progress: bool = False) -> "AnomalyDetector":
        """
        Score reference images, with which others are compared, and return the detector.

        Args:
            images: At least two images that the model was *not* trained on, from the distribution that counts as
                normal; kinds as for [`score`]. A model gives its training images more likelihood than others, so that
                with these as reference the p-values of normal images would be too small.
            progress: Whether to show a progress bar on stderr.

        Raises:
            ValueError: for fewer images, or what [`score`] refuses.
        """
        check_several(images, self.model.config)
        if len(images) < 2:
            raise ValueError(f"`images` must be at least 2 reference images, got {len(images)}.")
        measured = self._measure(images, progress)
        patch_bits = measured.pop(PATCHES)
        self.mean_patch_bits = patch_bits.mean(axis=0)
        if "largest_patch" in self.scores:
            # Each image is compared with the mean of the others, as an image to score is.
            means = (len(images) * self.mean_patch_bits - patch_bits) / (len(images) - 1)
            measured["largest_patch"] = formulas.largest_patch(patch_bits, means)
        self.reference = {name: np.sort(values) for name, values in measured.items()}
        return self

    def score(self, images: Sequence[Any], progress: bool = False) -> dict[str, np.ndarray]:
        """
        Return the scores of images by name, float64 (B,); larger means stranger. Each name is that of a function in
        `jet_hf.anomaly` with the formula and the unit.

        Args:
            images: PIL images or arrays, as the image processor takes them, which also resizes them. Each is read
                once, so that a sequence may load its images on access.
            progress: Whether to show a progress bar on stderr.

        Raises:
            ValueError: for no images, an image that cannot be converted or has a score that is not finite, or
                typicality or the largest patch without [`fit`]. The message names the image.
        """
        self._check_scores_are_fitted()
        return self._scores(self._measure(images, progress))

    def p_value(self, images: Sequence[Any], progress: bool = False) -> dict[str, np.ndarray]:
        """
        Return the p-values of images by score, float64 (B,): `(1 + #{reference >= score}) / (n + 1)` for n reference
        images. Scores that differ by rounding only count as equal.

        If an image comes from the same distribution as the reference images, the probability of a p-value of at most t
        is at most t, for every t. For typicality, the mean bits per dimension include those of the image, which makes
        this exact there too. For the largest patch it holds up to the error of the mean over n reference images.

        Args:
            images, progress: See [`score`].

        Raises:
            ValueError: without [`fit`], or for what [`score`] refuses.
        """
        self._check_scores_are_fitted()
        self._fitted("a p-value")
        measured = self._measure(images, progress)
        return self._p_values(measured | self._scores(measured))

    def batch_test(self, images: Sequence[Any], progress: bool = False) -> BatchTest:
        """
        Test whether a batch of images is typical as a whole (Nalisnick et al., 2019): compare the distance of its mean
        bits per dimension from the mean of the reference images with that after random permutations of all of them. A
        batch shows smaller deviations than a single image.

        If the images come from the same distribution as the reference images, the probability of a p-value of at most
        t is at most t, for any number of either. Batches that are bootstrapped from the reference images, as in the
        paper, take their mean for that of the distribution, so that batches as large as the reference are called
        untypical too often.

        Args:
            images: At least two images, see [`score`].
            progress: See [`score`].

        Raises:
            ValueError: without [`fit`], for a single image, an image that cannot be converted, or a likelihood that is
                not finite.
        """
        check_several(images, self.model.config)
        if len(images) == 1:
            raise ValueError("`images` must be at least two images for the test of a batch, got one.")
        self._fitted("the test of a batch")
        return self._batch_test(self._measure(images, progress, scores=()))

    def judge(self, images: Sequence[Any], progress: bool = False) -> Judgment:
        """Return the results of [`score`], [`p_value`], [`batch_test`] and [`heat_map`] at the cost of one of them."""
        self._check_scores_are_fitted()
        self._fitted("a p-value")
        measured = self._measure(images, progress)
        scores = self._scores(measured)
        p_values = self._p_values(measured | scores)
        batch = self._batch_test(measured) if len(images) > 1 else None
        return Judgment(scores, p_values, batch, measured[PATCHES] - self.mean_patch_bits)

    def heat_map(self, images: Sequence[Any]) -> np.ndarray:
        """
        Return the bits per dimension of each patch in excess of the mean of the reference images at the same place,
        float64 (B, S/p, S/p), whose maximum is the score `largest_patch`.

        Args:
            images: See [`score`].

        Raises:
            ValueError: without [`fit`], or for what [`score`] refuses.
        """
        self._fitted("a heat map")
        maps = [formulas.patch_bits_per_dim(bits).cpu().numpy() for _, _, _, bits in self._passes(images)]
        patch_bits = np.concatenate(maps)
        _check_finite(PATCHES, patch_bits)
        return patch_bits - self.mean_patch_bits

    def _measure(
        self, images: Sequence[Any], progress: bool, scores: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the scores that need no reference images, the likelihood in any case, and the bits of patches."""
        names = dict.fromkeys(["negative_log_likelihood", PATCHES, *(self.scores if scores is None else scores)])
        parts = [self._measure_batch(names, *batch) for batch in self._passes(images, progress)]
        measured = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name, values in measured.items():
            _check_finite(name, values)
        return measured

    def _measure_batch(
        self,
        names: Iterable[str],
        levels: np.ndarray,
        pixel_values: torch.Tensor,
        noise: torch.Tensor,
        bits: PatchBits,
    ) -> dict[str, np.ndarray]:
        labels = self._labels(len(levels))
        compute = {
            "negative_log_likelihood": lambda: formulas.negative_log_likelihood(bits),
            "complexity_corrected": lambda: formulas.complexity_corrected(bits, levels, self.codecs),
            "latent_norm": lambda: formulas.latent_norm(bits),
            "gradient_norm": lambda: formulas.gradient_norm(self.model, pixel_values, noise, labels),
            "likelihood_ratio": lambda: formulas.likelihood_ratio(
                bits, self._bits(self.background, pixel_values, noise)
            ),
            PATCHES: lambda: formulas.patch_bits_per_dim(bits),
        }
        return {name: compute[name]().cpu().numpy() for name in names if name in compute}

    def _passes(
        self, images: Sequence[Any], progress: bool = False
    ) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor, PatchBits]]:
        """Yield the levels, the pixel values, the noise and the bits of each batch of images."""
        check_several(images, self.model.config)
        device, config = self.model.jet.input_device, self.model.config
        models = [self.model] if self.background is None else [self.model, self.background]
        with evaluation_mode(*models):
            for start in tqdm(range(0, len(images), self.batch_size), unit="batch", disable=not progress):
                levels = self._read(images, range(start, min(start + self.batch_size, len(images))))
                pixel_values = scale_bytes(torch.from_numpy(levels).to(device), config.num_levels)
                indices = torch.tensor([pixel_hash(image) for image in levels], device=device)
                # The stream is that of evaluations, from which training draws nothing.
                noise = uniform_noise(self.seed, indices, config.image_shape, stream=MASK)
                yield levels, pixel_values, noise, self._bits(self.model, pixel_values, noise)

    def _read(self, images: Sequence[Any], places: range) -> np.ndarray:
        levels = []
        for i in places:
            try:
                levels.append(self.processor.read_levels(images[i]))
            except ValueError as error:
                raise ValueError(f"`images[{i}]` cannot be scored: {error}") from error
            if levels[-1].shape != (shape := self.model.config.image_shape):
                raise ValueError(
                    f"`processor` must make images of the model's shape {shape}, got {levels[-1].shape} of image {i}."
                )
        return np.stack(levels)

    def _bits(self, model: Any, pixel_values: torch.Tensor, noise: torch.Tensor) -> PatchBits:
        labels = self._labels(len(pixel_values)) if model is self.model else None
        with prepared_for_inference(model):
            return formulas.bits_of_images(model, pixel_values, noise, labels)

    def _labels(self, count: int) -> torch.Tensor | None:
        return None if self.label is None else torch.full((count,), self.label, device=self.model.jet.input_device)

    def _fitted(self, purpose: str) -> dict[str, np.ndarray]:
        if not self.reference:
            raise ValueError(f"{purpose} needs reference images: call `fit` first, or load a fitted detector.")
        return self.reference

    def _check_scores_are_fitted(self) -> None:
        """Raise ValueError before the model runs if a score needs reference images and there are none."""
        for name in sorted({"largest_patch", "typicality"} & set(self.scores)):
            self._fitted(f"the score `{name}`")

    def _scores(self, measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "largest_patch" in self.scores:
            excess = formulas.largest_patch(measured[PATCHES], self.mean_patch_bits)
            measured = measured | {"largest_patch": excess}
        return {name: self._score(name, measured) for name in self.scores}

    def _score(self, name: str, measured: dict[str, np.ndarray]) -> np.ndarray:
        if name != "typicality":
            return measured[name]
        return formulas.typicality(measured["negative_log_likelihood"], self.mean_bits_per_dim)

    def _p_values(self, measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        reference = self._fitted("a p-value")
        return {name: self._p_values_of(name, measured, reference) for name in self.scores}

    def _p_values_of(self, name: str, measured: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> np.ndarray:
        count = self.num_reference_images
        if name != "typicality":
            return (1 + count - np.searchsorted(reference[name], _less_rounding(measured[name]))) / (count + 1)
        bits, p_values = reference["negative_log_likelihood"], []
        for value in measured["negative_log_likelihood"]:
            mean = (bits.sum() + value) / (count + 1)
            p_values.append((1 + (np.abs(bits - mean) >= _less_rounding(abs(value - mean))).sum()) / (count + 1))
        return np.array(p_values)

    def _batch_test(self, measured: dict[str, np.ndarray]) -> BatchTest:
        try:
            from scipy.stats import permutation_test
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the test of a batch needs scipy, of the extra `anomaly`.", name="scipy"
            ) from error
        bits = self._fitted("the test of a batch")["negative_log_likelihood"]
        batch = measured["negative_log_likelihood"]

        def distance(batch: np.ndarray, reference: np.ndarray, axis: int) -> np.ndarray:
            distances = np.abs(batch.mean(axis=axis) - reference.mean(axis=axis))
            return np.where(distances < ROUNDING, 0, distances)

        result = permutation_test(
            (batch, bits),
            distance,
            vectorized=True,
            n_resamples=NUM_RESAMPLES,
            batch=max(1, 10_000_000 // (len(batch) + len(bits))),
            alternative="greater",
            rng=np.random.default_rng(self.seed),
        )
        threshold = np.quantile(result.null_distribution, 1 - LEVEL)
        return BatchTest(float(result.statistic), float(threshold), float(result.pvalue))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """
        Write the scores of the reference images to `anomaly.json` in the folder of the saved model. A new folder gets
        the model and the image processor too.

        Args:
            folder: Folder of the same model, or a new or empty one.

        Raises:
            ValueError: without [`fit`], or for the folder of another model, or of an image processor that would fit
                images to the model in another way.
            FileExistsError: for a folder that holds anything but a model.
        """
        self._fitted("a saved detector")
        text = json.dumps(self._state(), allow_nan=False) + "\n"
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            with new_folder(folder) as draft:
                self.model.save_pretrained(draft)
                self.processor.save_pretrained(draft)
                (draft / FILE).write_text(text, encoding="utf-8")
            return
        saved, own = (fingerprint(model).hex() for model in (_load(folder), self.model))
        if saved != own:
            raise ValueError(f"`folder` must hold the detector's model {own}, but {folder} holds the model {saved}.")
        if (folder / IMAGE_PROCESSOR_NAME).is_file():
            _check_same_settings(JetImageProcessor.from_pretrained(folder), self.processor, folder)
        else:
            self.processor.save_pretrained(folder)
        replace_text(folder / FILE, text)

    def _state(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "jet_hf": __version__,
            "model": fingerprint(self.model).hex(),
            "background": None if self.background is None else fingerprint(self.background).hex(),
            "label": self.label,
            "seed": self.seed,
            "codecs": self.codecs,
            "scores": self.scores,
            "reference": {name: values.tolist() for name, values in self.reference.items()},
            "mean_patch_bits": self.mean_patch_bits.tolist(),
        }

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | os.PathLike,
        background: JetForDensityEstimation | None = None,
        batch_size: int = 32,
    ) -> "AnomalyDetector":
        """
        Load a model with its image processor and its fitted detector.

        Args:
            model_name_or_path: Folder of [`save_pretrained`], or the name of a repository on the Hub with its files.
            background: Background model, if the detector was fitted with one.
            batch_size: Number of images that the model scores at a time.

        Raises:
            ValueError: without `anomaly.json`, or with one that is damaged, or belongs to another model, background
                model or version, or to codecs that are not installed.
        """
        try:
            path = cached_file(model_name_or_path, FILE)
        except OSError as error:
            reason = "" if Path(model_name_or_path).is_dir() else f" ({error})"
            raise ValueError(
                f"{model_name_or_path} has no {FILE}: fit a detector with reference images, and save it there{reason}."
            ) from error
        state = read_state(str(path))
        model = _load(model_name_or_path)
        for name, given in (("model", model), ("background", background)):
            found = None if given is None else fingerprint(given).hex()
            if state[name] is None and found is not None:
                raise ValueError(f"`{name}` must be None for {path}, whose detector was fitted without one.")
            if found != state[name]:
                raise ValueError(f"`{name}` must be the one with the hash {state[name]} in {path}, got {found}.")
        if missing := [codec for codec in state["codecs"] if codec not in available_codecs()]:
            raise ValueError(f"{path} needs the codec {missing[0]}, which the package imagecodecs brings.")
        processor = JetImageProcessor.from_pretrained(model_name_or_path)
        detector = cls(model, background, processor, state["scores"], state["label"], batch_size, state["seed"])
        if (shape := state["mean_patch_bits"].shape) != (grid_shape := model.config.grid_shape):
            raise ValueError(f"{path} is damaged: `mean_patch_bits` must have the shape {grid_shape}, got {shape}.")
        for name in ("codecs", "reference", "mean_patch_bits"):
            setattr(detector, name, state[name])
        return detector


def pixel_hash(levels: np.ndarray) -> int:
    """Return a number from 0 to 2 ** 63 - 1 for the gray levels of an image, in the order of its array."""
    return int.from_bytes(hashlib.blake2b(levels.tobytes(), digest_size=8).digest()) >> 1


def _less_rounding(values: np.ndarray) -> np.ndarray:
    """Return the smallest values that count as equal to the given ones."""
    return values - ROUNDING * np.maximum(1, np.abs(values))


def _check_finite(name: str, values: np.ndarray) -> None:
    """Raise ValueError for values of this score (B, ...) that are not finite; the message names the image."""
    is_finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not is_finite.all():
        i = int(np.argmin(is_finite))
        raise ValueError(f"`images[{i}]` must have finite scores, but its {name} is NaN or infinite.")


def _check_same_settings(saved: JetImageProcessor, own: JetImageProcessor, folder: Path) -> None:
    """Raise ValueError if an image processor that is saved in a folder has other settings than a detector's own."""
    settings = saved.to_dict()
    for name, value in own.to_dict().items():
        if settings[name] != value:
            raise ValueError(
                f"`processor` must be that of {folder}, with which saved detectors are used: its `{name}` is "
                f"{settings[name]}, got {value}. Pass `JetImageProcessor.from_pretrained({str(folder)!r})`."
            )


def _load(name_or_path: str | os.PathLike) -> JetForDensityEstimation:
    return JetForDensityEstimation.from_pretrained(name_or_path).eval()


def check_model(config: JetConfig) -> None:
    """
    Check that images can be scored under a model.

    Raises:
        ValueError: for a model of noisy images, or with a context other than classes.
    """
    config.check_bits_per_dim()
    if config.context_size is not None:
        raise ValueError(f"`context_size` must be None for anomaly scores, got {config.context_size}.")


def check_several(images: Any, config: JetConfig) -> None:
    """
    Check that images are a sequence of images, and not one image, whose rows would pass for gray images.

    Raises:
        ValueError: for no images, one image, or anything without a length.
    """
    shape, num_channels = tuple(getattr(images, "shape", ())), config.num_channels
    has_channels = len(shape) == 3 and (shape[2] in (1, 3, 4) or shape[0] == num_channels > 1)
    is_sequence = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    is_array_of_other_rank = hasattr(images, "shape") and len(shape) in (0, 2)
    if not is_sequence or isinstance(images, str | bytes | Mapping) or is_array_of_other_rank or has_channels:
        got = f"an array of shape {shape}" if shape else type(images).__name__
        raise ValueError(f"`images` must be a list of images, or an array (B, C, H, W) or (B, H, W, C), got {got}.")
    if len(images) == 0:
        raise ValueError("`images` must be at least one image, got none.")


def check_background(background: JetConfig, config: JetConfig) -> None:
    """Raise ValueError for a background model that cannot score the images of a model."""
    try:
        check_model(background)
    except ValueError as error:
        raise ValueError(f"`background` cannot be used: {error}") from error
    for name in ("image_shape", "num_levels"):
        if (value := getattr(background, name)) != (expected := getattr(config, name)):
            raise ValueError(f"`background` must have the model's {name} {expected}, got {value}.")


def _check_scores(names: Sequence[str] | None, config: JetConfig, has_background: bool) -> list[str]:
    """Return the names of scores; by default those that a model has."""
    problems = {}
    if not has_background:
        problems["likelihood_ratio"] = "a background model"
    if config.num_channels not in (1, 3) or config.num_levels > 256:
        problems["complexity_corrected"] = (
            "images of 1 or 3 channels and at most 256 levels, which codecs take, got `num_channels` "
            f"{config.num_channels} and `num_levels` {config.num_levels}"
        )
    if names is None:
        return [name for name in ANOMALY_SCORES if name not in problems]
    if isinstance(names, str) or not names:
        raise ValueError(f"`scores` must be a list of at least one of {', '.join(ANOMALY_SCORES)}, got {names!r}.")
    for name in names:
        if name not in ANOMALY_SCORES:
            raise ValueError(f"`scores` must contain only {', '.join(ANOMALY_SCORES)}, got {name!r}.")
        if name in problems:
            raise ValueError(f"the score `{name}` needs {problems[name]}.")
    return list(dict.fromkeys(names))


def read_state(path: str) -> dict[str, Any]:
    """
    Return the content of `anomaly.json`, with scores as arrays.

    Raises:
        ValueError: for content of another version, or that no detector wrote.
    """
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or "format" not in state:
            raise ValueError("it has no format")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if state["format"] != FORMAT:
        raise ValueError(
            f"{path} must have the format {FORMAT}, got {state['format']!r} of jet_hf {state.get('jet_hf')}: fit the "
            "detector again."
        )
    kinds: dict[str, Any] = {"model": str, "background": str | None, "label": int | None, "seed": int}
    kinds |= {"codecs": list, "scores": list, "reference": dict}
    for name, kind in kinds.items():
        value = state.get(name)
        if not isinstance(value, kind) or (kind is list and not (value and all(isinstance(x, str) for x in value))):
            raise ValueError(f"{path} is damaged: `{name}` must be {kind}, got {value!r}.")
    names = {"negative_log_likelihood", *state["scores"]} - {"typicality"}
    reference = {name: _numbers(path, name, state["reference"].get(name), ndim=1) for name in sorted(names)}
    for name, values in reference.items():
        if (np.diff(values) < 0).any():
            raise ValueError(f"{path} is damaged: the scores {name} must be in ascending order.")
    lengths = {len(values) for values in reference.values()}
    if len(lengths) != 1 or min(lengths) < 2:
        raise ValueError(f"{path} is damaged: all scores must be of the same images, at least 2.")
    patches = _numbers(path, "mean_patch_bits", state.get("mean_patch_bits"), ndim=2)
    return state | {"reference": reference, "mean_patch_bits": patches}


def _numbers(path: str, name: str, values: Any, ndim: int) -> np.ndarray:
    """Return finite numbers as an array, or raise ValueError for anything else."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.ndim != ndim or not np.isfinite(array).all():
        raise ValueError(f"{path} is damaged: `{name}` must hold finite numbers.")
    return array
