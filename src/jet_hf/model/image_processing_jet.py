# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Image processor of Jet: converts images of any kind to the model's grid of gray levels, and samples to images.

Images on the CPU are processed with Pillow and NumPy, tensors on another device with PyTorch there. Both use the same
exact arithmetic, so that an image has the same pixel values on every device, bit for bit.
"""

import math
import warnings
from numbers import Integral
from types import ModuleType
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image, ImageCms
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict, is_valid_image
from transformers.processing_utils import ImagesKwargs, Unpack

from .configuration_jet import MAX_NUM_LEVELS, level_dtype
from .validation_jet import check_whole, is_number


# Images on the CPU, and images on another device.
Pixels: TypeAlias = np.ndarray | torch.Tensor

# Images that were scaled in float32 and not dequantized lie up to this share of the range below their level, which
# is 2e-5 gray levels of 8-bit images.
LEVEL_TOLERANCE = 2e-5 / 255
# The nearest bfloat16 value may be this many gray levels away.
HALF_PRECISION_TOLERANCE = 0.25
SCALE_FIELDS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
# Entries of saved files that are not arguments.
SAVED_KEYS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}
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


class LevelsError(ValueError):
    """An image contradicts the number of gray levels; the message names the value and the number."""


def on_device(image: object) -> TypeGuard[torch.Tensor]:
    """Return whether an image is a tensor on another device than the CPU."""
    return isinstance(image, torch.Tensor) and image.device.type != "cpu"


def namespace(values: Pixels) -> ModuleType:
    """Return the module of the functions for this array or tensor."""
    return torch if isinstance(values, torch.Tensor) else np


def cast(values: Pixels, dtype: str) -> Pixels:
    """Convert an array or a tensor to the dtype of this name."""
    return values.to(getattr(torch, dtype)) if isinstance(values, torch.Tensor) else values.astype(dtype)


def to_numpy(values: ArrayLike) -> np.ndarray:
    """Convert a tensor, of any dtype and device, or an array-like to an array."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def as_levels(values: Pixels, num_levels: int) -> Pixels:
    """
    Convert whole numbers from 0 to below `num_levels`, of any real dtype, to uint8, or to int32 for more than 256.

    Raises:
        LevelsError: for other values, and for 8 bits where more are expected.
        ValueError: for other dtypes, and for an empty array.
    """
    shape, dtype = tuple(values.shape), getattr(values.dtype, "name", str(values.dtype)).removeprefix("torch.")
    if not ("int" in dtype or "float" in dtype) or 0 in shape:
        raise ValueError(f"an image array must hold bytes (uint8), got {dtype} of shape {shape}.")
    if dtype == "uint8" and num_levels == 256:
        return values
    if dtype == "uint8" and num_levels > 256:
        raise LevelsError(f"an image of `num_levels` {num_levels} must have more than 8 bits, got uint8.")
    with np.errstate(invalid="ignore"):  # the comparison finds values that are no level
        levels = cast(values, "uint8" if num_levels <= 256 else "int32")
    is_level: Any = cast(levels, dtype) == values
    if not is_level.all() or not 0 <= int(levels.min()) <= int(levels.max()) < num_levels:
        values, number = cast(values, "float32"), "" if num_levels == 256 else f" (`num_levels` {num_levels})"
        raise LevelsError(
            f"an image must hold whole numbers from 0 to {num_levels - 1}{number}, got {dtype} values from "
            f"{values.min():g} to {values.max():g}: scale the values and round them to gray levels first."
        )
    if "float" in dtype and levels.max() == 1 and num_levels > 2:
        raise ValueError(
            "a floating-point image array with values 0 and 1 is ambiguous (bytes 0 and 1, or black and white): "
            "pass uint8."
        )
    return levels


def channels_first(array: Pixels, num_channels: int | None, data_format: str | None) -> Pixels:
    """
    Convert an image (H, W), (C, H, W) or (H, W, C) to (C, H, W), and a batch of images with channels to (B, C, H, W).

    Without a `data_format`, the channel axis is the one of size 1, 3, 4 or `num_channels`.

    Raises:
        ValueError: for another number of axes, or if both or neither of the axes may hold the channels.
    """
    shape = tuple(array.shape)
    if array.ndim == 2:
        return array[None]
    if array.ndim not in (3, 4):
        raise ValueError(f"an image array must have 2 dimensions, or 3 with its channels, got shape {shape}.")
    if data_format is not None:
        last = ChannelDimension(data_format) == ChannelDimension.LAST
    else:
        known = {1, 3, 4, num_channels}
        first, last = shape[-3] in known, shape[-1] in known
        if first == last and math.prod(shape[-3:]) > 1:
            raise ValueError(
                f"an image array of shape {shape} does not show which side is its channels: exactly one side must "
                f"have 1, 3, 4 or num_channels={num_channels}. Pass `input_data_format`, 'channels_first' or "
                "'channels_last'."
            )
    return array.swapaxes(-1, -2).swapaxes(-2, -3) if last else array


