# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Feature extractors, whose spaces the figures of samples compare images in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..hub.card import HUB_ID
from ..hub.pretrained import missing_path
from ..model.configuration_jet import level_dtype
from ..model.modeling_jet import scale_bytes


# Map of images (B, C, S, S), float32 on the scale [-1, 1], to features (B, D).
FeatureExtractor = Callable[[torch.Tensor], torch.Tensor]


def build_extractor(
    name: str, images: np.ndarray, num_levels: int = 256, device: torch.device | str = "cpu", seed: int = 0
) -> FeatureExtractor:
    """
    Return a feature extractor.

    Args:
        name: `"pixels"`, `"inception"`, or the folder or Hub name of an image model of transformers, such as DINOv2.
        images: Gray levels (num_images, C, S, S) of the images to which [`PixelFeatures`] are fitted.
        num_levels: Number of gray levels.
        device: Device of the extractor's network.
        seed: Seed of the randomized solver of the principal components of large images.

    Raises:
        ValueError: for a missing package, weights that cannot be loaded, or a model that gives no features of images.
    """
    if name == "pixels":
        return PixelFeatures(_pixel_values(images, num_levels), seed)
    return InceptionFeatures(device) if name == "inception" else ModelFeatures(name, device)


def extract_features(
    extractor: FeatureExtractor, images: np.ndarray, num_levels: int = 256, batch_size: int = 64
) -> np.ndarray:
    """
    Return the features of images, float64 (num_images, D).

    Args:
        extractor: Feature extractor.
        images: Gray levels (num_images, C, S, S).
        num_levels: Number of gray levels.
        batch_size: Number of images in a call of the extractor.

    Raises:
        ValueError: for features of another shape than (B, D), or that are not finite.
    """
    parts = []
    for start in range(0, len(images), batch_size):
        pixel_values = _pixel_values(images[start : start + batch_size], num_levels)
        with torch.no_grad():
            features = torch.as_tensor(extractor(pixel_values)).cpu().double()
        if features.ndim != 2 or len(features) != len(pixel_values):
            raise ValueError(
                f"`features` must be an extractor whose output has shape ({len(pixel_values)}, D) for "
                f"{len(pixel_values)} images, got {tuple(features.shape)}."
            )
        if not features.isfinite().all():
            raise ValueError("`features` must be an extractor of finite numbers, got NaN or infinite ones.")
        parts.append(features.numpy())
    return np.concatenate(parts)


def _pixel_values(images: np.ndarray, num_levels: int) -> torch.Tensor:
    return scale_bytes(torch.from_numpy(images.astype(level_dtype(num_levels))), num_levels)


class PixelFeatures:
    """
    Principal components of pixel values, not rescaled, so that distances are those of images.

    Args:
        pixel_values: Images (num_images, C, S, S) to which the components are fitted.
        seed: Seed of the randomized solver that scikit-learn takes for large images.
    """

    num_components = 64

    def __init__(self, pixel_values: torch.Tensor, seed: int = 0):
        pixels = pixel_values.flatten(1).numpy()
        self.pca = PCA(min(self.num_components, *pixels.shape), random_state=seed).fit(pixels)

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.pca.transform(pixel_values.flatten(1).numpy()))


class InceptionFeatures:
    """
    The 2048 features of the Inception network of the usual FID. torch-fidelity downloads the weights.

    Args:
        device: Device of the network.

    Raises:
        ValueError: if torch-fidelity cannot be imported, or the weights cannot be downloaded.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch
            raise ValueError(
                f"`features` inception needs torch-fidelity, and a torchvision that fits this torch: {error}."
            ) from error
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
        except OSError as error:
            raise ValueError(f"the weights of `features` inception cannot be downloaded: {error}") from error
        self.device = device

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.network(_rgb_bytes(pixel_values).to(self.device))[0]


class ModelFeatures:
    """
    Pooled output of an image model of transformers, whose image processor prepares the images.

    Args:
        name: Folder of the model, or its name on the Hub.
        device: Device of the model.

    Raises:
        ValueError: if the model cannot be loaded, its pooling layer has no saved weights, or its inputs are no images.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu"):
        if not Path(name).exists() and not HUB_ID.fullmatch(name):
            raise ValueError(missing_path(name, "features"))
        try:
            self.processor = AutoImageProcessor.from_pretrained(name)
            model, report = AutoModel.from_pretrained(name, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                "`features` must be pixels, inception, or an image model of transformers, but "
                f"{name} cannot be loaded: {error}"
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"`features` {name} has no weights for {missing[0]}, so that its features would be random."
            )
        if model.main_input_name != "pixel_values":
            raise ValueError(f"`features` {name} must be a model of images, but it takes {model.main_input_name}.")
        self.name, self.model = name, model.eval().to(device)

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        images = list(_rgb_bytes(pixel_values).numpy())
        inputs = self.processor(images, return_tensors="pt", input_data_format="channels_first")
        output = self.model(inputs.pixel_values.to(self.model.device))
        if getattr(output, "pooler_output", None) is None:
            raise ValueError(f"`features` {self.name} must be a model with a pooled output, but it has none.")
        return output.pooler_output.flatten(1)


def _rgb_bytes(pixel_values: torch.Tensor) -> torch.Tensor:
    """Return images on the scale [-1, 1] as uint8 (B, 3, S, S)."""
    if pixel_values.shape[1] not in (1, 3):
        raise ValueError(
            "`features` must be pixels for images of other than 1 or 3 channels, which networks do not take, got "
            f"{pixel_values.shape[1]} channels."
        )
    return ((pixel_values + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
