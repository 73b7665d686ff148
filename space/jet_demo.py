# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Functions of the demo, without Gradio."""

import contextlib
import copy
import json
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers.utils import cached_file
from uploads import UnreadableImageError, read_upload

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis import sampling
from jet_hf.analysis.anomaly.detector import FILE as ANOMALY_FILE
from jet_hf.analysis.baselines import available_codecs, codec_bits_per_dim, encode_lossless
from jet_hf.analysis.codec.container import unpack
from jet_hf.analysis.density import bits_per_patch
from jet_hf.analysis.inference import can_prepare, prepare_for_inference, undo_preparation
from jet_hf.anomaly import AnomalyDetector
from jet_hf.codec import Codec, CodecError
from jet_hf.model.modeling_jet import dequantize, scale_bytes
from jet_hf.prior import JetPrior
from jet_hf.utils.noise import uniform_noise


SCORES_FILE = "held_out_scores.json"
FITS = ("resize", "crop")
# Fit of pictures that become files: the whole picture.
WHOLE = "whole"
MAPS = ("all bits", "latent term", "log-determinant term")
ALL_CLASSES = -1
MAX_CLASS = 999_999
MAX_IMAGES = 36
MAX_TEMPERATURE = 2
MAX_SEED = 2**32 - 1
MAX_NOISE_DRAWS = 32
MAX_STEPS = 16
MAX_TRUNCATION = 6
# Longest side of pictures that become files.
MAX_FILE_SIDE = 256
# Larger models are not copied, for the codec in float64 and for gradients, and lack these functions.
MAX_COPIED_PARAMETERS = 50_000_000
# Standard deviation of the noise that denoising removes, in gray levels, and the steps that it takes.
MIN_NOISE, MAX_NOISE, NUM_DENOISING_STEPS = 1, 100, 30


class HeldOutScores(NamedTuple):
    """Title of images that are not in a model's training data, and their scores, float64 (num_images,)."""

    title: str
    bits_per_dim: np.ndarray


class Fitted(NamedTuple):
    """
    Image at the model's size, a uint8 tensor (C, S, S) on the CPU, and remarks for its sender, as sentences.

    With the fit "whole", the tensor has the shape (C, H, W) of the picture.
    """

    pixels: torch.Tensor
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CompressedPicture:
    """
    Picture as a file of the codec.

    Args:
        fitted: The picture.
        data: The file.
        sizes: Number of bytes of lossless files of the same pixels, with their formats as keys. "jet" is the codec's.
        is_webp: Whether the file holds plain WebP, which is smaller than what the model makes of this picture.
    """

    fitted: Fitted
    data: bytes
    sizes: dict[str, int]
    is_webp: bool

    def to_dict(self) -> dict:
        """Return sizes in bytes and in bits per dimension, in JSON types."""
        _, height, width = self.fitted.pixels.shape
        return {
            "height": height,
            "width": width,
            "bytes": self.sizes,
            "bits_per_dim": {name: 8 * size / self.fitted.pixels.numel() for name, size in self.sizes.items()},
            "is_webp": self.is_webp,
            "notes": list(self.fitted.notes),
        }


@dataclass(frozen=True)
class Score:
    """
    Likelihood of an image.

    Args:
        fitted: Image at the model's size.
        draws: Bits per dimension for each dequantization noise draw, float64 (num_noise_draws,).
        latent, log_det: Terms of the bits per dimension of each patch, averaged over the draws, float64 (S/p, S/p).
        png_bits_per_dim, webp_bits_per_dim: Size of lossless files of the same pixels.
        share_above: Share of the held-out images with more bits, or `None` if there are no held-out scores.
    """

    fitted: Fitted
    draws: np.ndarray
    latent: np.ndarray
    log_det: np.ndarray
    png_bits_per_dim: float
    webp_bits_per_dim: float
    share_above: float | None

    @property
    def bits_per_dim(self) -> float:
        """Mean over the draws."""
        return float(self.draws.mean())

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean over the draws, or `None` for a single draw."""
        return float(self.draws.std(ddof=1)) / math.sqrt(len(self.draws)) if len(self.draws) > 1 else None

    @property
    def num_dims(self) -> int:
        """Number of values of the image."""
        return self.fitted.pixels.numel()

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Total bits of each patch and the two terms, with the titles of `MAPS` as keys."""
        return dict(zip(MAPS, (self.latent + self.log_det, self.latent, self.log_det), strict=True))

    def to_dict(self) -> dict:
        """Return the score in JSON types. The log-likelihood is in nats."""
        return {
            "bits_per_dim": self.bits_per_dim,
            "standard_error": self.standard_error,
            "log_likelihood": -self.bits_per_dim * self.num_dims * math.log(2),
            "png_bits_per_dim": self.png_bits_per_dim,
            "webp_bits_per_dim": self.webp_bits_per_dim,
            "num_dims": self.num_dims,
            "num_noise_draws": len(self.draws),
            "share_of_held_out_above": self.share_above,
            "latent_bits_per_dim_of_patches": self.latent.round(6).tolist(),
            "log_det_bits_per_dim_of_patches": self.log_det.round(6).tolist(),
            "notes": list(self.fitted.notes),
        }


