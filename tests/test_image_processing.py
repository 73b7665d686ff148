"""JetImageProcessor: bytes from images of any kind, their scale, and images from samples."""

import colorsys
import io
import itertools
import warnings

import numpy as np
import pytest
import torch
from conftest import random_bytes, tiny_model
from PIL import Image, ImageFilter
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from jet_hf import JetImageProcessor
from jet_hf.model import image_processing_jet
from jet_hf.model.image_processing_jet import resize_area


RNG = np.random.default_rng(0)
SIZE = 8
RGB = RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
GRAY = RGB[..., 0]
ALPHA = RNG.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
ALPHA[0], ALPHA[1] = 0, 255
PALETTE = RNG.integers(0, 256, (256, 3), dtype=np.uint8)


def as_bytes(processor: JetImageProcessor, images, **kwargs) -> np.ndarray:
    """The bytes (B, C, S, S) that the pixel values stand for; they must be exactly on the grid of bytes."""
    pixel_values = processor(images, return_tensors="np", **kwargs)["pixel_values"]
    assert pixel_values.dtype == np.float32
    levels = np.rint((pixel_values + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(pixel_values, levels.astype(np.float32) / np.float32(127.5) - np.float32(1))
    return levels


def to_chw(image: np.ndarray) -> np.ndarray:
    return np.moveaxis(image, -1, 0)


def test_scaling_is_exact_for_every_byte():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixel_values = JetImageProcessor(size=16, num_channels=1)(every, return_tensors="pt").pixel_values
    assert torch.equal(pixel_values[0, 0], torch.from_numpy(every) / 127.5 - 1)
    assert pixel_values.dtype == torch.float32 and pixel_values.shape == (1, 1, 16, 16)


# Modes of PIL images


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[..., None] / 255
    return rgb * alpha + 255 * (1 - alpha)


def triple(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


def srgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of the D50 white, as L * 255 / 100, a + 128, b + 128."""
    linear = np.where(rgb <= 0.04045 * 255, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
    xyz = linear @ np.transpose(to_xyz) / [0.96422, 1.0, 0.82521]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128], axis=-1)


def rgb_to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    y = rgb @ [0.299, 0.587, 0.114]
    return np.stack([y, (rgb[..., 2] - y) / 1.772 + 128, (rgb[..., 0] - y) / 1.402 + 128], axis=-1)


def hsv_to_rgb(values: np.ndarray) -> np.ndarray:
    return 255 * np.array([colorsys.hsv_to_rgb(*pixel) for pixel in values.reshape(-1, 3) / 255]).reshape(values.shape)


def palette_image(transparency: int | bytes | None = None) -> Image.Image:
    image = Image.fromarray(GRAY).copy()
    image.putpalette(PALETTE.tobytes())
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(ALPHA))
    return image


def frombytes(mode: str, array: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, array.shape[1::-1], array.tobytes())


def reopened(image: Image.Image, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return Image.open(io.BytesIO(file.getvalue()))


RGB_IMAGE, GRAY_IMAGE = Image.fromarray(RGB), Image.fromarray(GRAY)
SMOOTH = np.array(RGB_IMAGE.filter(ImageFilter.BoxBlur(2)))  # colors that rounding in another space keeps in range
DEEP = RNG.integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)
CMYK = RNG.integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
LAB_BANDS = to_chw(np.rint(srgb_to_lab(SMOOTH)).astype(np.uint8)).copy()
LEVEL_ALPHA = bytes(range(256))

# An image, what it shows as RGB by formulas of our own, and the error that Pillow's integer formulas may make.
MODES = {
    "1": (Image.fromarray(GRAY > 127), triple(255.0 * (GRAY > 127)), 0),
    "L": (GRAY_IMAGE, triple(GRAY), 0),
    "L, a transparent level": (
        reopened(GRAY_IMAGE, transparency=int(GRAY[2, 2])),
        over_white(triple(GRAY), 255 * (GRAY[2, 2] != GRAY)),
        0,
    ),
    "LA": (with_alpha(GRAY_IMAGE), over_white(triple(GRAY), ALPHA), 1),
    "La": (with_alpha(GRAY_IMAGE).convert("La"), over_white(triple(GRAY), ALPHA), 2),
    "P": (palette_image(), PALETTE[GRAY], 0),
    "P, a transparent index": (
        palette_image(transparency=int(GRAY[2, 2])),
        over_white(PALETTE[GRAY], 255 * (GRAY[2, 2] != GRAY)),
        0,
    ),
    "P, alpha of every index": (palette_image(transparency=LEVEL_ALPHA), over_white(PALETTE[GRAY], GRAY), 1),
    "PA": (with_alpha(palette_image()), over_white(PALETTE[GRAY], ALPHA), 1),
    "RGB": (RGB_IMAGE, RGB, 0),
    "RGB, a transparent color": (
        reopened(RGB_IMAGE, transparency=tuple(map(int, RGB[2, 2]))),
        over_white(RGB, 255 * (RGB[2, 2] != RGB).any(axis=-1)),
        0,
    ),
    "RGBA": (with_alpha(RGB_IMAGE), over_white(RGB, ALPHA), 1),
    "RGBa": (with_alpha(RGB_IMAGE).convert("RGBa"), over_white(RGB, ALPHA), 2),
    "RGBX": (RGB_IMAGE.convert("RGBX"), RGB, 0),
    "CMYK": (frombytes("CMYK", CMYK), (255.0 - CMYK[..., :3]) * (255.0 - CMYK[..., 3:]) / 255, 1),
    "YCbCr": (frombytes("YCbCr", np.rint(rgb_to_ycbcr(SMOOTH)).astype(np.uint8)), SMOOTH, 2),
    "HSV": (frombytes("HSV", RGB), hsv_to_rgb(RGB), 1),
    "LAB": (Image.merge("LAB", [Image.fromarray(band) for band in LAB_BANDS]), SMOOTH, 2),
    "I, bytes": (Image.fromarray(GRAY.astype(np.int32)), triple(GRAY), 0),
    "I, 16 bits": (Image.fromarray(DEEP.astype(np.int32)), triple(DEEP / 257), 0.5),
    "F, bytes": (Image.fromarray(GRAY.astype(np.float32)), triple(GRAY), 0),
    "F, fractions": (Image.fromarray(GRAY.astype(np.float32) * 0.99), triple(GRAY * 0.99), 0.5001),
    "F, 16 bits": (Image.fromarray(DEEP.astype(np.float32)), triple(DEEP / 257), 0.5),
    "I;16": (frombytes("I;16", DEEP.astype("<u2")), triple(DEEP / 257), 0.5),
    "I;16L": (frombytes("I;16L", DEEP.astype("<u2")), triple(DEEP / 257), 0.5),
    "I;16B": (frombytes("I;16B", DEEP.astype(">u2")), triple(DEEP / 257), 0.5),
    "I;16, dark": (frombytes("I;16", GRAY.astype("<u2")), triple(GRAY / 257), 0.5),
}


def test_modes_of_pil_images():
    for name, (image, expected, tolerance) in MODES.items():
        expected = expected.astype(float)
        assert image.mode == name.split(",")[0]
        (rgb,) = as_bytes(JetImageProcessor(size=SIZE), image)
        assert np.abs(rgb - to_chw(expected)).max() <= tolerance, name
        (gray,) = as_bytes(JetImageProcessor(size=SIZE, num_channels=1), image)
        rounding = 1 if np.ptp(expected, axis=-1).any() else 1e-9
        assert np.abs(gray[0] - expected @ [0.299, 0.587, 0.114]).max() <= tolerance + rounding, name


def test_16_bits_are_rounded_to_the_nearest_byte():
    values = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], dtype="<u2")
    processor = JetImageProcessor(num_channels=1, do_resize=False, do_center_crop=False)
    assert processor.to_uint8(frombytes("I;16", values)).tolist() == [[[0, 0, 1, 1, 1, 2, 254, 255, 255]]]


@pytest.mark.parametrize(
    "image, message",
    [
        (Image.fromarray(np.full((8, 8), -1, dtype=np.int32)), r"mode 'I' must hold values from 0 to 65535, got -1"),
        (Image.fromarray(np.full((8, 8), 65536, dtype=np.int32)), r"mode 'I' must hold values .* to 65536"),
        (Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)), r"mode 'F' must hold values .* got nan"),
        (Image.fromarray(RGB[..., 0].astype(np.float32) / 255), r"mode 'F' .* is ambiguous"),
        (Image.new("RGB", (0, 5)), r"at least one pixel, got 0 x 5"),
    ],
)
def test_pil_images_without_bytes_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        JetImageProcessor(size=SIZE)(image)


def test_black_float_image_is_not_ambiguous():
    assert (as_bytes(JetImageProcessor(size=SIZE), Image.new("F", (SIZE, SIZE))) == 0).all()


def test_exif_orientation():
    stored = RGB[:3, :5]
    turned = [
        stored,
        stored[:, ::-1],
        stored[::-1, ::-1],
        stored[::-1],
        stored.swapaxes(0, 1),
        np.rot90(stored, -1),
        stored[::-1, ::-1].swapaxes(0, 1),
        np.rot90(stored),
    ]
    processor = JetImageProcessor(do_resize=False, do_center_crop=False)
    for orientation, expected in enumerate(turned, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = processor.to_uint8(reopened(Image.fromarray(stored), exif=exif))
        np.testing.assert_array_equal(pixels, to_chw(expected))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_data_that_cannot_be_read_are_ignored(good):
    processor = JetImageProcessor(do_resize=False, do_center_crop=False)
    plain = processor.to_uint8(Image.open(good["plain.png"]))
    for name in ("rotated.jpg", "junk_exif.jpg", "broken_exif.jpg"):
        pixels = processor.to_uint8(Image.open(good[name]))
        assert pixels.shape == plain.shape and np.abs(pixels.astype(int) - plain).mean() < 3, name  # JPEG


# Arrays and tensors


@pytest.mark.parametrize("num_channels", [1, 3, 5])
def test_arrays_and_tensors(num_channels):
    image = np.random.default_rng(1).integers(0, 256, (num_channels, SIZE, SIZE), dtype=np.uint8)
    processor = JetImageProcessor(size=SIZE, num_channels=num_channels)
    for convert in ARRAYS:
        np.testing.assert_array_equal(as_bytes(processor, convert(image)), image[None])


ARRAYS = [
    lambda a: a,
    lambda a: a.transpose(1, 2, 0),
    lambda a: np.asfortranarray(a)[:, ::-1][:, ::-1],
    lambda a: a.astype(np.int64),
    lambda a: a.astype(np.uint16),
    lambda a: a.astype(np.float32),
    lambda a: a.astype(np.float64).transpose(1, 2, 0),
    lambda a: torch.from_numpy(a),
    lambda a: torch.from_numpy(a).permute(1, 2, 0),
    lambda a: torch.from_numpy(a).half(),
    lambda a: torch.from_numpy(a).bfloat16(),
    lambda a: torch.from_numpy(a).float().requires_grad_(),
    lambda a: [torch.from_numpy(a)],
    lambda a: a[None],
    lambda a: torch.from_numpy(a)[None].permute(0, 2, 3, 1),
]


def test_gray_arrays_fill_three_channels():
    for gray in (GRAY, torch.from_numpy(GRAY), [GRAY], GRAY[None], GRAY[..., None]):
        np.testing.assert_array_equal(as_bytes(JetImageProcessor(size=SIZE), gray), np.stack([GRAY] * 3)[None])


def test_arrays_are_converted_as_pil_images_are():
    for height, width, num_channels in itertools.product((1, SIZE), (1, SIZE), (1, 3)):
        rgba = np.dstack([RGB, ALPHA])[:height, :width]
        processor = JetImageProcessor(num_channels=num_channels, do_resize=False, do_center_crop=False)
        for array in (rgba, rgba[..., :3], rgba[..., 0]):
            as_array = as_bytes(processor, np.ascontiguousarray(array), input_data_format="channels_last")
            np.testing.assert_array_equal(as_array, as_bytes(processor, Image.fromarray(array)))


@pytest.fixture
def as_on_device(monkeypatch):
    """Process tensors on the CPU by the way of tensors on an accelerator."""
    monkeypatch.setattr(image_processing_jet, "on_device", lambda image: isinstance(image, torch.Tensor))


@pytest.mark.parametrize(
    ("size", "options"), [(SIZE, {}), (5, {}), (SIZE, {"do_center_crop": False}), (3, {"image_mean": [0.1, 0.2, 0.3]})]
)
def test_batches_on_a_device_get_the_pixel_values_of_their_pil_images(as_on_device, size, options):
    batch = np.random.default_rng(9).integers(0, 256, (4, 8, 13, 3), dtype=np.uint8)
    processor = JetImageProcessor(size=size, **options)
    expected = processor([Image.fromarray(image) for image in batch], return_tensors="pt").pixel_values
    tensor = torch.from_numpy(batch)
    for images in (tensor, tensor.permute(0, 3, 1, 2), tensor.float(), tensor.to(torch.bfloat16), list(tensor)):
        assert torch.equal(processor(images, return_tensors="pt").pixel_values, expected)
    assert all(isinstance(values, torch.Tensor) for values in processor(tensor).pixel_values)
    mixed = processor([tensor[:3], Image.fromarray(batch[3])], return_tensors="pt").pixel_values
    assert torch.equal(mixed, expected)
    np.testing.assert_array_equal(processor(tensor, return_tensors="np").pixel_values, expected)
    # `device` moves images of any kind there.
    moved = processor([tensor, batch], device="cpu").pixel_values
    assert len(moved) == 8 and torch.equal(torch.stack(moved), expected.repeat(2, 1, 1, 1))


def test_gray_batches_on_a_device_fill_three_channels(as_on_device):
    batch = torch.from_numpy(GRAY).expand(2, 1, SIZE, SIZE)
    pixel_values = JetImageProcessor(size=SIZE)(batch, return_tensors="pt").pixel_values
    assert torch.equal(pixel_values, (batch / 127.5 - 1).expand(2, 3, SIZE, SIZE))


def test_steps_of_pillow_are_refused_on_a_device(as_on_device):
    image = torch.from_numpy(RGB)
    with pytest.raises(ValueError, match=r"resizing with the filter LANCZOS takes Pillow, .* got images on cpu"):
        JetImageProcessor(size=4, resample=Image.Resampling.LANCZOS)(image)
    with pytest.raises(ValueError, match="converting 3 channels to 1 takes Pillow"):
        JetImageProcessor(size=4, num_channels=1)(image)
    with pytest.raises(ValueError, match="all images must be on one device, got cpu, meta"):
        JetImageProcessor(size=SIZE)([image, image.to("meta")])


@pytest.mark.parametrize(
    "array, message",
    [
        (RGB / 255, "whole numbers from 0 to 255, got float64 values from 0"),
        (RGB / 127.5 - 1, "whole numbers from 0 to 255, got float64 values from -"),
        (RGB + 0.5, "whole numbers from 0 to 255"),
        (RGB.astype(np.int16) - 300, "whole numbers from 0 to 255, got int16 values from -"),
        (RGB.astype(np.uint16) * 257, "whole numbers from 0 to 255, got uint16 values"),
        (np.where(RGB > 9, np.nan, 3.0), "whole numbers from 0 to 255, got float64 values from nan"),
        (np.where(RGB > 9, np.inf, 3.0), "whole numbers from 0 to 255, got float64 values from 3 to inf"),
        ((RGB > 9).astype(np.float32), "ambiguous .* pass uint8"),
        (RGB > 9, "must hold bytes .* got bool"),
        (RGB.astype(complex), "must hold bytes .* got complex128"),
        (RGB.astype(object), "must hold bytes .* got object"),
        (RGB[:, :0], r"must hold bytes .* of shape \(8, 0, 3\)"),
        (RGB[0, :, 0], r"2 dimensions, or 3 with its channels, got shape \(8,\)"),
        (RGB[None, None], r"got shape \(1, 1, 8, 8, 3\)|got shape \(1, 8, 8, 3\)"),
        (RGB[:0][None], r"must hold bytes"),
        (np.zeros((5, 6, 7), np.uint8), r"shape \(5, 6, 7\) does not show which side is its channels"),
        (np.zeros((3, 9, 3), np.uint8), r"shape \(3, 9, 3\) does not show .* Pass `input_data_format`"),
        (np.zeros((1, 500, 3), np.uint8), "does not show which side"),
        (np.zeros((4, 4, 3), np.uint8), "does not show which side"),
        (np.zeros((3, 1, 1), np.uint8), "does not show which side"),
    ],
)
def test_wrong_arrays_are_refused(array, message, monkeypatch):
    processor = JetImageProcessor(size=SIZE)
    with pytest.raises(ValueError, match=message):
        processor(array)
    if array.dtype != object:
        for on_device in (lambda image: False, lambda image: isinstance(image, torch.Tensor)):
            monkeypatch.setattr(image_processing_jet, "on_device", on_device)
            with pytest.raises(ValueError, match=message):
                processor(torch.from_numpy(array))


def test_inputs_without_images_are_refused():
    processor = JetImageProcessor(size=SIZE)
    for images in (None, 3, {"image": RGB}, [None], [[1, 2], [3, 4]], (image for image in [RGB])):
        with pytest.raises(ValueError, match="images must be PIL images, arrays, tensors or lists of them, got"):
            processor(images)
    for images in ([], [[]], RGB[None][:0], torch.from_numpy(RGB[None])[:0]):
        with pytest.raises(ValueError, match="at least one image is expected"):
            processor(images)


@pytest.mark.parametrize("data_format, expected", [("channels_first", (3, 4, 3)), ("channels_last", (3, 3, 4))])
def test_data_format_decides_where_the_shape_does_not(data_format, expected):
    array = RGB[:3, :4]
    processor = JetImageProcessor(do_resize=False, do_center_crop=False, input_data_format=data_format)
    assert processor.to_uint8(array).shape == as_bytes(processor, array)[0].shape == expected
    with pytest.raises(ValueError, match="channels_middle"):
        processor(array, input_data_format="channels_middle")


@pytest.mark.parametrize("num_channels, array", [(5, RGB), (2, RGB), (3, np.zeros((5, 9, 9), np.uint8))])
def test_channels_that_cannot_be_converted_are_refused(num_channels, array):
    data_format = "channels_first" if len(array) == 5 else "channels_last"
    with pytest.raises(ValueError, match=f"channels cannot be converted to the model's num_channels={num_channels}"):
        JetImageProcessor(size=SIZE, num_channels=num_channels)(array, input_data_format=data_format)
    if array is RGB:
        with pytest.raises(ValueError, match="an image of 3 channels cannot be converted"):
            JetImageProcessor(size=SIZE, num_channels=num_channels)(RGB_IMAGE)


def test_batch_of_mixed_kinds_and_sizes():
    five = np.repeat(np.repeat(RGB, 5, axis=0), 5, axis=1)
    batch = [
        RGB_IMAGE,
        GRAY,
        torch.from_numpy(to_chw(RGB).copy()),
        [five, Image.fromarray(five)],
        np.stack([RGB, RGB[::-1]]),
    ]
    converted = as_bytes(JetImageProcessor(size=SIZE), batch)
    rgb, gray, flipped = to_chw(RGB), np.stack([GRAY] * 3), to_chw(RGB[::-1])
    np.testing.assert_array_equal(converted, np.stack([rgb, gray, rgb, rgb, rgb, rgb, flipped]))


# Crop and resize


def test_crop_is_the_largest_centered_square():
    processor = JetImageProcessor(do_resize=False)
    for height, width, rows, columns in (
        (5, 5, slice(0, 5), slice(0, 5)),
        (5, 8, slice(0, 5), slice(1, 6)),
        (8, 5, slice(1, 6), slice(0, 5)),
        (4, 8, slice(0, 4), slice(2, 6)),
        (7, 2, slice(2, 4), slice(0, 2)),
        (1, 6, slice(0, 1), slice(2, 3)),
    ):
        image = RGB[:height, :width]
        np.testing.assert_array_equal(processor.to_uint8(Image.fromarray(image)), to_chw(image[rows, columns]))


def test_crop_follows_the_aspect_ratio_of_the_size():
    processor = JetImageProcessor(size={"height": 2, "width": 4})
    np.testing.assert_array_equal(
        processor.to_uint8(RGB_IMAGE), to_chw(RGB[2:6].reshape(2, 2, 4, 2, 3).mean((1, 3)) + 0.5).astype(np.uint8)
    )


@pytest.mark.parametrize(
    "line, expected",
    [
        ([0, 10, 20, 30, 40], [8, 32]),  # (0 + 10 + 20/2) / 2.5
        ([0, 30, 60, 90, 120, 150, 180], [21, 90, 159]),  # (0 + 30 + 60/3) / (7/3) = 21.4
        ([0, 60, 120], [20, 100]),  # (0 + 60/2) / 1.5
        ([0, 90], [0, 45, 90]),
        ([0, 90], [0, 0, 45, 90, 90]),
        ([10, 20, 40], [10, 17, 27, 40]),  # (10/4 + 20/2) / (3/4) = 16.7
        ([7], [7, 7, 7]),
    ],
)
def test_area_average_by_hand(line, expected):
    line = np.array(line, dtype=np.uint8)
    across = resize_area(np.tile(line, (2, 4, 1)), 4, len(expected))
    np.testing.assert_array_equal(across, np.broadcast_to(expected, across.shape))
    down = resize_area(np.tile(line[:, None], (2, 1, 4)), len(expected), 4)
    np.testing.assert_array_equal(down, np.broadcast_to(np.array(expected)[:, None], down.shape))


def exact_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """In whole numbers: each pixel as a block of height x width, whose blocks of the old size are averaged."""
    fine = image.astype(np.int64).repeat(height, axis=1).repeat(width, axis=2)
    channels, old_height, old_width = image.shape
    total = fine.reshape(channels, height, old_height, width, old_width).sum(axis=(2, 4))
    count = old_height * old_width
    return ((2 * total + count) // (2 * count)).astype(np.uint8)


@pytest.mark.parametrize("as_array", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(
    "old, new",
    [
        ((7, 7), (3, 3)),
        ((13, 8), (5, 3)),
        ((64, 48), (10, 32)),
        ((3, 2), (5, 7)),
        ((1, 40), (8, 8)),
        ((30, 7), (7, 30)),
    ],
)
def test_area_average(old, new, as_array):
    image = np.random.default_rng(2).integers(0, 256, (3, *old), dtype=np.uint8)

    def resized(image, size=new) -> np.ndarray:
        return np.asarray(resize_area(as_array(image.copy()), *size))

    expected = exact_area(image, *new)
    np.testing.assert_array_equal(resized(image), expected)
    np.testing.assert_array_equal(resized(image[:, ::-1]), expected[:, ::-1])
    np.testing.assert_array_equal(resized(image[:, :, ::-1]), expected[:, :, ::-1])
    np.testing.assert_array_equal(resized(image.swapaxes(1, 2), new[::-1]), expected.swapaxes(1, 2))
    for constant in (0, 1, 127, 255):
        assert (resized(np.full_like(image, constant)) == constant).all()


def test_rounding_is_to_nearest_with_halves_up():
    for pixels, mean in (([0, 1], 1), ([1, 2], 2), ([2, 3], 3), ([0, 0, 1], 0), ([0, 1, 1], 1), ([254, 255], 255)):
        assert resize_area(np.array(pixels, dtype=np.uint8)[None, None], 1, 1).item() == mean
    # One pixel of four million tips the balance.
    large = np.zeros((1, 2000, 2000), dtype=np.uint8)
    large[:, :1000] = 1
    assert resize_area(large, 1, 1).item() == 1
    large[0, 0, 0] = 0
    assert resize_area(large, 1, 1).item() == 0


def test_whole_image_is_squeezed_without_a_crop():
    image = np.random.default_rng(4).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    squeezed = as_bytes(JetImageProcessor(size=4, do_center_crop=False), image)[0]
    np.testing.assert_array_equal(squeezed, exact_area(to_chw(image), 4, 4))


def test_enlarging_warns():
    for height, width, crop in ((7, 9, True), (8, 7, True), (7, 8, False), (100, 7, False), (1, 1, True)):
        with pytest.warns(UserWarning, match="is enlarged to 8 x 8: its bits per dimension are those of the enlarged"):
            JetImageProcessor(size=8, do_center_crop=crop)(Image.new("RGB", (width, height)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for height, width, crop in ((8, 8, True), (8, 30, True), (9, 8, False), (100, 8, False)):
            JetImageProcessor(size=8, do_center_crop=crop)(Image.new("RGB", (width, height)))
            JetImageProcessor(size=200, do_resize=False)(Image.new("RGB", (width, height)))


@pytest.mark.parametrize("resample", [f for f in Image.Resampling if f != Image.Resampling.BOX])
def test_other_filters_are_those_of_pillow(resample):
    image = np.random.default_rng(5).integers(0, 256, (21, 21, 5), dtype=np.uint8)
    rgb, gray = Image.fromarray(image[..., :3]), Image.fromarray(image[..., 0])
    expected = to_chw(np.array(rgb.resize((8, 8), resample)))
    np.testing.assert_array_equal(as_bytes(JetImageProcessor(size=8, resample=resample), rgb)[0], expected)
    processor = JetImageProcessor(size=8, num_channels=1)
    np.testing.assert_array_equal(as_bytes(processor, gray, resample=int(resample))[0], expected[:1])
    five = as_bytes(JetImageProcessor(size=8, num_channels=5, resample=resample), image)[0]
    np.testing.assert_array_equal(five[:3], expected)
    assert not np.array_equal(expected, as_bytes(JetImageProcessor(size=8), rgb)[0])


@pytest.mark.filterwarnings("ignore:an image of")
@pytest.mark.parametrize("num_channels", [1, 3])
def test_extreme_shapes(num_channels):
    processor = JetImageProcessor(size=8, num_channels=num_channels)
    assert (as_bytes(processor, Image.new("RGB", (1, 1), (9, 9, 9))) == 9).all()
    assert (as_bytes(processor, np.full((1, 1, 1), 9, np.uint8)) == 9).all()
    line = np.random.default_rng(6).integers(0, 256, (1, 500), dtype=np.uint8)
    for image, whole in ((line, exact_area(line[None], 8, 8)), (line.T, exact_area(line.T[None], 8, 8))):
        assert (as_bytes(processor, image) == line[0, 249]).all()
        squeezed = as_bytes(processor, image, do_center_crop=False)[0]
        np.testing.assert_array_equal(squeezed, whole.repeat(num_channels, axis=0))


# Options


def test_size_may_be_a_number_or_a_pair():
    expected = exact_area(to_chw(RGB), 4, 4)[None]
    for size in (4, np.int64(4), (4, 4), [4, 4], {"height": 4, "width": 4}):
        assert JetImageProcessor(size=size).size == {"height": 4, "width": 4}
        np.testing.assert_array_equal(as_bytes(JetImageProcessor(size=size), RGB), expected)
        if not isinstance(size, np.integer):  # transformers checks the types of a call's arguments
            np.testing.assert_array_equal(as_bytes(JetImageProcessor(size=99), RGB, size=size), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 0}, r"`size\['height'\]` must be a whole number of at least 1, got 0"),
        ({"size": -3}, r"`size\['height'\]` must be a whole number of at least 1, got -3"),
        ({"size": True}, "got True"),
        ({"size": (8,)}, r"`size` must be one number, or height and width, got \(8,\)"),
        ({"size": {"height": 8, "width": 0}}, r"`size\['width'\]` must be a whole number of at least 1, got 0"),
        ({"size": {"height": 8, "width": 8.0}}, r"`size\['width'\]` must be a whole number of at least 1, got 8.0"),
        ({"size": {"shortest_edge": 8}}, r"`size\['height'\]` must be a whole number of at least 1, got None"),
        ({"num_channels": 0}, "`num_channels` must be a whole number of at least 1, got 0"),
        ({"num_channels": "3"}, "`num_channels` must be a whole number of at least 1, got '3'"),
        ({"num_channels": True}, "`num_channels` must be a whole number of at least 1, got True"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        JetImageProcessor(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop_size": 8}, "`crop_size` is not used"),
        ({"size": 0}, "must be a whole number of at least 1, got 0"),
        ({"num_channels": 1}, "`image_mean` and `image_std` must be .* the image's 1 channels, got 3 and 3"),
        ({"image_mean": [0.5, 0.5]}, "3 channels, got 2 and 3"),
        ({"resample": 99}, "99"),
    ],
)
def test_wrong_options_of_a_call_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        JetImageProcessor(size=4)(RGB, **options)


def test_unknown_arguments_are_not_ignored_silently(tmp_path):
    with pytest.warns(UserWarning, match=r"ignores the unknown arguments \['do_centre_crop'\]"):
        JetImageProcessor(do_centre_crop=False)
    with pytest.raises(TypeError, match="do_centre_crop"):
        JetImageProcessor(size=4)(RGB, do_centre_crop=False)
    JetImageProcessor().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JetImageProcessor.from_pretrained(tmp_path)


def test_options_of_a_call():
    processor = JetImageProcessor(size=4)
    wide = np.random.default_rng(7).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    squeezed = as_bytes(processor, wide, size=8, do_center_crop=False)[0]
    np.testing.assert_array_equal(squeezed, exact_area(to_chw(wide), 8, 8))
    np.testing.assert_array_equal(as_bytes(processor, wide, do_resize=False)[0], to_chw(wide[:, 2:10]))
    gray = as_bytes(processor, RGB, num_channels=1, image_mean=0.5, image_std=0.5)
    np.testing.assert_array_equal(gray, as_bytes(JetImageProcessor(size=4, num_channels=1), RGB))
    raw = processor(RGB, size=8, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(raw, to_chw(RGB))
    unit = processor(RGB, size=8, do_normalize=False, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(unit, to_chw(RGB) / 255, atol=1e-7)
    assert processor.size == {"height": 4, "width": 4}
    np.testing.assert_array_equal(as_bytes(processor, wide)[0], exact_area(to_chw(wide[:, 2:10]), 4, 4))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 4, "num_channels": 1},
        {"size": {"height": 4, "width": 6}, "do_center_crop": False, "resample": Image.Resampling.LANCZOS},
        {"size": 5, "num_channels": 5, "input_data_format": "channels_last"},
    ],
)
def test_saved_and_loaded_through_the_auto_class(tmp_path, options):
    processor = JetImageProcessor(**options)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is JetImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    image = np.random.default_rng(8).integers(0, 256, (70, 80, options.get("num_channels", 3)), dtype=np.uint8)
    np.testing.assert_array_equal(as_bytes(loaded, image), as_bytes(processor, image))


@pytest.mark.filterwarnings("ignore:an image of")
@pytest.mark.parametrize("num_channels", [1, 3])
def test_to_uint8_gives_the_bytes_of_a_call(num_channels):
    images = (RGB_IMAGE, MODES["PA"][0], MODES["I;16"][0], RGB[:5], GRAY, torch.from_numpy(RGB))
    for options in ({}, {"do_center_crop": False}, {"resample": 3}, {"do_resize": False}):
        processor = JetImageProcessor(size=5, num_channels=num_channels, **options)
        for image in images:
            levels = processor.to_uint8(image)
            assert levels.dtype == np.uint8
            np.testing.assert_array_equal(levels, as_bytes(processor, image)[0])


def test_to_uint8_takes_the_nested_lists_of_a_dataset():
    np.testing.assert_array_equal(JetImageProcessor(size=SIZE).to_uint8(RGB.tolist()), to_chw(RGB))


# Back to images


@pytest.mark.parametrize("noise", [0.0, 0.5, 0.9999])
@pytest.mark.parametrize("num_channels, mode", [(1, "L"), (3, "RGB")])
def test_post_process_gives_back_every_byte(noise, num_channels, mode):
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    processor = JetImageProcessor(size=16, num_channels=num_channels)
    pixel_values = processor([every, every.T], return_tensors="pt").pixel_values + noise / 127.5
    images = processor.post_process(pixel_values)
    assert [(image.mode, image.size) for image in images] == [(mode, (16, 16))] * 2
    for image, expected in zip(images, (every, every.T), strict=True):
        np.testing.assert_array_equal(np.array(image).reshape(16, 16, -1), triple(expected)[..., :num_channels])


def test_post_process_clips_and_rounds_down():
    levels = np.array([[-3.0, -0.2, 0.99, 1.01], [100.5, 254.99, 255.99, 256.5], [1e9, -1e9, 128.0, 7.0]])
    pixel_values = torch.from_numpy(levels / 127.5 - 1)[None, None]
    expected = [[0, 0, 0, 1], [100, 254, 255, 255], [255, 0, 128, 7]]
    processor = JetImageProcessor(num_channels=1)
    for values in (
        pixel_values,
        pixel_values[0],
        pixel_values.numpy(),
        pixel_values.requires_grad_(),
        [pixel_values[0].detach()],
    ):
        (image,) = processor.post_process(values)
        np.testing.assert_array_equal(np.array(image), expected)
    (coarse,) = processor.post_process(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16))
    assert (np.array(coarse) == 127).all()


def test_post_process_gives_the_bytes_of_half_precision_images():
    every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixel_values = torch.from_numpy(every_byte / 127.5 - 1)[None, None]
    for values in (pixel_values.half(), pixel_values.bfloat16(), pixel_values.half().numpy()):
        (image,) = JetImageProcessor(num_channels=1).post_process(values)
        np.testing.assert_array_equal(np.array(image), every_byte)


def test_post_process_follows_the_scale_of_the_processor():
    processor = JetImageProcessor(size=8, do_normalize=False)
    (image,) = processor.post_process(processor(RGB, return_tensors="pt").pixel_values)
    np.testing.assert_array_equal(np.array(image), RGB)


@pytest.mark.parametrize(
    "num_channels, values, message",
    [
        (3, torch.zeros(1, 1, 4, 4), r"shape \(batch_size, 3, height, width\).* got \(1, 1, 4, 4\)"),
        (3, torch.zeros(1, 4, 4, 3), r"got \(1, 4, 4, 3\)"),
        (3, torch.zeros(4, 4), r"got \(4, 4\)"),
        (1, torch.zeros(1, 3, 4, 4), r"shape \(batch_size, 1, height, width\).* got \(1, 3, 4, 4\)"),
        (5, torch.zeros(1, 5, 4, 4), "with 1 or 3 channels to make images of"),
        (3, torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "must be floating-point, on the model's scale, got uint8"),
        (3, torch.full((1, 3, 4, 4), float("nan")), "must be finite, got NaN"),
        (3, torch.full((1, 3, 4, 4), float("inf")), "must be finite, got NaN or infinite"),
        (3, None, r"got \(\)"),
    ],
)
def test_post_process_refuses(num_channels, values, message):
    with pytest.raises(ValueError, match=f"`pixel_values` must.*{message}|{message}"):
        JetImageProcessor(num_channels=num_channels).post_process(values)


# Other numbers of gray levels


@pytest.mark.parametrize("num_levels", [2, 17, 256, 4096, 65536])
def test_levels_come_back_as_arrays_and_images(num_levels, tmp_path):
    dtype = np.uint8 if num_levels <= 256 else np.uint16
    levels = np.random.default_rng(0).integers(num_levels, size=(3, 1, 8, 8)).astype(dtype)
    levels[0, 0, 0, :2] = 0, num_levels - 1
    JetImageProcessor(size=8, num_channels=1, num_levels=num_levels).save_pretrained(tmp_path)
    processor = JetImageProcessor.from_pretrained(tmp_path)
    processor.check_scale(num_levels)
    pixel_values = processor(levels, return_tensors="pt").pixel_values
    expected = 2 * torch.from_numpy(levels.astype(np.float64)) / (num_levels - 1) - 1
    torch.testing.assert_close(pixel_values, expected.float(), rtol=0, atol=1e-7)
    tiny_model(num_channels=1, num_levels=num_levels)(pixel_values)  # accepted
    noise = torch.rand(pixel_values.shape, generator=torch.Generator().manual_seed(0)) * 0.98 / ((num_levels - 1) / 2)
    for values, dequantized in ((pixel_values, True), (pixel_values + noise, True), (pixel_values - 1e-6, False)):
        found = processor.to_levels(values, dequantized)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, levels)
    # Images hold levels as they are; pictures of samples fill the range of their mode, so that people see them.
    stored = [Image.fromarray(image[0].astype(dtype)) for image in levels]
    assert torch.equal(processor(stored, return_tensors="pt").pixel_values, pixel_values)
    images = processor.post_process(pixel_values)
    assert {image.mode for image in images} == {"L" if num_levels <= 256 else "I;16"}
    assert np.asarray(images[0]).min() == 0 and np.asarray(images[0]).max() == (255 if num_levels <= 256 else 65535)
    images[0].save(tmp_path / "picture.png")
    picture = np.array(Image.open(tmp_path / "picture.png"))
    np.testing.assert_array_equal(np.rint(picture / picture.max() * (num_levels - 1)), levels[0, 0])


@pytest.mark.parametrize("num_levels", [17, 65536])
def test_averages_are_rounded_to_levels_on_every_device(num_levels, monkeypatch):
    array = np.random.default_rng(0).integers(num_levels, size=(8, 8)).astype(np.uint16)
    means = array.reshape(4, 2, 4, 2).astype(np.float64).mean(axis=(1, 3))
    processor = JetImageProcessor(size=4, num_channels=1, num_levels=num_levels)
    expected = np.floor(means + 0.5) * 2 / (num_levels - 1) - 1
    np.testing.assert_allclose(processor(array, return_tensors="np").pixel_values[0, 0], expected, rtol=0, atol=1e-7)
    on_cpu = processor(array, return_tensors="pt").pixel_values
    monkeypatch.setattr(image_processing_jet, "on_device", lambda image: isinstance(image, torch.Tensor))
    assert torch.equal(processor(torch.from_numpy(array), return_tensors="pt").pixel_values, on_cpu)


def test_modes_of_images_with_levels_are_not_scaled():
    processor, levels = JetImageProcessor(size=8, num_channels=1, num_levels=17), GRAY % 17
    palette = Image.fromarray(levels).convert("P")
    palette.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    for image in (palette, Image.fromarray(triple(levels)), Image.fromarray(levels.astype(np.uint16))):
        np.testing.assert_array_equal(processor.read_levels(image)[0], levels)
    color = JetImageProcessor(size=8, num_levels=17).read_levels(Image.fromarray(RGB % 17))
    np.testing.assert_array_equal(color, to_chw(RGB % 17))
    bits = Image.fromarray(GRAY > 99)
    np.testing.assert_array_equal(JetImageProcessor(size=8, num_channels=1, num_levels=2).read_levels(bits)[0], bits)


def test_levels_that_images_do_not_have_are_refused():
    digits = JetImageProcessor(size=8, num_channels=1, num_levels=17)
    deep = JetImageProcessor(size=8, num_channels=1, num_levels=65536)
    for processor, image, message in (
        (digits, GRAY, r"must hold whole numbers from 0 to 16 \(`num_levels` 17\), got uint8 values from"),
        (digits, np.full((8, 8), 17), r"from 0 to 16 \(`num_levels` 17\), got int64 values from 17 to 17"),
        (digits, np.full((8, 8), -1), r"from 0 to 16 \(`num_levels` 17\), got int64 values from -1"),
        (digits, RGB % 17, "only 8-bit images can be converted from 3 channels to 1, got `num_levels` 17"),
        (deep, GRAY, "of `num_levels` 65536 must have more than 8 bits, got uint8"),
        (deep, np.full((8, 8), 65536), r"from 0 to 65535 \(`num_levels` 65536\), got int64 values from 65536"),
        (deep, Image.fromarray(GRAY), "of `num_levels` 65536 must have more than 8 bits, got uint8"),
        (digits, Image.fromarray(RGB % 17), "only 8-bit images can be converted from 3 channels to 1"),
        (digits, Image.fromarray(RGB).convert("CMYK"), "must be gray .* or opaque RGB, got mode 'CMYK'"),
        (digits, Image.fromarray(RGB).convert("RGBA"), "must be gray .* or opaque RGB, got mode 'RGBA'"),
        (digits, Image.fromarray(GRAY), r"from 0 to 16 \(`num_levels` 17\), got uint8 values from .* to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(image)
    with pytest.raises(ValueError, match="the filter LANCZOS takes 8-bit images, got `num_levels` 17: use BOX"):
        JetImageProcessor(size=4, num_channels=1, num_levels=17, resample=Image.Resampling.LANCZOS)(GRAY % 17)
    with pytest.raises(ValueError, match="`num_levels` must be at most 256 for images as bytes, got 65536"):
        deep.to_uint8(GRAY)
    with pytest.raises(ValueError, match="use `to_levels`"):
        JetImageProcessor(size=8, num_levels=65536).post_process(torch.zeros(1, 3, 8, 8))
    for number in (1, 65537, 2.0):
        with pytest.raises(ValueError, match=f"`num_levels` must be .*, got {number}"):
            JetImageProcessor(num_levels=number)
    # For one call, the scale follows too.
    np.testing.assert_allclose(digits(GRAY, num_levels=256).pixel_values[0][0], GRAY / 127.5 - 1, rtol=0, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize(
    "fields, std",
    [
        ({}, 0.1),
        ({"num_channels": 1}, 0.1),
        ({"coupling_kinds": ["spatial"]}, 0.1),
        ({"num_coupling_layers": 32}, 0.05),
    ],
)
def test_bytes_come_back_through_the_model(fields, std):
    model = tiny_model(std, **fields)
    processor = JetImageProcessor(size=model.config.image_size, num_channels=model.config.num_channels)
    original = random_bytes(4, model.config)
    original[0], original[1] = 0, 255
    pixel_values = processor(original, return_tensors="pt").pixel_values
    latents, _ = model.encode(pixel_values + 0.5 / 127.5)
    assert (latents - pixel_values).abs().mean() > 0.2, "the model must do something"
    for image, expected in zip(processor.post_process(model.decode(latents)[0]), original, strict=True):
        np.testing.assert_array_equal(np.array(image).reshape(8, 8, -1), expected.permute(1, 2, 0))
