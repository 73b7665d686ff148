# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Image processor of Jet: from images of any kind to the model's 8-bit grid, and back. Pillow and NumPy only."""

import warnings
from numbers import Integral

import numpy as np
import torch
from PIL import Image, ImageCms
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict, is_valid_image
from transformers.processing_utils import ImagesKwargs

from .validation_jet import check_whole, is_number


# Images that were scaled in float32 and not dequantised lie up to this many grey levels below their byte.
LEVEL_TOLERANCE = 2e-5
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    # One channel at a time: float64 takes eight times the memory of bytes.
    resized = np.stack([rows @ channel.astype(np.float64) @ columns.T for channel in image])
    # Half a millionth absorbs the rounding of the weights, so that an exact half goes up on every machine.
    return np.floor(resized + 0.5 + 5e-7).astype(np.uint8) if image.dtype == np.uint8 else resized


def to_numpy(values) -> np.ndarray:
    """A tensor, of any dtype and device, or array-like as an array."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values that are whole numbers in 0..255, of any real dtype, as uint8. Raises ValueError for others."""
    if values.dtype.kind not in "iuf" or values.size == 0:
        raise ValueError(f"an image array must hold bytes (uint8), got {values.dtype} of shape {values.shape}.")
    if values.dtype == np.uint8:
        return values
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


def channels_first(array: np.ndarray, num_channels: int | None, data_format: str | None) -> np.ndarray:
    """
    An image array (H, W), (C, H, W) or (H, W, C) as (C, H, W). Where `data_format` does not tell, the channels are the
    side of 1, 3, 4 or `num_channels`. Raises ValueError where both sides or none could be that.
    """
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise ValueError(f"an image array must have 2 dimensions, or 3 with its channels, got shape {array.shape}.")
    if data_format is not None:
        last = ChannelDimension(data_format) == ChannelDimension.LAST
    else:
        known = {1, 3, 4, num_channels}
        first, last = array.shape[0] in known, array.shape[2] in known
        if first == last and array.size > 1:
            raise ValueError(
                f"an image array of shape {array.shape} does not show which side is its channels, expected 1, 3, 4 or "
                f"num_channels={num_channels} on one side: give `input_data_format`, 'channels_first' or "
                "'channels_last'."
            )
    return array.transpose(2, 0, 1) if last else array


def upright(image: Image.Image) -> Image.Image:
    """
    Return the image turned as its EXIF orientation says; EXIF data that cannot be read says nothing. (Pillow's
    `exif_transpose` also writes the data anew, which fails for damaged ones.)
    """
    try:
        method = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION))
    except Exception:  # parsers of damaged data raise errors of all kinds
        method = None
    return image if method is None else image.transpose(method)