class Sampler:
    """
    Model that draws samples.

    Every function is pure: all random numbers come from its own seed, so that equal calls have equal results. The
    inputs in `components.py` check the arguments.

    Args:
        model_id: Folder of a saved model, or its name on the Hub. Only safetensors are loaded, and no remote code.
        device: Device of the model. `None` uses a GPU if there is one.

    Raises:
        OSError, ValueError: If the model does not exist or cannot be loaded.
    """

    def __init__(self, model_id: str | os.PathLike, device: str | None = None):
        self.model_id = str(model_id)
        self.model = JetForDensityEstimation.from_pretrained(self.model_id, use_safetensors=True).eval()
        self.processor = JetImageProcessor.from_pretrained(self.model_id)
        self.processor.check_scale(self.model.config.num_levels)
        self.use_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def use_device(self, device: str) -> None:
        """Move the model to a device."""
        undo_preparation(self.model)
        self.model.to(device)
        # Denoising takes gradients.
        if not self.model.denoises() and can_prepare(self.model):
            prepare_for_inference(self.model)

    @property
    def num_columns(self) -> int:
        """Number of patches in a row."""
        return self.model.config.grid_shape[1]

    @property
    def title(self) -> str:
        """Name of the model: its name on the Hub, or the one in its card, or the name of its folder."""
        folder = Path(self.model_id)
        if not folder.is_dir():
            return self.model_id
        card = folder / "README.md"
        name = ModelCard.load(card, ignore_metadata_errors=True).data.model_name if card.is_file() else None
        return name or folder.resolve().name

    @property
    def classes(self) -> list[str]:
        """Names of the model's classes, empty for an unconditional model."""
        num_classes, names = self.model.config.num_classes or 0, self.model.config.id2label
        has_names = len(names) == num_classes and names[0] != "LABEL_0"  # the default of transformers
        return [names[i] if has_names else f"class {i}" for i in range(num_classes)]

    def sample(self, num_images: int, temperature: float, seed: int, label: int = ALL_CLASSES) -> list[Image.Image]:
        """
        Draw images.

        Args:
            num_images: Number of images, 1 to 36.
            temperature: Standard deviation of the latents, 0 to 2.
            seed: Seed, 0 to 2 ** 32 - 1. A larger `num_images` continues the images of the same seed.
            label: Class of the images for a class-conditional model, or -1 for all classes in turn.
        """
        chosen = None if label == ALL_CLASSES else label
        return sampling.sample_images(self.model, self.processor, num_images, temperature, seed, label=chosen)

    def sample_steps(
        self, num_images: int, temperature: float, seed: int, num_looks: int, label: int = ALL_CLASSES
    ) -> Iterator[tuple[int, list[Image.Image]]]:
        """Yield numbers of inverted coupling layers and the images after them, ending with those of [`sample`]."""
        (latents,) = sampling.draw_latents(self.model, num_images, seed, batch_size=num_images)
        labels = sampling.sample_labels(self.model, range(num_images), None if label == ALL_CLASSES else label)
        noise_std = self.model.config.noise_range and self.model.config.noise_range[1]
        steps = sampling.decode_steps(self.model, temperature * latents, num_looks, labels=labels, noise_std=noise_std)
        for done, state in steps:
            if done == self.model.config.num_coupling_layers and self.model.denoises():
                state = self.model.denoise(state, labels=labels, noise_std=noise_std)
            yield done, self.processor.post_process(state, dequantized=self.model.config.noise_std is None)