def area_weights(in_size: int, out_size: int) -> np.ndarray:
    """Return how much of each pixel every output pixel covers: whole numbers (out_size, in_size) of 1/out_size."""
    edges = np.arange(out_size + 1) * in_size
    pixels = np.arange(in_size) * out_size
    overlap = np.minimum(edges[1:, None], pixels + out_size) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None).astype(np.float64)


def resize_area(image: Pixels, height: int, width: int) -> Pixels:
    """
    Average levels (..., C, H, W) over equal areas, as in TensorFlow's `ResizeMethod.AREA`, to (..., C, height, width).

    Averages are rounded to the nearest level, halves upward. They are exact on every device that has float64, since
    all sums are whole numbers.
    """
    old_height, old_width = image.shape[-2:]
    if (old_height, old_width) == (height, width):
        return image
    xp, count, channels = namespace(image), old_height * old_width, []
    dtype = str(image.dtype).removeprefix("torch.")
    rows = xp.asarray(area_weights(old_height, height), device=image.device)
    columns = xp.asarray(area_weights(old_width, width).T, device=image.device)
    for channel in range(image.shape[-3]):  # one at a time: float64 takes eight times the memory of bytes
        sums = rows @ cast(image[..., channel, :, :], "float64") @ columns
        channels.append(cast(xp.floor((2 * sums + count) / (2 * count)), dtype))
    return xp.stack(channels, -3)


def upright(image: Image.Image) -> Image.Image:
    """
    Rotate an image as its EXIF orientation says; EXIF data that cannot be read is ignored.

    Pillow's `exif_transpose` also writes the data anew, which fails for damaged data.
    """
    try:
        method = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # parsers of damaged data raise errors of all kinds
        method = None
    return image if method is None else image.transpose(method)


def gray_values(image: Image.Image) -> tuple[np.ndarray, int]:
    """Return the values of a gray image of mode I, I;16 or F, float64 (H, W), and the largest value of its scale."""
    values = np.array(image).astype(np.float64)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 65535):
        raise ValueError(
            f"an image of mode {image.mode!r} must hold values from 0 to 65535, got {values.min()} to {values.max()}."
        )
    if image.mode == "F" and 0 < values.max() <= 1:
        raise ValueError(
            f"an image of mode 'F' with values up to {values.max()} is ambiguous (bytes 0 and 1, or black and white): "
            "scale it to 0 to 255."
        )
    return values, 65535 if image.mode.startswith("I;16") or values.max() > 255 else 255


def rescale(values: np.ndarray, last: int, num_levels: int) -> np.ndarray:
    """Scale values from 0 to `last` to levels from 0 to below `num_levels`, rounded to the nearest, halves upward."""
    return np.floor(values.astype(np.float64) * (num_levels - 1) / last + 0.5)


def pil_to_array(image: Image.Image, num_channels: int, num_levels: int = 256) -> np.ndarray:
    """
    Convert a PIL image to an array (C, H, W), with C = 1 or 3.

    The EXIF orientation is applied. For 256 levels, images of any mode become bytes: transparent ones are composed
    over white, and 16 bits are scaled to 8. Other images hold their levels as values, see [`stored_levels`].

    Raises:
        LevelsError: for a mode that does not hold levels as values.
    """
    image = upright(image)
    if num_levels != 256:
        return stored_levels(image, num_channels, num_levels)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(rescale(*gray_values(image), 256).astype(np.uint8))
    elif image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = to_rgb.apply(image)
    elif image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    if num_channels == 1:
        return np.array(image.convert("L"))[None]
    return np.array(image.convert("RGB")).transpose(2, 0, 1)


