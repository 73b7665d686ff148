# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""What the demo does with a model: everything behind the buttons, without Gradio."""

import json
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from checks import check_choice, check_number, check_whole
from huggingface_hub import ModelCard
from PIL import Image
from transformers.utils import cached_file
from uploads import UnreadableImageError, Upload, read_upload

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.baselines import codec_bits_per_dim
from jet_hf.analysis.density import bits_per_patch
from jet_hf.analysis.sampling import (
    MID_LEVEL,
    decode_steps,
    draw_latents,
    interpolate,
    latent_path,
    no_labels,
    reconstruct,
    sample_images,
    sample_labels,
)
from jet_hf.model.modeling_jet import dequantize, scale_bytes
from jet_hf.utils.noise import uniform_noise


SCORES_FILE = "held_out_scores.json"
FITS = ("resize", "crop")
MAPS = ("all bits", "latent term", "log-determinant term")
ALL_CLASSES = -1
MAX_IMAGES = 36
MAX_TEMPERATURE = 2.0
MAX_SEED = 2**32 - 1
MAX_NOISE_DRAWS = 32
MAX_STEPS = 16
MAX_TRUNCATION = 6.0


@dataclass(frozen=True)
class HeldOutScores:
    """
    Scores of images that a model never saw.

    Args:
        title: What the images are.
        bits_per_dim: Of each image, float64 (num_images,).
    """

    title: str
    bits_per_dim: np.ndarray


@dataclass(frozen=True)
class Fitted:
    """
    A picture brought to the model's size.

    Args:
        pixels: Its bytes, uint8 tensor (C, S, S), on the CPU.
        notes: What was done that its sender should know, in sentences.
    """

    pixels: torch.Tensor
    notes: tuple[str, ...]


# A picture as the functions below take it: the path of its file, None if there is none, or already fitted.
Picture = str | os.PathLike | Fitted | None