class JetDemo(Sampler):
    """
    Model whose likelihoods are bits per dimension of 8-bit images, and the functions of the demo.

    Args:
        model_id, device: See [`Sampler`].

    Raises:
        OSError, ValueError: If the model does not exist or cannot be loaded, or is not of square 8-bit images.
    """

    codec: Codec | None = None
    prior: JetPrior | None = None
    detector: AnomalyDetector | None = None

    def __init__(self, model_id: str | os.PathLike, device: str | None = None):
        super().__init__(model_id, device)
        config = self.model.config
        config.check_bits_per_dim()
        if config.num_levels != 256:
            raise ValueError(f"the demo takes models of 256 gray levels, got {config.num_levels}.")
        if not isinstance(config.image_size, int):
            raise ValueError(f"the demo takes models of square images, got `image_size` {config.image_size}.")
        self.held_out = load_scores(self.model_id)
        if self.model.num_parameters() <= MAX_COPIED_PARAMETERS:
            self.detector = load_detector(self.model_id)
            plain = copy.deepcopy(self.model) if self.detector is None else self.detector.model
            undo_preparation(plain)
            self.prior = JetPrior(plain.to(self.model.jet.input_device))
            with contextlib.suppress(ValueError):  # the codec refuses some models
                self.codec = Codec(self.model)
        # Averaging an image of 50 million pixels takes several hundred megabytes, hence one image at a time.
        self._fitting = threading.Lock()

    def use_device(self, device: str) -> None:
        """Move the model and its copies to a device. The codec stays on the CPU."""
        super().use_device(device)
        for copied in (self.prior, self.detector):
            if copied is not None:
                copied.model.to(device)

    def score(self, image: Fitted, num_noise_draws: int) -> Score:
        """Compute the likelihood of an image, with 1 to 32 dequantization noise draws."""
        device, shape = self.model.jet.input_device, tuple(image.pixels.shape)
        noise = uniform_noise(0, torch.arange(num_noise_draws, device=device), shape)
        pixel_values = self.pixel_values(image).expand(num_noise_draws, *shape)
        bits = bits_per_patch(self.model, pixel_values, noise, labels=sampling.no_labels(self.model, num_noise_draws))
        draws = bits.total.sum(dim=(1, 2)).cpu().numpy() / image.pixels.numel()
        patch_dim = self.model.config.patch_dim
        latent, log_det = (term.mean(dim=0).cpu().numpy() / patch_dim for term in (bits.latent, bits.log_det))
        pixels = image.pixels.numpy()[None]
        png, webp = (float(codec_bits_per_dim(pixels, codec)[0]) for codec in ("png", "webp"))
        above = None if self.held_out is None else float((self.held_out.bits_per_dim > draws.mean()).mean())
        return Score(image, draws, latent, log_det, png, webp, above)

    def reconstruct(self, image: Fitted) -> tuple[Image.Image, torch.Tensor, Image.Image, dict]:
        """
        Encode an image and decode it again.

        Returns:
            The image, its latents (1, C, S, S), the decoded image, and a dictionary with `max_abs_error`, on the scale
            [-1, 1], and `bytes_equal`.
        """
        pixel_values = self.pixel_values(image)
        result = sampling.reconstruct(self.model, pixel_values)
        original, decoded = (self.processor.post_process(values)[0] for values in (pixel_values, result.pixel_values))
        measured = {"max_abs_error": result.max_abs_error, "bytes_equal": result.bytes_equal}
        return original, result.latents, decoded, measured

    def judge(self, image: Fitted) -> tuple[dict[str, dict[str, float]], np.ndarray]:
        """
        Compare an image with the reference images of the model's folder, see [`jet_hf.anomaly`].

        Returns:
            The `score` and the `p_value` by the name of the score, and the bits per dimension of each patch in excess
            of the reference images, float64 (S/p, S/p).
        """
        judgment = self.detector.judge([self.picture(image)])
        table = {
            name: {"score": float(scores[0]), "p_value": float(judgment.p_values[name][0])}
            for name, scores in judgment.scores.items()
        }
        return table, judgment.heat_maps[0]

    def denoise(self, image: Fitted, sigma: float) -> Image.Image:
        """
        Return the most probable image, given an image with Gaussian noise, see [`jet_hf.prior`].

        Args:
            image: Noisy image.
            sigma: Standard deviation of the noise, 1 to 100 gray levels.
        """
        level = sigma / self.model.config.levels_per_unit
        found = self.prior.denoise(self.pixel_values(image), level, num_steps=NUM_DENOISING_STEPS)
        return self.processor.post_process(found, dequantized=False)[0]

    def compress(self, picture: Fitted) -> CompressedPicture:
        """Compress a picture without loss, see [`jet_hf.codec.compress`], and by other codecs at medium effort."""
        array = np.ascontiguousarray(picture.pixels.permute(1, 2, 0).numpy())
        plain = array[:, :, 0] if array.shape[2] == 1 else array

        def size(name: str) -> int:
            # At its highest effort, WebP takes seconds for a picture, and saves 1 % or nothing.
            return len(encode_lossless(plain, name, fast=True))

        codecs = available_codecs()
        with ThreadPoolExecutor(1) as beside:
            others = beside.map(size, codecs)
            data, weight = self.codec.compress([array])
        sizes = {"jet": len(data)} | dict(zip(codecs, others, strict=True))
        return CompressedPicture(picture, data, sizes, weight.is_webp)

    def decompress(self, data: bytes, name: str = "file") -> tuple[Image.Image, dict]:
        """
        Decompress a file of [`compress`].

        Args:
            data: The file.
            name: Name of the file in messages.

        Returns:
            The picture, and a dictionary with its `height`, `width` and `checksum`, which the file and the pixels have
            in common.

        Raises:
            CodecError: If the data are not a file of this model with one picture of at most 256 pixels a side.
        """
        try:
            files = list(unpack(data))
            headers = [header for _, header, _ in files]
            if [header.num_images for header in headers] != [1] or max(headers[0].image_shapes()[0]) > MAX_FILE_SIDE:
                raise CodecError(f"the file must hold one picture of at most {MAX_FILE_SIDE} pixels a side.")
            ((_, array),) = self.codec.decode(*files[0])
        except CodecError as error:
            raise CodecError(f"`{name}` cannot be decompressed: {error}") from None
        image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
        return image, {"height": image.height, "width": image.width, "checksum": f"{headers[0].pixels:08x}"}

    def show_latents(self, latents: torch.Tensor) -> Image.Image:
        """Draw latents (1, C, S, S) from -3 to 3 as an image, in which zero is gray."""
        return self.processor.post_process(latents / 3)[0]

    @torch.no_grad()
    def edit(
        self,
        latents: torch.Tensor,
        other: Fitted | None = None,
        mix: float = 0,
        noise: float = 0,
        truncation: float = MAX_TRUNCATION,
        seed: int = 0,
        patch: int = 0,
    ) -> Image.Image:
        """
        Edit the latents of an image and decode them.

        Args:
            latents: Latents (1, C, S, S) of [`reconstruct`].
            other: Second image, required if `mix` is not 0.
            mix: Position between the latents of the image and those of the second image, 0 to 1.
            noise: Share of new noise `n`, 0 to 1. The latents become `sqrt(1 - n ** 2) * latents + n * noise`.
            truncation: Bound to which the latents are clipped, 0 to 6. At 6 they are not clipped.
            seed: Seed of the noise.
            patch: Patch that gets new latents, counted from 1 in rows; 0 for none.
        """
        labels = sampling.no_labels(self.model, 1)
        if mix > 0:
            end, _ = self.model.encode(dequantize(self.pixel_values(other), sampling.MID_LEVEL), labels=labels)
            latents = sampling.latent_path(latents[0], end[0], torch.tensor([mix], dtype=torch.float64))
        if noise > 0 or patch > 0:
            (fresh,) = sampling.draw_latents(self.model, 1, seed, batch_size=1)
            latents = math.sqrt(1 - noise**2) * latents + noise * fresh
        if patch > 0:
            row, column = divmod(patch - 1, self.num_columns)
            side = self.model.config.patch_size
            area = (..., slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            latents = latents.clone()
            latents[area] = fresh[area]
        if truncation < MAX_TRUNCATION:
            latents = latents.clamp(-truncation, truncation)
        decoded, _ = self.model.decode(latents, labels=labels)
        return self.processor.post_process(decoded)[0]

    def between(self, first: Fitted, second: Fitted, position: float) -> Image.Image:
        """Return the image at a position between two images in the latent space, from 0 to 1."""
        _, latents, _, _ = self.reconstruct(first)
        return self.edit(latents, second, mix=position)

    def interpolate(self, first: Fitted, second: Fitted, steps: int) -> list[Image.Image]:
        """Return 2 to 16 images between two images in the latent space, including both ends."""
        ends = (self.pixel_values(image)[0] for image in (first, second))
        return self.processor.post_process(sampling.interpolate(self.model, *ends, steps))

    def picture(self, image: Fitted) -> Image.Image:
        """Return an image at the model's size."""
        return Image.fromarray(image.pixels.permute(1, 2, 0).numpy().squeeze())

    def pixel_values(self, image: Fitted) -> torch.Tensor:
        """Return an image as model input, float32 (1, C, S, S)."""
        return scale_bytes(image.pixels.to(self.model.jet.input_device))[None]

    def load(self, path: str | os.PathLike, fit: str = FITS[0], name: str = "image") -> Fitted:
        """
        Read an image and bring it to the model's size.

        Args:
            path: Path of an untrusted image.
            fit: "resize" averages the central square down, as the image processor does. "crop" takes the central
                pixels at full resolution. "whole" keeps the whole picture, averaged down to at most 256 pixels a side.
            name: Name of the image in messages.

        Raises:
            UnreadableImageError: If the image cannot be used.
        """
        image, notes = read_upload(path, name)
        size = self.model.config.image_size
        width, height = image.size
        if fit == WHOLE:
            with self._fitting:
                return self._whole(image, notes)
        if min(width, height) < size:
            notes += (f"The image has only {width} x {height} pixels and was enlarged, which affects the score.",)
        elif fit == "crop":
            left, top = (width - size) // 2, (height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        try:
            with self._fitting:
                return self.fitted(image, notes)
        except ValueError as error:
            raise UnreadableImageError(f"`{name}` cannot be used: {error}") from None

    def fitted(self, image: Image.Image, notes: tuple[str, ...] = ()) -> Fitted:
        """Average the central square of an image down to the model's size."""
        return Fitted(torch.from_numpy(np.ascontiguousarray(self.processor.to_uint8(image))), notes)

    def _whole(self, image: Image.Image, notes: tuple[str, ...]) -> Fitted:
        # The model has no transparency, and one color mode. White stands behind transparent pixels.
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            notes += ("Transparent pixels were laid on white.",)
        image = image.convert("RGB" if self.model.config.num_channels == 3 else "L")
        if max(image.size) > MAX_FILE_SIDE:
            image.thumbnail((MAX_FILE_SIDE, MAX_FILE_SIDE), Image.Resampling.BOX, reducing_gap=None)
            notes += (f"The picture was averaged down to {image.width} x {image.height} pixels first.",)
        array = np.array(image, ndmin=2)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        return Fitted(torch.from_numpy(np.ascontiguousarray(array)), notes)


def load_detector(model_id: str) -> AnomalyDetector | None:
    """
    Load the reference that `jet-hf anomaly --save_reference` writes, if the model's folder contains it.

    Raises:
        ValueError: If the file is invalid.
    """
    return AnomalyDetector.from_pretrained(model_id) if find_file(model_id, ANOMALY_FILE) else None


def find_file(model_id: str, name: str) -> str | None:
    """Return the path of a file in a model's folder or repository, or `None` if there is none."""
    return cached_file(
        model_id, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )


def load_scores(model_id: str) -> HeldOutScores | None:
    """
    Load the scores that `scripts/evaluate.py --scores_file` writes, if the model's folder contains them.

    Raises:
        ValueError: If the file is invalid.
    """
    path = find_file(model_id, SCORES_FILE)
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        scores = np.array(content["bits_per_dim"], dtype=np.float64)
        title = f"{content['num_images']:,} held-out images of `{content['dataset']}`"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must contain scores: {type(error).__name__}: {error}") from error
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"`bits_per_dim` in {path} must be a list of finite numbers, got shape {scores.shape}.")
    return HeldOutScores(title, scores)