def stored_levels(image: Image.Image, num_channels: int, num_levels: int) -> np.ndarray:
    """Return the values of an image without scaling them (C, H, W): one channel, or the three of a color image."""
    is_gray = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
    if "transparency" in image.info or not (is_gray or image.mode in ("P", "RGB")):
        raise LevelsError(
            f"an image for `num_levels` {num_levels} must be gray (mode 1, L, I;16, I or F) or opaque RGB, got mode "
            f"{image.mode!r}{' with transparency' if 'transparency' in image.info else ''}."
        )
    if is_gray:
        values = np.array(image)[None]
        return values.astype(np.uint8) if image.mode == "1" else values
    array = np.array(image.convert("RGB")).transpose(2, 0, 1)
    return array[:1] if num_channels == 1 and (array == array[:1]).all() else array


def convert_channels(image: Pixels, num_channels: int | None, num_levels: int) -> Pixels:
    """
    Convert levels (..., C, H, W) to `num_channels` channels, as PIL images of modes L, RGB and RGBA are converted.

    Raises:
        ValueError: if there is no such conversion, or if it takes Pillow and the image is on another device.
    """
    channels = image.shape[-3]
    if channels == num_channels:
        return image
    if num_channels not in (1, 3) or channels not in (1, 3, 4):
        raise ValueError(
            f"an image of {channels} channels cannot be converted to the model's num_channels={num_channels}."
        )
    if channels == 1:
        return image[..., [0, 0, 0], :, :]
    if num_levels != 256:
        raise LevelsError(
            f"only 8-bit images can be converted from {channels} channels to {num_channels}, got `num_levels` "
            f"{num_levels}."
        )
    host_image = for_pillow(image, f"converting {channels} channels to {num_channels}")
    return pil_to_array(Image.fromarray(host_image.transpose(1, 2, 0)), num_channels)


def for_pillow(image: Pixels, purpose: str) -> np.ndarray:
    """Return the image, or raise ValueError for a tensor on a device, since Pillow works on the CPU."""
    if isinstance(image, torch.Tensor):
        raise ValueError(f"{purpose} takes Pillow, which needs images on the CPU, got images on {image.device}.")
    return image