@dataclass(frozen=True)
class Score:
    """
    The likelihood of one picture, taken apart.

    Args:
        fitted: The picture as the model sees it.
        draws: Bits per dimension under each draw of dequantisation noise, float64 (num_noise_draws,).
        latent, log_det: Bits per dimension of each patch, the mean over the draws, float64 (S/p, S/p).
        png_bits_per_dim, webp_bits_per_dim: Of the same pixels in a lossless file of their own.
        share_above: Share of the held-out images that take more bits; None where the model has no such scores.
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
        return float(self.draws.mean())

    @property
    def standard_error(self) -> float | None:
        """Of the mean over the draws; None for a single one."""
        return float(self.draws.std(ddof=1)) / math.sqrt(len(self.draws)) if len(self.draws) > 1 else None

    @property
    def num_dims(self) -> int:
        return self.fitted.pixels.numel()

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """All bits of each patch, and the two terms they are made of, under the titles of `MAPS`."""
        return dict(zip(MAPS, (self.latent + self.log_det, self.latent, self.log_det), strict=True))

    def to_dict(self) -> dict:
        """Ready for JSON; log-likelihood in nats."""
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


class JetDemo:
    """
    A model and what the demo does with it. Every call is a pure function of its arguments: all random numbers come
    from the call's own seed, so that the same call gives the same answer.

    Args:
        model_id: Folder of a saved model, or its name on the Hub. Only safetensors are loaded, and no code from there.
        device: Where the model runs; by default a GPU if there is one.

    Raises:
        OSError, ValueError: if there is no such model, or it cannot be loaded.
    """

    def __init__(self, model_id: str | os.PathLike, device: str | None = None):
        self.model_id = str(model_id)
        self.model = JetForDensityEstimation.from_pretrained(self.model_id, use_safetensors=True).eval()
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = JetImageProcessor.from_pretrained(self.model_id)
        self.held_out = load_scores(self.model_id)
        # Averaging a picture of 50 million pixels takes several hundred megabytes: one at a time.
        self._fitting = threading.Lock()

    @property
    def title(self) -> str:
        """The model's name: of a folder, what its card calls it, or else the folder's name."""
        folder = Path(self.model_id)
        if not folder.is_dir():
            return self.model_id
        card = folder / "README.md"
        named = ModelCard.load(card, ignore_metadata_errors=True).data.model_name if card.is_file() else None
        return named or folder.resolve().name

    @property
    def classes(self) -> list[str]:
        """Names of the model's classes; none of a model without."""
        number, names = self.model.config.num_classes or 0, self.model.config.id2label
        named = len(names) == number and names[0] != "LABEL_0"  # transformers' own name for a class without
        return [names[i] if named else f"class {i}" for i in range(number)]

    def check_label(self, label: int) -> int | None:
        """The class that a visitor asks for, `None` for all in turn; raises ValueError if there is no such class."""
        label = check_whole("label", label, ALL_CLASSES, len(self.classes) - 1)
        return None if label == ALL_CLASSES else label

    def sample(self, num_images: int, temperature: float, seed: int, label: int = -1) -> list[Image.Image]:
        """
        Draws images.

        Args:
            num_images: 1 to 36.
            temperature: Standard deviation of the latents, 0 to 2.
            seed: 0 to 2 ** 32 - 1. The same seed gives the same images, and more of them for a larger number.
            label: Class of the images, where the model has classes; -1 goes through all in turn.

        Raises:
            ValueError: for a number out of range.
        """
        num_images, temperature, seed = check_sampling(num_images, temperature, seed)
        label = self.check_label(label)
        return sample_images(self.model, self.processor, num_images, temperature, seed, label=label)

    def sample_steps(
        self, num_images: int, temperature: float, seed: int, num_looks: int, label: int = -1
    ) -> Iterator[tuple[int, list[Image.Image]]]:
        """[`sample`] with looks at the images on the way, after so many coupling layers as each comes with."""
        num_images, temperature, seed = check_sampling(num_images, temperature, seed)
        (latents,) = draw_latents(self.model, num_images, seed, batch_size=num_images)
        labels = sample_labels(self.model, range(num_images), self.check_label(label))
        for done, state in decode_steps(self.model, temperature * latents, num_looks, labels=labels):
            yield done, self.processor.post_process(state)

    def score(self, picture: Picture, num_noise_draws: int, fit: str) -> Score:
        """
        Scores a picture.

        Args:
            picture: The picture.
            num_noise_draws: Draws of dequantisation noise, 1 to 32.
            fit: "resize", the central square averaged down, or "crop", the central pixels as they are.

        Raises:
            ValueError: for a number or `fit` out of range, or a picture that cannot be used.
        """
        num_noise_draws = check_whole("num_noise_draws", num_noise_draws, 1, MAX_NOISE_DRAWS)
        fitted = self.prepare(picture, fit)
        device = self.model.jet.input_device
        shape = tuple(fitted.pixels.shape)
        noise = uniform_noise(0, torch.arange(num_noise_draws, device=device), shape)
        pixel_values = scale_bytes(fitted.pixels.to(device)).expand(num_noise_draws, *shape)
        labels = no_labels(self.model, num_noise_draws)
        bits = bits_per_patch(self.model, pixel_values, noise, labels=labels)
        draws = bits.total.sum(dim=(1, 2)).cpu().numpy() / fitted.pixels.numel()
        patch_dim = self.model.config.patch_dim
        latent, log_det = (term.mean(dim=0).cpu().numpy() / patch_dim for term in (bits.latent, bits.log_det))
        pixels = fitted.pixels.numpy()[None]
        png, webp = (float(codec_bits_per_dim(pixels, codec)[0]) for codec in ("png", "webp"))
        above = None if self.held_out is None else float((self.held_out.bits_per_dim > draws.mean()).mean())
        return Score(fitted, draws, latent, log_det, png, webp, above)

    def reconstruct(self, picture: Picture, fit: str) -> tuple[Image.Image, torch.Tensor, Image.Image, dict]:
        """
        Encodes a picture and decodes it again.

        Returns:
            The picture as the model sees it, its latents (1, C, S, S), what came back, and `max_abs_error`, on the
            scale [-1, 1], and `bytes_equal`.

        Raises:
            ValueError: for another `fit`, or a picture that cannot be used.
        """
        pixel_values = self.pixel_values(self.prepare(picture, fit))
        result = reconstruct(self.model, pixel_values)
        original, decoded = (self.processor.post_process(values)[0] for values in (pixel_values, result.pixel_values))
        measured = {"max_abs_error": result.max_abs_error, "bytes_equal": result.bytes_equal}
        return original, result.latents, decoded, measured

    def show_latents(self, latents: torch.Tensor) -> Image.Image:
        """Latents (1, C, S, S) as a picture: three standard deviations to either side of zero, which is gray."""
        return self.processor.post_process(latents / 3)[0]

    @torch.no_grad()
    def edit(
        self,
        latents: torch.Tensor,
        other: Picture,
        fit: str,
        mix: float,
        noise: float,
        truncation: float,
        seed: int,
        other_name: str = "second image",
    ) -> Image.Image:
        """
        Edits the latents of a picture, and decodes them.

        Args:
            latents: Those that [`reconstruct`] gives.
            other: A second picture, needed where `mix` is not 0.
            fit: As for [`score`].
            mix: Place on the way to the second picture's latents, 0 to 1.
            noise: Share of fresh noise `n`, 0 to 1: the latents become `sqrt(1 - n ** 2) * latents + n * noise`.
            truncation: Latents beyond it, on either side of zero, are brought back to it; 0 to 6, which leaves them.
            seed: Draws the noise.
            other_name: Name of the second picture in messages.

        Raises:
            ValueError: for a number or `fit` out of range, or a picture that is missing or cannot be used.
        """
        mix, noise = check_number("mix", mix, 0, 1), check_number("noise", noise, 0, 1)
        truncation = check_number("truncation", truncation, 0, MAX_TRUNCATION)
        _, _, seed = check_sampling(1, 1.0, seed)
        if mix > 0:
            second = self.pixel_values(self.prepare(other, fit, other_name))
            end, _ = self.model.encode(dequantize(second, MID_LEVEL), labels=no_labels(self.model, 1))
            latents = latent_path(latents[0], end[0], torch.tensor([mix], dtype=torch.float64))
        if noise > 0:
            (fresh,) = draw_latents(self.model, 1, seed, batch_size=1)
            latents = math.sqrt(1 - noise**2) * latents + noise * fresh
        if truncation < MAX_TRUNCATION:
            latents = latents.clamp(-truncation, truncation)
        decoded, _ = self.model.decode(latents, labels=no_labels(self.model, 1))
        return self.processor.post_process(decoded)[0]

    def interpolate(
        self, picture_a: Picture, picture_b: Picture, steps: int, fit: str = "resize"
    ) -> list[Image.Image]:
        """
        Images on the way from one picture to another through the latent space, both ends included.

        Raises:
            ValueError: for `steps` outside of 2 to 16, or a picture that is missing or cannot be used.
        """
        steps = check_whole("steps", steps, 2, MAX_STEPS)
        ends = [
            self.pixel_values(self.prepare(picture, fit, name))[0]
            for picture, name in ((picture_a, "image_a"), (picture_b, "image_b"))
        ]
        return self.processor.post_process(interpolate(self.model, *ends, steps))

    def pixel_values(self, fitted: Fitted) -> torch.Tensor:
        """A picture on the model's scale, where the model is: float32 (1, C, S, S)."""
        return scale_bytes(fitted.pixels.to(self.model.jet.input_device))[None]

    def fit(self, upload: Upload, fit: str) -> Fitted:
        """
        Brings a picture to the model's size.

        Args:
            upload: The picture.
            fit: "resize": the central square, averaged down over equal areas, as the model's processor does; "crop":
                the central pixels at full resolution.

        Raises:
            ValueError: for another `fit`, or pixel values that cannot be made bytes.
        """
        check_choice("fit", fit, FITS)
        size, image, notes = self.model.config.image_size, upload.image, list(upload.notes)
        width, height = image.size
        if min(width, height) < size:
            notes.append(
                f"It has only {width} x {height} pixels and was enlarged: the score is that of the enlarged image."
            )
        elif fit == "crop":
            left, top = (width - size) // 2, (height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        try:
            with self._fitting:
                pixels = self.processor.to_uint8(image)
        except ValueError as error:
            raise UnreadableImageError(f"`{upload.name}` cannot be used: {error}") from None
        return Fitted(torch.from_numpy(np.ascontiguousarray(pixels)), tuple(notes))

    def prepare(self, picture: Picture, fit: str, name: str = "image") -> Fitted:
        """
        Read a picture and bring it to the model's size, if that has not been done.

        Raises:
            ValueError: if there is no picture, or it cannot be used.
        """
        if isinstance(picture, Fitted):
            return picture
        return self.fit(read_upload(picture, name), fit)


def load_scores(model_id: str) -> HeldOutScores | None:
    """
    The scores that `scripts/evaluate.py --scores_file` writes, if the model comes with them.

    Raises:
        ValueError: if the file is not of that form.
    """
    path = cached_file(
        model_id,
        SCORES_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        scores = np.array(content["bits_per_dim"], dtype=np.float64)
        title = f"{content['num_images']:,} held-out images of {content['dataset']}"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold scores: {type(error).__name__}: {error}") from error
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"{path} must hold finite scores in `bits_per_dim`, got an array of shape {scores.shape}.")
    return HeldOutScores(title, scores)


def check_sampling(num_images: int, temperature: float, seed: int) -> tuple[int, float, int]:
    return (
        check_whole("num_images", num_images, 1, MAX_IMAGES),
        check_number("temperature", temperature, 0, MAX_TEMPERATURE),
        check_whole("seed", seed, 0, MAX_SEED),
    )
