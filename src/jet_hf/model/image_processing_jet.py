# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Image processor of Jet: from images of any kind to the model's 8-bit grid, and back. Pillow and NumPy only."""

import warnings

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs


def area_weights(in_size: int, out_size: int) -> np.ndarray:
    """
    Weights (out_size, in_size) that average a line of pixels over equal areas: each pixel counts by the share of it
    that lies under the output pixel, fractions included, as in TensorFlow's `ResizeMethod.AREA`.
    """
    edges = np.arange(out_size + 1) * in_size / out_size
    pixels = np.arange(in_size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * out_size / in_size


def resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area-averages an image (C, H, W) to (C, height, width); bytes are rounded to the nearest byte."""
    if image.shape[1:] == (height, width):
        return image
    rows, columns = area_weights(image.shape[1], height), area_weights(image.shape[2], width)
    resized = rows @ image.astype(np.float64) @ columns.T
    # Half a millionth absorbs the rounding of the weights, so that an exact half goes up on every machine.
    return np.floor(resized + 0.5 + 5e-7).astype(np.uint8) if image.dtype == np.uint8 else resized


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values that are whole numbers in 0..255, of any dtype, as uint8. Raises ValueError for others."""
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.number) or values.size == 0:
        raise ValueError(f"an image array must hold bytes (uint8), got {values.dtype} of shape {values.shape}.")
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255 and np.array_equal(values, np.floor(values))):
        raise ValueError(
            f"an image array must hold whole numbers from 0 to 255, got {values.dtype} values from {low} to {high}. "
            "Likelihoods are of 8-bit images: scale and round to bytes first."
        )
    if high == 1 and np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            "a floating-point image array with values 0 and 1 is ambiguous (bytes 0 and 1, or black and white): "
            "pass uint8."
        )
    return values.astype(np.uint8)