def scaling(
    num_channels: int,
    do_rescale: bool,
    rescale_factor: float,
    do_normalize: bool,
    image_mean: ArrayLike,
    image_std: ArrayLike,
    **kwargs,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the factor and the offset, each (num_channels or 1, 1, 1), of the scale `levels * factor - offset`."""
    if not do_normalize:
        image_mean, image_std = 0.0, 1.0
    mean, std = (np.array(value, dtype=np.float64).reshape(-1, 1, 1) for value in (image_mean, image_std))
    if not {len(mean), len(std)} <= {1, num_channels}:
        raise ValueError(
            f"`image_mean` and `image_std` must be one number, or one for each of the image's {num_channels} "
            f"channels, got {len(mean)} and {len(std)}."
        )
    return (rescale_factor if do_rescale else 1.0) / std, mean / std


def scale_levels(image: Pixels, factor: np.ndarray, offset: np.ndarray, num_levels: int) -> Pixels:
    """Scale levels (..., C, H, W) to float32; by default to `u / 127.5 - 1`, bit for bit."""
    # A table of all levels, since some devices have no float64.
    levels = (np.arange(num_levels) * factor).astype(np.float32) - offset.astype(np.float32)
    xp = namespace(image)
    table = xp.asarray(levels.reshape(-1, num_levels), device=image.device)
    return table[xp.arange(len(table), device=image.device)[:, None, None], cast(image, "int64")]


class JetImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """
    num_channels (`int`, *optional*, defaults to `self.num_channels`):
        Number of channels of the model: 3 converts to RGB, 1 to gray; any other number takes arrays only.
    num_levels (`int`, *optional*, defaults to `self.num_levels`):
        Number of gray levels of the model.
    """

    num_channels: int | None
    num_levels: int | None


class JetImageProcessor(PilBackend):
    r"""
    Image processor of Jet.

    PIL images (any mode), arrays and tensors (bytes, channels first or last) are cropped to the largest centered
    square, area-averaged to `size`, and scaled to [-1, 1] as `u / 127.5 - 1`. Enlarging a smaller image warns.

    For another number of levels, the values of PIL images, arrays and tensors are the levels themselves, whole numbers
    below `num_levels`, and are not scaled. More than 256 levels take 16 bits.

    Tensors on another device than the CPU, also as a batch (B, C, H, W), are processed there and stay there, and get
    the same pixel values. Two steps take Pillow and are refused there: converting color or transparent images to
    another number of channels, and filters other than `BOX`.

    Args:
        size (`dict[str, int]` or `int`, *optional*, defaults to 64):
            Size of the model's images.
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels of the model's images.
        num_levels (`int`, *optional*, defaults to 256):
            Number of gray levels of the model's images.
        do_center_crop (`bool`, *optional*, defaults to `True`):
            Whether to crop to the aspect ratio of `size`. `False` squeezes the whole image.
        do_resize, resample (*optional*, default to `True` and `BOX`):
            Whether and how to resize. `BOX` stands for exact area averaging; other filters are Pillow's.
        do_convert_rgb (`bool`, *optional*, defaults to `True`):
            Whether to convert to `num_channels` channels.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std (*optional*):
            Scale of the pixel values; by default bytes are multiplied by 1/255 (levels by `1 / (num_levels - 1)`) and
            become (x - 0.5) / 0.5.
        device (`str` or `torch.device`, *optional*):
            Device to crop, resize and scale on; by default the image's own.

    Raises:
        ValueError: for a size or a number of channels below 1, or a number of levels below 2 or above 65,536.

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
    num_levels = 256
    do_convert_rgb = True
    do_center_crop = True
    do_resize = True
    resample = PILImageResampling.BOX
    do_rescale = True
    rescale_factor = None  # follows the number of levels
    do_normalize = True

    def __init__(self, **kwargs: Unpack[JetImageProcessorKwargs]):
        if unknown := sorted(kwargs.keys() - JetImageProcessorKwargs.__annotations__.keys() - SAVED_KEYS):
            warnings.warn(f"JetImageProcessor ignores the unknown arguments {unknown}.", stacklevel=2)
        super().__init__(**kwargs)

    def preprocess(self, images: ImageInput, **kwargs: Unpack[JetImageProcessorKwargs]) -> BatchFeature:
        """
        Convert images to `pixel_values`, float32, on the device of the images or, with `return_tensors="np"`, the CPU.

        Args:
            images: One image, a batch (B, C, H, W) or (B, H, W, C), or a list of these, of mixed kinds and sizes.
            kwargs: Arguments of the constructor, for this call only, and `return_tensors`: `"pt"` or `"np"` for one
                tensor or array (B, C, H, W); by default a list of (C, H, W).

        Raises:
            TypeError: for an unknown keyword argument.
            ValueError: for arrays that do not hold bytes, channels that cannot be converted, or several devices.
        """
        if kwargs.get("num_levels") is not None:
            kwargs.setdefault("rescale_factor", 1 / (kwargs["num_levels"] - 1))
        return super().preprocess(images, **kwargs)

    def _standardize_kwargs(
        self,
        size=None,
        num_channels=None,
        num_levels=None,
        rescale_factor=None,
        image_mean=None,
        image_std=None,
        **kwargs,
    ) -> dict:
        check_whole("num_channels", num_channels)
        check_whole("num_levels", num_levels, low=2)
        if num_levels > MAX_NUM_LEVELS:
            raise ValueError(f"`num_levels` must be from 2 to {MAX_NUM_LEVELS}, got {num_levels}.")
        if is_number(size, Integral):
            size = int(size)  # transformers takes no NumPy integers
        if isinstance(size, list | tuple) and len(size) != 2:
            raise ValueError(f"`size` must be one number, or height and width, got {size}.")
        # The default statistics follow the number of channels, and the scale follows the number of levels.
        image_mean, image_std = ([0.5] * num_channels if value is None else value for value in (image_mean, image_std))
        kwargs = super()._standardize_kwargs(size=size, image_mean=image_mean, image_std=image_std, **kwargs)
        for side in ("height", "width"):
            check_whole(f"size['{side}']", getattr(kwargs["size"], side, None))
        scale = {"rescale_factor": 1 / (int(num_levels) - 1) if rescale_factor is None else rescale_factor}
        return kwargs | scale | {"num_channels": int(num_channels), "num_levels": int(num_levels)}

    def _validate_preprocess_kwargs(self, crop_size=None, **kwargs) -> None:
        if crop_size is not None:
            raise ValueError(
                f"`crop_size` is not used: the crop is the largest one that fits `size`; got {crop_size}."
            )
        # transformers would ask for the `crop_size`.
        super()._validate_preprocess_kwargs(**kwargs | {"do_center_crop": False})

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list:
        """Flatten nested lists and batches of images of mixed kinds; a batch on a device stays whole."""
        if isinstance(images, list | tuple):
            flat = [image for item in images for image in self._prepare_images_structure(item)]
        elif isinstance(images, str) or is_valid_image(images):
            images = self.fetch_images(images)
            is_batch = getattr(images, "ndim", None) == expected_ndims + 1
            flat = list(images) if is_batch and not on_device(images) else [images]
        else:
            raise ValueError(f"images must be PIL images, arrays, tensors or lists of them, got {type(images)}.")
        if not flat:
            raise ValueError("at least one image is expected, got none.")
        return flat

    def process_image(
        self,
        image: Image.Image | Pixels,
        do_convert_rgb: bool | None = None,
        num_channels: int | None = None,
        num_levels: int = 256,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> Pixels:
        """
        Convert one image of any kind to levels (C, H, W), or a batch on a device to (B, C, H, W). They are uint8, or
        int32 for more than 256 levels.
        """
        if isinstance(image, Image.Image):
            if 0 in image.size:
                raise ValueError(f"an image must have at least one pixel, got {image.width} x {image.height}.")
            if do_convert_rgb and num_channels in (1, 3):
                image, input_data_format = pil_to_array(image, num_channels, num_levels), ChannelDimension.FIRST
            else:
                image, input_data_format = np.array(upright(image)), ChannelDimension.LAST
        pixels = image.detach() if on_device(image) else to_numpy(image)
        pixels = channels_first(as_levels(pixels, num_levels), num_channels, input_data_format)
        if do_convert_rgb:
            pixels = convert_channels(pixels, num_channels, num_levels)
        return pixels if device is None else torch.as_tensor(pixels, device=device)

    def center_crop(self, image: Pixels, size: SizeDict, **kwargs) -> Pixels:
        """Crop (..., C, H, W) to the largest centered rectangle of the aspect ratio of `size`."""
        height, width = image.shape[-2:]
        crop_height = min(height, max(1, width * size.height // size.width))
        crop_width = min(width, max(1, height * size.width // size.height))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return image[..., top : top + crop_height, left : left + crop_width]

    def resize(
        self,
        image: Pixels,
        size: SizeDict,
        resample: PILImageResampling | int | None = None,
        num_levels: int = 256,
        **kwargs,
    ) -> Pixels:
        """Resize (..., C, H, W); `BOX` is exact area averaging. Warns where this enlarges the image."""
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            warnings.warn(
                f"an image of {height} x {width} pixels is enlarged to {size.height} x {size.width}: its bits per "
                "dimension are those of the enlarged image.",
                stacklevel=2,
            )
        if resample in (None, PILImageResampling.BOX):
            return resize_area(image, size.height, size.width)
        if num_levels != 256:
            name = PILImageResampling(resample).name
            raise ValueError(f"the filter {name} takes 8-bit images, got `num_levels` {num_levels}: use BOX.")
        host_image = for_pillow(image, f"resizing with the filter {PILImageResampling(resample).name}")
        channels = [Image.fromarray(channel).resize((size.width, size.height), resample) for channel in host_image]
        return np.stack([np.array(channel) for channel in channels])

    @property
    def level_dtype(self) -> str:
        """Dtype of levels as arrays: `"uint8"`, or `"uint16"` for more than 256 levels."""
        return level_dtype(self.num_levels)

    def read_levels(self, image: Image.Image | Pixels) -> np.ndarray:
        """
        Convert one image, cropped and resized as configured, to the levels (C, H, W) that the model scores.

        Returns:
            uint8 array, or uint16 for more than 256 levels.
        """
        return to_numpy(self._fit(self.process_image(image, **vars(self)), **vars(self))).astype(self.level_dtype)

    def to_uint8(self, image: Image.Image | Pixels) -> np.ndarray:
        """
        Convert one image, cropped and resized as configured, to the bytes (C, H, W) that the model scores.

        Raises:
            ValueError: for a model of more than 256 levels, whose images are no bytes.
        """
        if self.num_levels > 256:
            raise ValueError(f"`num_levels` must be at most 256 for images as bytes, got {self.num_levels}.")
        return self.read_levels(image)

    def _fit(
        self,
        image: Pixels,
        do_center_crop: bool,
        do_resize: bool,
        size: SizeDict,
        resample: int,
        num_levels: int,
        **kwargs,
    ) -> Pixels:
        if do_center_crop:
            image = self.center_crop(image, size)
        return self.resize(image, size, resample, num_levels) if do_resize else image

    def _preprocess(self, images: list[Pixels], return_tensors: str | None = None, **kwargs) -> BatchFeature:
        pixel_values: list[Pixels] = []
        for image in images:
            factor, offset = scaling(**kwargs | {"num_channels": image.shape[-3]})
            values = scale_levels(self._fit(image, **kwargs), factor, offset, kwargs["num_levels"])
            pixel_values.extend(values if values.ndim == 4 else [values])
        devices = {values.device for values in pixel_values if isinstance(values, torch.Tensor)}
        if len(devices) > 1:
            raise ValueError(f"all images must be on one device, got {', '.join(sorted(map(str, devices)))}.")
        if return_tensors == "np":
            pixel_values = [to_numpy(values) for values in pixel_values]
        elif devices:
            pixel_values = [torch.as_tensor(values, device=next(iter(devices))) for values in pixel_values]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    def check_scale(self, num_levels: int = 256) -> None:
        """Raise ValueError unless this processor scales levels as the model does, as [`post_process`] assumes."""
        if self.num_levels != num_levels:
            raise ValueError(f"the processor must have the model's `num_levels` {num_levels}, got {self.num_levels}.")
        factor, offset = scaling(**vars(self))
        if not (np.allclose(factor, 2 / (num_levels - 1), rtol=1e-6) and np.allclose(offset, 1, rtol=1e-6)):
            given = ", ".join(f"{name}={getattr(self, name)!r}" for name in SCALE_FIELDS)
            kind = "bytes" if num_levels == 256 else "levels"
            raise ValueError(
                f"the processor must scale {kind} to [-1, 1] as `u / {(num_levels - 1) / 2:g} - 1`, got {given}."
            )

    def to_levels(self, pixel_values: torch.Tensor | np.ndarray, dequantized: bool = True) -> np.ndarray:
        """
        Convert pixel values, such as samples, to gray levels.

        Args:
            pixel_values: (B, C, H, W), or one image (C, H, W), on the model's scale.
            dequantized: Whether values are rounded down, since dequantization only ever adds, or to the nearest level,
                as samples of a model with `noise_std` need it.

        Returns:
            uint8 (B, C, H, W), or uint16 for more than 256 levels, clipped to the model's levels.

        Raises:
            ValueError: for another shape, or values that are not floating-point and finite.
        """
        values = to_numpy(pixel_values)
        is_half = values.dtype == np.float16 or getattr(pixel_values, "dtype", None) == torch.bfloat16
        values = values[None] if values.ndim == 3 else values
        if values.ndim != 4 or values.shape[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {self.num_channels}, height, width), got {values.shape}."
            )
        if values.dtype.kind != "f":
            raise ValueError(f"`pixel_values` must be floating-point, on the model's scale, got {values.dtype}.")
        if not np.isfinite(values).all():
            raise ValueError("`pixel_values` must be finite, got NaN or infinite values.")
        factor, offset = scaling(**vars(self))
        last = self.num_levels - 1
        added = (HALF_PRECISION_TOLERANCE if is_half else LEVEL_TOLERANCE * last) if dequantized else 0.5
        levels = np.floor((values.astype(np.float64) + offset) / factor + added)
        return np.clip(levels, 0, last).astype(self.level_dtype)

    def post_process(self, pixel_values: torch.Tensor | np.ndarray, dequantized: bool = True) -> list[Image.Image]:
        """
        Convert pixel values, such as samples, to images.

        Args:
            pixel_values: (B, C, H, W), or one image (C, H, W), with C the model's 1 or 3 channels, on its scale.
            dequantized: Whether values are rounded down or to the nearest level, see [`to_levels`].

        Returns:
            One PIL image each, clipped, with the levels scaled to 8 bits, or to mode I;16 for more than 256 levels.

        Raises:
            ValueError: for another shape, values that are not floating-point and finite, or color images of more than
                256 levels, which Pillow does not have.
        """
        if self.num_channels not in (1, 3) or (self.num_levels > 256 and self.num_channels != 1):
            raise ValueError(
                "`pixel_values` must be those of a processor with 1 or 3 channels to make images of (1 for more than "
                f"256 levels), got num_channels={self.num_channels}: use `to_levels`."
            )
        levels, num_values = self.to_levels(pixel_values, dequantized), 256 if self.num_levels <= 256 else 65536
        if num_values != self.num_levels:
            levels = rescale(levels, self.num_levels - 1, num_values).astype(levels.dtype)
        images = levels.transpose(0, 2, 3, 1)
        return [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images]


JetImageProcessor.register_for_auto_class()

__all__ = ["JetImageProcessor"]