def pil_to_array(image: Image.Image, num_channels: int) -> np.ndarray:
    """
    Any mode of PIL image as uint8 (C, H, W), with the EXIF orientation applied, transparency laid over white, and
    16-bit values scaled to bytes.
    """
    image = upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.array(image).astype(np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 65535):
            raise ValueError(
                f"an image of mode {image.mode!r} must hold values from 0 to 65535, got {values.min()} to "
                f"{values.max()}."
            )
        if image.mode == "F" and 0 < values.max() <= 1:
            raise ValueError(
                f"an image of mode 'F' with values up to {values.max()} is ambiguous (bytes 0 and 1, or black and "
                "white): scale it to 0 to 255."
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


def scaling(
    num_channels: int, do_rescale: bool, rescale_factor: float, do_normalize: bool, image_mean, image_std
) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset, each (num_channels or 1, 1, 1), of the scale `bytes * factor - offset`."""
    if not do_normalize:
        image_mean, image_std = 0.0, 1.0
    mean, std = (np.array(value, dtype=np.float64).reshape(-1, 1, 1) for value in (image_mean, image_std))
    if not {len(mean), len(std)} <= {1, num_channels}:
        raise ValueError(
            f"`image_mean` and `image_std` must be one number, or one for each of the image's {num_channels} "
            f"channels, got {len(mean)} and {len(std)}."
        )
    return (rescale_factor if do_rescale else 1.0) / std, mean / std


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
        num_channels = self.num_channels if kwargs.get("num_channels") is None else kwargs["num_channels"]
        check_whole("num_channels", num_channels)
        kwargs["num_channels"] = num_channels = int(num_channels)
        # The default statistics follow the number of channels, so that a gray model needs no more than that number.
        for name in ("image_mean", "image_std"):
            if kwargs.get(name) is None:
                kwargs[name] = [0.5] * num_channels
        super().__init__(**kwargs)

    def _standardize_kwargs(self, size=None, num_channels=None, **kwargs) -> dict:
        if is_number(size, Integral):
            size = int(size)  # transformers takes no number of NumPy's
        if isinstance(size, list | tuple) and len(size) != 2:
            raise ValueError(f"`size` must be one number, or height and width, got {size}.")
        kwargs = super()._standardize_kwargs(size=size, **kwargs)
        for name, value in (
            ("size['height']", kwargs["size"] and kwargs["size"].height),
            ("size['width']", kwargs["size"] and kwargs["size"].width),
            ("num_channels", num_channels),
        ):
            check_whole(name, value)
        return kwargs | {"num_channels": num_channels}

    def _validate_preprocess_kwargs(self, crop_size=None, **kwargs):
        if crop_size is not None:
            raise ValueError(
                f"`crop_size` is not used: the crop is the largest one that fits `size`; got {crop_size}."
            )
        super()._validate_preprocess_kwargs(**{**kwargs, "do_center_crop": False})

    def _prepare_images_structure(self, images, expected_ndims: int = 3) -> list:
        """One image, a batch array (B, ...), or lists of these, of mixed kinds, as a flat list of images."""
        if isinstance(images, list | tuple):
            flat = [image for item in images for image in self._prepare_images_structure(item)]
        elif isinstance(images, str) or is_valid_image(images):
            images = self.fetch_images(images)
            flat = list(images) if getattr(images, "ndim", None) == expected_ndims + 1 else [images]
        else:
            raise ValueError(f"images must be PIL images, arrays, tensors or lists of them, got {type(images)}.")
        if not flat:
            raise ValueError("at least one image is expected, got none.")
        return flat

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
            if 0 in image.size:
                raise ValueError(f"an image must have at least one pixel, got {image.width} x {image.height}.")
            if do_convert_rgb and num_channels in (1, 3):
                return pil_to_array(image, num_channels)
            array, input_data_format = np.array(upright(image)), ChannelDimension.LAST
        else:
            array = to_numpy(image)
        array = channels_first(to_bytes(array), num_channels, input_data_format)
        if not do_convert_rgb or len(array) == num_channels:
            return array
        if num_channels not in (1, 3) or len(array) not in (1, 3, 4):
            raise ValueError(
                f"an image of {len(array)} channels cannot be converted to the model's num_channels={num_channels}."
            )
        pixels = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
        return pil_to_array(Image.fromarray(np.ascontiguousarray(pixels)), num_channels)

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
        channels = [Image.fromarray(channel).resize((size.width, size.height), resample) for channel in image]
        return np.stack([np.array(channel) for channel in channels])

    def to_uint8(self, image: Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
        """One image, cropped and resized as configured, as the bytes (C, S, S) that the model scores."""
        image = self.process_image(image, self.do_convert_rgb, self.num_channels, self.input_data_format)
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
        pixel_values = []
        for image in images:
            factor, offset = scaling(len(image), do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            image = self._fit(image, do_center_crop, do_resize, size, resample)
            # With the defaults this is u / 127.5 - 1 in float32, bit for bit.
            pixel_values.append((image * factor).astype(np.float32) - offset.astype(np.float32))
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    def check_scale(self) -> None:
        """
        Raise ValueError unless this processor scales bytes as the model's images, so that [`post_process`] gives the
        bytes that the model means.
        """
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        factor, offset = scaling(self.num_channels, *(getattr(self, name) for name in names))
        if not (np.allclose(factor, 1 / 127.5, rtol=1e-6) and np.allclose(offset, 1, rtol=1e-6)):
            given = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            raise ValueError(f"the processor must scale bytes to [-1, 1] as `u / 127.5 - 1`, got {given}.")

    def post_process(self, pixel_values: torch.Tensor | np.ndarray) -> list[Image.Image]:
        """
        Turns dequantised pixel values, such as samples, into images.

        Args:
            pixel_values: (B, C, S, S), or one image (C, S, S), with C the model's 1 or 3 channels, on its scale.

        Returns:
            One PIL image each: clipped, and rounded down, since dequantisation only ever adds.

        Raises:
            ValueError: for another shape, or values that are not floating-point and finite.
        """
        # Half precision may lie below its byte by more; bfloat16 by a quarter of a grey level.
        dtype = getattr(pixel_values, "dtype", None)
        is_half = dtype in (torch.float16, torch.bfloat16) or dtype == np.float16
        tolerance = 0.25 if is_half else LEVEL_TOLERANCE
        values = to_numpy(pixel_values)
        values = values[None] if values.ndim == 3 else values
        if values.ndim != 4 or values.shape[1] != self.num_channels or self.num_channels not in (1, 3):
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {self.num_channels}, height, width), with 1 or 3 "
                f"channels to make images of, got {tuple(values.shape)}."
            )
        if values.dtype.kind != "f":
            raise ValueError(f"`pixel_values` must be floating-point, on the model's scale, got {values.dtype}.")
        if not np.isfinite(values).all():
            raise ValueError("`pixel_values` must be finite, got NaN or infinite values.")
        factor, offset = scaling(
            self.num_channels,
            self.do_rescale,
            self.rescale_factor,
            self.do_normalize,
            self.image_mean,
            self.image_std,
        )
        levels = np.floor((values.astype(np.float64) + offset) / factor + tolerance)
        images = np.clip(levels, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images]


JetImageProcessor.register_for_auto_class()

__all__ = ["JetImageProcessor"]