def pil_to_array(image: Image.Image, num_channels: int) -> np.ndarray:
    """
    Any mode of PIL image as uint8 (C, H, W), with the EXIF orientation applied, transparency laid over white, and
    16-bit values scaled to bytes.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.array(image).astype(np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 65535):
            raise ValueError(
                f"an image of mode {image.mode!r} must hold values from 0 to 65535, got {values.min()} to {values.max()}."
            )
        if image.mode.startswith("I;16") or values.max() > 255:
            values = values / 257
        image = Image.fromarray(np.floor(values + 0.5).astype(np.uint8))
    elif image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = ImageCms.applyTransform(image, to_rgb)
    elif image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    if num_channels == 1:
        return np.array(image.convert("L"))[None]
    return np.array(image.convert("RGB")).transpose(2, 0, 1)


class JetImageProcessorKwargs(ImagesKwargs, total=False):
    """
    num_channels (`int`, *optional*):
        Number of channels of the model: 3 converts to RGB, 1 to gray; any other number takes arrays only.
    """

    num_channels: int | None


class JetImageProcessor(PilBackend):
    r"""
    Image processor of Jet.

    PIL images (any mode), arrays and tensors (bytes, channels first or last) are cropped to the largest centred
    square, area-averaged to `size`, and scaled to [-1, 1] as `u / 127.5 - 1`. Enlarging a smaller image warns.

    Args:
        size (`dict[str, int]` or `int`, *optional*, defaults to `{"height": 64, "width": 64}`):
            Size of the model's images.
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels of the model's images.
        do_center_crop (`bool`, *optional*, defaults to `True`):
            Whether to crop to the aspect ratio of `size`. `False` squeezes the whole image.
        do_resize, resample (*optional*, default to `True` and `BOX`):
            Whether and how to resize. `BOX` stands for exact area averaging; other filters are Pillow's.
        do_convert_rgb (`bool`, *optional*, defaults to `True`):
            Whether to convert to `num_channels` channels.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std (*optional*):
            The scaling to [-1, 1]: by 1/255, then (x - 0.5) / 0.5.

    Raises:
        ValueError: for arrays that do not hold bytes, or a number of channels that cannot be converted.

    Example:

    ```python
    >>> from PIL import Image
    >>> from jet_hf import JetImageProcessor

    >>> processor = JetImageProcessor(size=32)
    >>> processor(Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 32, 32])
    ```"""

    valid_kwargs = JetImageProcessorKwargs

    size = {"height": 64, "width": 64}
    num_channels = 3
    do_convert_rgb = True
    do_center_crop = True
    do_resize = True
    resample = PILImageResampling.BOX
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]

    def __init__(self, **kwargs):
        num_channels = kwargs.get("num_channels") or self.num_channels
        # The default statistics follow the number of channels, so that a gray model needs no more than that number.
        for name in ("image_mean", "image_std"):
            if kwargs.get(name) is None:
                kwargs[name] = [0.5] * num_channels
        super().__init__(**kwargs)

    def _validate_preprocess_kwargs(self, crop_size=None, size=None, **kwargs):
        if crop_size is not None:
            raise ValueError(
                f"`crop_size` is not used: the crop is the largest one that fits `size`; got {crop_size}."
            )
        if not (size and size.height and size.width):
            raise ValueError(f"`size` must have keys 'height' and 'width', got {size}.")
        super()._validate_preprocess_kwargs(size=size, **{**kwargs, "do_center_crop": False})

    def process_image(
        self,
        image: Image.Image | np.ndarray | torch.Tensor,
        do_convert_rgb: bool | None = None,
        num_channels: int | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> np.ndarray:
        """One image of any kind as uint8 array (C, H, W)."""
        if isinstance(image, Image.Image):
            if do_convert_rgb and num_channels in (1, 3):
                return pil_to_array(image, num_channels)
            array, input_data_format = np.array(ImageOps.exif_transpose(image)), ChannelDimension.LAST
        else:
            array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
        array = to_bytes(array)
        if array.ndim == 2:
            array, input_data_format = array[None], ChannelDimension.FIRST
        elif input_data_format is None:
            input_data_format = infer_channel_dimension_format(array, num_channels=tuple({1, 3, 4, num_channels}))
        if input_data_format == ChannelDimension.LAST:
            array = array.transpose(2, 0, 1)
        if not do_convert_rgb or len(array) == num_channels:
            return array
        if num_channels not in (1, 3) or len(array) not in (1, 3, 4):
            raise ValueError(
                f"an image of {len(array)} channels cannot be converted to the model's num_channels={num_channels}."
            )
        return pil_to_array(Image.fromarray(array.transpose(1, 2, 0).squeeze()), num_channels)

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """Crops (C, H, W) to the largest centred rectangle of the aspect ratio of `size`."""
        height, width = image.shape[1:]
        crop_height = min(height, max(1, width * size.height // size.width))
        crop_width = min(width, max(1, height * size.width // size.height))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return image[:, top : top + crop_height, left : left + crop_width]

    def resize(self, image: np.ndarray, size: SizeDict, resample=None, **kwargs) -> np.ndarray:
        """Resizes (C, H, W); `BOX` is exact area averaging. Warns where this enlarges the image."""
        height, width = image.shape[1:]
        if height < size.height or width < size.width:
            warnings.warn(
                f"an image of {height} x {width} pixels is enlarged to {size.height} x {size.width}: its bits per "
                "dimension are those of the enlarged image.",
                stacklevel=2,
            )
        if resample in (None, PILImageResampling.BOX):
            return resize_area(image, size.height, size.width)
        return super().resize(image, size, resample=resample, **kwargs)

    def to_uint8(self, image: Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
        """One image, cropped and resized as configured, as the bytes (C, S, S) that the model scores."""
        image = self.process_image(image, do_convert_rgb=self.do_convert_rgb, num_channels=self.num_channels)
        return self._fit(image, self.do_center_crop, self.do_resize, self.size, self.resample)

    def _fit(self, image, do_center_crop, do_resize, size, resample) -> np.ndarray:
        if do_center_crop:
            image = self.center_crop(image, size)
        if do_resize:
            image = self.resize(image, size, resample)
        return image

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_center_crop: bool,
        do_resize: bool,
        size: SizeDict,
        resample,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        if not do_rescale:
            rescale_factor = 1.0
        if not do_normalize:
            image_mean, image_std = 0.0, 1.0
        mean, std = (np.array(value, dtype=np.float64).reshape(-1, 1, 1) for value in (image_mean, image_std))
        # With the defaults this is u / 127.5 - 1 in float32, bit for bit.
        pixel_values = [
            (self._fit(image, do_center_crop, do_resize, size, resample) * (rescale_factor / std)).astype(np.float32)
            - (mean / std).astype(np.float32)
            for image in images
        ]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    def post_process(self, pixel_values: torch.Tensor | np.ndarray) -> list[Image.Image]:
        """
        Turns dequantised pixel values, such as samples, into images.

        Args:
            pixel_values: (B, C, S, S), or one image (C, S, S), with 1 or 3 channels, on the model's scale.

        Returns:
            One PIL image each: clipped, and rounded down, since dequantisation only ever adds.

        Raises:
            ValueError: for another shape, or values that are not finite.
        """
        values = pixel_values.detach().cpu().numpy() if isinstance(pixel_values, torch.Tensor) else pixel_values
        values = np.asarray(values, dtype=np.float64)
        values = values[None] if values.ndim == 3 else values
        if values.ndim != 4 or values.shape[1] not in (1, 3):
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, 1 or 3, height, width), got {tuple(values.shape)}."
            )
        if not np.isfinite(values).all():
            raise ValueError("`pixel_values` must be finite, got NaN or infinite values.")
        mean, std = (
            np.array(value, dtype=np.float64).reshape(-1, 1, 1) for value in (self.image_mean, self.image_std)
        )
        levels = np.floor((values * std + mean) / self.rescale_factor)
        images = np.clip(levels, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images]


JetImageProcessor.register_for_auto_class()

__all__ = ["JetImageProcessor"]
