"""Invalid input raises an error with the argument, the expected and the given value."""

import json
import logging
import math
import re

import numpy as np
import pytest
import torch
from conftest import random_bytes, random_images, tiny_config, tiny_model
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from jet_hf import JetConfig, JetImageProcessor
from jet_hf.analysis.density import bits_per_patch
from jet_hf.analysis.sampling import interpolate, reconstruct


NAN, INF = math.nan, math.inf


# Configuration


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"image_size": 9}, "`image_size` must be divisible by `patch_size`, got image_size=9 and patch_size=2"),
        ({"patch_size": 3}, "`image_size` must be divisible by `patch_size`, got image_size=8 and patch_size=3"),
        ({"patch_size": 16}, "`image_size` must be divisible by `patch_size`, got image_size=8 and patch_size=16"),
        ({"image_size": (8, 9)}, r"must be divisible by `patch_size`, got image_size=\[8, 9\] and patch_size=2"),
        ({"image_size": (8, 0)}, r"`image_size` must be at least 1, got \[8, 0\]"),
        (
            {"image_size": (6, 8)},
            "rows of patches must be even for the spatial coupling 'hstripes', got .* 3 x 4 patches",
        ),
        (
            {"image_size": (8, 6), "spatial_couplings": ["hstripes", "vstripes"]},
            "columns of patches must be even for the spatial coupling 'vstripes', got .* 4 x 3 patches",
        ),
        (
            {"image_size": (8, 6), "spatial_couplings": ["checkerboard"], "backbone": "cnn", "num_groups": 2},
            "columns of patches must be even for the spatial coupling 'checkerboard' of a CNN",
        ),
        ({"patch_size": 1}, "must be even, .* got num_channels=3 and patch_size=1, which is 3"),
        (
            {"image_size": 9, "patch_size": 3, "num_channels": 1},
            "must be even, .* got num_channels=1 and patch_size=3, which is 9",
        ),
        (
            {"image_size": 6},
            "spatial `coupling_kinds` halve them, got image_size=6 and patch_size=2, which is 9 patches",
        ),
        (
            {"hidden_size": 15},
            "`hidden_size` must be divisible by `num_attention_heads`, got hidden_size=15 and num_attention_heads=2",
        ),
        (
            {"coupling_kinds": ["channels", "chanels"]},
            "`coupling_kinds` must contain only .*'spatial'.* got 'chanels'",
        ),
        ({"coupling_kinds": []}, r"`coupling_kinds` must name at least one of .* got \[\]"),
        ({"spatial_couplings": ["stripes"]}, "`spatial_couplings` must contain only .*'vstripes'.* got 'stripes'"),
        ({"spatial_couplings": ()}, r"`spatial_couplings` must name at least one of .* got \[\]"),
        *[
            ({"scale_factor": v}, f"`scale_factor` must be a positive number, got {v}")
            for v in (0, 0.0, -2.0, NAN, INF)
        ],
        *[
            ({"layer_norm_eps": v}, f"`layer_norm_eps` must be zero or a positive number, got {v}")
            for v in (-1e-6, NAN)
        ],
        *[({"noise_std": v}, f"`noise_std` must be a positive number or None, got {v}") for v in (0, -0.1, NAN, INF)],
        *[
            ({"noise_std": v}, "must be a pair of positive numbers, got")
            for v in ((-0.1, 1), (0, 1), (NAN, 1), (1, INF))
        ],
        *[
            ({"noise_std": v}, r"must be one number, or the smallest and the largest of a range, got \[")
            for v in ((0.4, 0.1), (0.1, 0.1), [0.1], (0.1, 0.2, 0.3))
        ],
        ({"noise_std": 0.1, "dequantization": "flow"}, "got dequantization=flow and noise_std=0.1"),
        *[({"num_levels": v}, f"`num_levels` must be from 2 to 65536, got {v}") for v in (-1, 1, 65537)],
        ({"hidden_act": "gelou"}, "`hidden_act` must be one of .*'gelu'.* got 'gelou'"),
        ({"num_hidden_layers": -1}, "`num_hidden_layers` must be at least 0, got -1"),
        ({"dequantization_num_hidden_layers": -1}, "`dequantization_num_hidden_layers` must be at least 0, got -1"),
        ({"coupling_mode": "pairs"}, "`coupling_mode` must be one of .*'masking'.* got 'pairs'"),
        ({"backbone": "resnet"}, "`backbone` must be one of .*'cnn'.* got 'resnet'"),
        ({"dequantization": "variational"}, "`dequantization` must be one of .*'flow'.* got 'variational'"),
        ({"backbone": "cnn"}, "`num_groups` must divide `hidden_size` / 4, .* got hidden_size=16 and num_groups=32"),
        (
            {"num_classes": 3, "context_size": 4},
            "excludes `context_size`, got num_classes=3 and context_size=4",
        ),
        (
            {"dequantization": "flow", "dequantization_hidden_size": 15},
            "of the dequantization flow: (?s:.*)`hidden_size` must be divisible .* hidden_size=15",
        ),
    ],
)
def test_values_that_cannot_work(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        tiny_config(**fields)


SIZES = [name for name, kind in JetConfig.__annotations__.items() if kind in (int, int | None)]
SIZES = [name for name in SIZES if name not in ("permutation_seed", "num_hidden_layers", "num_levels")]


def test_sizes_below_one():
    for field in SIZES:
        low = 0 if field.endswith("num_hidden_layers") else 1
        for value in (low - 1, -4):
            with pytest.raises(StrictDataclassError, match=f"`{field}` must be at least {low}, got {value}"):
                tiny_config(**{field: value})


def test_wrong_types_in_the_constructor_and_in_a_file(tmp_path):
    fields = json.loads(tiny_config().to_json_string(use_diff=False)) | {"model_type": "jet"}
    wrong = {bool: (1, "true", None), int: (True, "4", 4.0, None), int | None: (True, "4", 4.0), str: (1, None)}
    wrong |= {float: (True, "1.0", None), float | int: (True, "1.0", None)}
    wrong |= {int | tuple[int, int] | list[int]: (True, "8", None, [8, 8.0], [8, "8"])}
    wrong[JetConfig.__annotations__["noise_std"]] = (True, "1.0", ["a", 1.0], (None, 1.0))
    wrong |= {tuple[str, ...] | list[str]: ("channels", None, ["channels", 1], (None,))}
    for field, kind in JetConfig.__annotations__.items():
        for value in wrong[kind]:
            message = f"field '{field}'(?s:.*){re.escape(str(value))}"
            with pytest.raises(StrictDataclassError, match=message):
                tiny_config(**{field: value})
        (tmp_path / "config.json").write_text(json.dumps(fields | {field: wrong[kind][-1]}))
        for config_class in (JetConfig, AutoConfig):
            with pytest.raises(StrictDataclassError, match=f"field '{field}'"):
                config_class.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_size": 6, "coupling_kinds": ["channels"]},
        {"image_size": (6, 2), "coupling_kinds": ["channels"]},
        {"image_size": (8, 6), "spatial_couplings": ["hstripes", "checkerboard"]},
        {"num_channels": 2, "patch_size": 1},
        {"num_hidden_layers": 0},
        {"scale_factor": 1},
        {"coupling_kinds": ("spatial",)},
        {"context_size": 1},
        {"num_levels": 2},
        {"num_levels": 65536},
    ],
)
@torch.no_grad()
def test_values_at_the_edge_work(fields, tmp_path):
    tiny_config(**fields).save_pretrained(tmp_path)
    loaded = JetConfig.from_pretrained(tmp_path).to_dict()
    loaded.pop("auto_map")
    assert loaded == tiny_config(**fields).to_dict()
    model = tiny_model(**fields)
    context = None if model.config.context_size is None else torch.zeros(2, 1, 1)
    assert model(random_images(2, model.config), context=context).bits_per_dim.isfinite().all()


# Images and latents


@pytest.fixture(scope="module")
def plain():
    return tiny_model()


@pytest.fixture(scope="module")
def in_range():
    return tiny_model(noise_std=(0.05, 0.4), num_coupling_layers=1)


@pytest.fixture(scope="module")
def conditional():
    return tiny_model(context_size=6)


# Calls that take images or latents, and the name of that argument.
CALLS = {
    "score": (lambda model, images, **kwargs: model.score(images, **kwargs), "pixel_values"),
    "model": (lambda model, images, **kwargs: model(images, **kwargs), "pixel_values"),
    "bare model": (lambda model, images, **kwargs: model.jet(images, **kwargs), "pixel_values"),
    "encode": (lambda model, images, **kwargs: model.encode(images, **kwargs), "pixel_values"),
    "decode": (lambda model, images, **kwargs: model.decode(images, **kwargs), "latents"),
}

IMAGES = random_images(2, tiny_config())
BYTES = random_bytes(2, tiny_config())


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """Return a copy of `tensor` with one element replaced by `value`."""
    tensor = tensor.clone()
    tensor.view(-1)[tensor.numel() // 2] = value
    return tensor


@pytest.mark.parametrize(
    "images, message",
    [
        (IMAGES[0], r"must have shape \(batch_size, 3, 8, 8\), got \(3, 8, 8\)"),
        (IMAGES[None], r"must have shape \(batch_size, 3, 8, 8\), got \(1, 2, 3, 8, 8\)"),
        (IMAGES[:, :1], r"must have shape \(batch_size, 3, 8, 8\), got \(2, 1, 8, 8\)"),
        (IMAGES.permute(0, 2, 3, 1), r"must have shape \(batch_size, 3, 8, 8\), got \(2, 8, 8, 3\)"),
        (IMAGES[..., :4], r"must have shape \(batch_size, 3, 8, 8\), got \(2, 3, 8, 4\)"),
        (IMAGES[:0], r"must have shape \(batch_size, 3, 8, 8\), got \(0, 3, 8, 8\)"),
        (torch.tensor(0.5), r"must have shape \(batch_size, 3, 8, 8\), got \(\)"),
        *[
            (BYTES.to(dtype), f"must be torch.float32, got {dtype}")
            for dtype in (torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float64)
        ],
        (IMAGES.numpy(), "must be a torch.Tensor, got ndarray"),
        (IMAGES.tolist(), "must be a torch.Tensor, got list"),
        (None, "must be a torch.Tensor, got NoneType"),
        *[(with_value(IMAGES, v), "must be finite, got NaN or infinite values") for v in (NAN, INF, -INF)],
    ],
)
def test_wrong_images(plain, images, message):
    for function, name in CALLS.values():
        with pytest.raises(ValueError, match=f"^`{name}` {message}"):
            function(plain, images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_flow_takes_no_half_precision(plain, dtype):
    for function, name in (CALLS["encode"], CALLS["decode"]):
        with pytest.raises(ValueError, match=f"^`{name}` must be torch.float32, got {dtype}.*round away"):
            function(plain, IMAGES.to(dtype))


def normalized(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (BYTES / 255 - mean) / std


NARROWED = [torch.float32, torch.float16, torch.bfloat16]
SCALERS = {
    "model": lambda model, images: model(images),
    "patches": lambda model, images: bits_per_patch(model, images, NOISE),
    "reconstruct": lambda model, images: reconstruct(model, images),
    "interpolate": lambda model, images: interpolate(model, images[0], images[1], 2),
}


@pytest.mark.parametrize(
    "images, reason",
    [
        *[((BYTES / 255).to(dtype), r"`u / 255` in \[0, 1\]: scale them to \[-1, 1\]") for dtype in NARROWED],
        (BYTES.float(), "whole numbers from 0 to 255: scale bytes"),
        (BYTES / 255 * 2, "which lie in .* got values from 0 to 2: .* differently"),
        (with_value(IMAGES, 1.01), "got values from -1 to 1.01"),
        (with_value(IMAGES, -1.01), "got values from -1.01 to "),
        (normalized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "normalized with ImageNet's mean"),
        (normalized((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)), "with CLIP's mean"),
        (normalized((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), "got values from -2 to 2: .* normalized differently"),
        *[(((BYTES + 0.5) / 127.5 - 1).to(dtype), "between the gray levels") for dtype in NARROWED],
        (
            (BYTES.float().roll(1, 3) + BYTES) / 255 - 1,
            "between the gray levels, as dequantization, or resizing without rounding",
        ),
        (with_value(IMAGES, 0.1), r"between the gray levels.* Continuous values go to `encode` or `distribution\(\)"),
    ],
)
def test_images_off_the_grid_of_bytes_are_not_scored(plain, images, reason):
    message = rf"^`(pixel_values|images)` must be 8-bit images `u / 127.5 - 1`, .*{reason}"
    for score in SCALERS.values():
        with pytest.raises(ValueError, match=message):
            score(plain, images)


def test_a_flow_encodes_what_a_density_model_does_not_score(plain):
    """The bijection is defined for all real numbers: dequantized images exceed 1, and latents are unbounded."""
    for function, _ in (CALLS["bare model"], CALLS["encode"], CALLS["decode"]):
        function(plain, 3 * IMAGES)


# Noise


NOISE = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(1))
OF_IMAGES = r"must have the shape and dtype of `pixel_values`, \(2, 3, 8, 8\) torch.float32, got "


@pytest.mark.parametrize(
    "noise, message",
    [
        (NOISE[:1], OF_IMAGES + r"\(1, 3, 8, 8\) torch.float32"),
        (NOISE[:, :1], OF_IMAGES + r"\(2, 1, 8, 8\) torch.float32"),
        (NOISE[0, 0, 0, 0], OF_IMAGES + r"\(\) torch.float32"),
        (NOISE.double(), OF_IMAGES + r"\(2, 3, 8, 8\) torch.float64"),
        (NOISE.half(), OF_IMAGES + r"\(2, 3, 8, 8\) torch.float16"),
        (NOISE.numpy(), OF_IMAGES + "ndarray"),
        (0.5, OF_IMAGES + "float"),
        (with_value(NOISE, -1e-6), r"must lie in \[0, 1\), got values from -1e-06 to"),
        (with_value(NOISE, 1.0), r"must lie in \[0, 1\), got values from .* to 1"),
        (with_value(NOISE, NAN), r"must lie in \[0, 1\), got values from nan"),
        (with_value(NOISE, INF), r"must lie in \[0, 1\), got values from .* to inf"),
    ],
)
def test_wrong_noise(plain, noise, message):
    with pytest.raises(ValueError, match=f"^`noise` {message}"):
        plain(IMAGES, noise=noise)


def test_noise_at_the_edge_works(plain):
    for value in (0.0, 1 - 2**-24):
        assert plain(IMAGES, noise=with_value(NOISE, value)).loss.isfinite()


def test_noise_and_generator_together(plain):
    with pytest.raises(ValueError, match="`noise` and `generator` exclude each other, got both"):
        plain(IMAGES, noise=NOISE, generator=torch.Generator())


@pytest.mark.parametrize("generator", [3, [torch.Generator()], np.random.default_rng(0)])
def test_only_torch_draws(plain, generator):
    message = f"`generator` must be a torch.Generator.* got {type(generator).__name__}"
    for call in (plain.sample, lambda number, generator: plain(IMAGES[:number], generator=generator)):
        with pytest.raises(ValueError, match=message):
            call(1, generator=generator)


def test_numbers_of_numpy_are_numbers(plain):
    def sample(num_samples, temperature):
        generator = torch.Generator().manual_seed(0)
        return plain.sample(num_samples, temperature=temperature, generator=generator)

    assert torch.equal(sample(np.int64(2), np.float32(0.5)), sample(2, 0.5))
    assert len(sample(np.uint8(1), np.int16(1))) == 1
    assert JetImageProcessor(size=np.int64(8)).size == {"height": 8, "width": 8}
    for number in (np.float64(2), np.True_, np.array(2)):
        with pytest.raises(ValueError, match="`num_samples` must be a whole number"):
            sample(number, 1.0)


# Context and labels


CONTEXT = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(2))
TAKERS = {
    **{name: lambda model, context, f=f: f(model, IMAGES, context=context) for name, (f, _) in CALLS.items()},
    "sample": lambda model, context: model.sample(2, context=context),
}
UNEXPECTED = r"^`context` was given, but `config\.context_size` is None"
OF_CONTEXT = r"must be a floating-point tensor of shape \(2, sequence_length, 6\), got "


@pytest.mark.parametrize(
    "context, message",
    [
        (None, r"is missing: `config.context_size` is set.* of shape \(2, sequence_length, 6\)"),
        (CONTEXT[0], OF_CONTEXT + r"\(3, 6\) torch.float32"),
        (CONTEXT[None], OF_CONTEXT + r"\(1, 2, 3, 6\) torch.float32"),
        (CONTEXT[..., :5], OF_CONTEXT + r"\(2, 3, 5\) torch.float32"),
        (CONTEXT[:1], OF_CONTEXT + r"\(1, 3, 6\) torch.float32"),
        (CONTEXT[:, :0], OF_CONTEXT + r"\(2, 0, 6\) torch.float32"),
        (CONTEXT.long(), OF_CONTEXT + r"\(2, 3, 6\) torch.int64"),
        (CONTEXT.numpy(), OF_CONTEXT + "ndarray"),
        (with_value(CONTEXT, NAN), "must be finite, got NaN"),
        (with_value(CONTEXT, INF), "must be finite, got NaN or infinite values"),
    ],
)
def test_wrong_context(conditional, context, message):
    for take in TAKERS.values():
        with pytest.raises(ValueError, match=f"^`context` {message}"):
            take(conditional, context)


def test_context_where_none_is_configured(plain):
    for take in TAKERS.values():
        with pytest.raises(ValueError, match=UNEXPECTED):
            take(plain, CONTEXT)


def test_labels_of_a_model_without_classes(plain):
    labels = torch.tensor([0, 1])
    for call in (lambda: plain(IMAGES, labels=labels), lambda: plain.sample(2, labels=labels)):
        with pytest.raises(ValueError, match=r"`labels` were given, but `config\.num_classes` is None"):
            call()


@pytest.mark.parametrize(
    "labels, message",
    [
        (None, "are missing: .* in which 3 stands for no label"),
        (torch.tensor([0]), r"must be an int64 tensor of shape \(2,\), got \(1,\) torch.int64"),
        (torch.tensor([0.0, 1.0]), r"must be an int64 tensor of shape \(2,\), got \(2,\) torch.float32"),
        ([0, 1], r"must be an int64 tensor of shape \(2,\), got list"),
        (torch.tensor([0, 4]), r"must lie in \[0, 3\], where 3 stands for no label, got 0 to 4"),
        (torch.tensor([-1, 0]), r"must lie in \[0, 3\], where 3 stands for no label, got -1 to 0"),
    ],
)
def test_wrong_labels(labels, message):
    model = tiny_model(num_classes=3)
    for call in (model, model.jet, model.encode, model.decode, lambda images, labels: model.sample(2, labels=labels)):
        with pytest.raises(ValueError, match=f"^`labels` {message}"):
            call(IMAGES, labels=labels)


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.ones(2, 2), r"must be a boolean tensor of shape \(2, 3\), got \(2, 2\) torch.float32"),
        (torch.ones(2, 3), r"must be a boolean tensor of shape \(2, 3\), got \(2, 3\) torch.float32"),
        ([[True] * 3] * 2, r"must be a boolean tensor of shape \(2, 3\), got list"),
        (torch.tensor([[True, False, False], [False] * 3]), "must keep at least one token"),
    ],
)
def test_wrong_context_mask(conditional, mask, message):
    with pytest.raises(ValueError, match=f"^`context_mask` {message}"):
        conditional.encode(IMAGES, CONTEXT, context_mask=mask)


def test_context_mask_without_a_context(plain):
    with pytest.raises(ValueError, match=r"^`context_mask` was given without a `context`"):
        plain.encode(IMAGES, context_mask=torch.ones(2, 3, dtype=torch.bool))


def test_wrong_guidance(conditional):
    for scale in (-1, NAN, INF, "2", torch.tensor(2.0)):
        with pytest.raises(ValueError, match=r"^`guidance_scale` must be zero or a positive number"):
            conditional.decode(IMAGES, CONTEXT, guidance_scale=scale)


def test_guidance_without_a_context(plain):
    with pytest.raises(ValueError, match="neither classes nor a context"):
        plain.sample(2, guidance_scale=2.0)


@pytest.mark.parametrize(
    "guidance, message",
    [
        ({"guidance": "cubic"}, r"`guidance` must be one of \['linear', 'variance_aware'\], got 'cubic'"),
        ({"guidance_scale": (1, 2, 3)}, r"`guidance_scale` must be one number, or the two .* got \(1, 2, 3\)"),
        ({"guidance_scale": (1, -2)}, "`guidance_scale` must be zero or a positive number, got -2"),
        ({"guidance_scale": None}, "`guidance` and `attention_temperature` need a `guidance_scale`"),
        ({"guidance_scale": None, "guidance": "linear", "attention_temperature": 2}, ".*need a `guidance_scale`"),
        *[
            ({"attention_temperature": v}, f"`attention_temperature` must be a positive number, got {v}")
            for v in (0, -1.0, NAN, INF)
        ],
    ],
)
def test_wrong_choices_of_guidance(conditional, guidance, message):
    guidance = {"guidance_scale": 2.0, "guidance": "variance_aware"} | guidance
    for call in (conditional.decode, lambda images, context, **given: conditional.sample(2, context=context, **given)):
        with pytest.raises(ValueError, match=f"^{message}"):
            call(IMAGES, CONTEXT, **guidance)


def test_attention_temperature_of_a_cnn():
    with pytest.raises(ValueError, match="`attention_temperature` needs the backbone 'vit', got 'cnn'"):
        tiny_model(backbone="cnn", num_groups=2).decode(IMAGES, guidance_scale=2, attention_temperature=2)


def test_denoising_without_noise(plain):
    for call in (lambda: plain.denoise(IMAGES), lambda: plain.sample(2, denoise=True)):
        with pytest.raises(ValueError, match=r"`denoise` needs a model .* but `config.noise_std` is None"):
            call()


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (None, r"is missing: it must be a number or a floating-point tensor \(2,\) from 0.05 to 0.4, the range"),
        *[(v, f"must be .* from 0.05 to 0.4, .*, got {v}") for v in (0.5, 0.01, 0, -0.1, NAN, True)],
        ([0.1, 0.2], r"must be .*, got \[0.1, 0.2\]"),
        (torch.tensor([0.1]), r"must be .*tensor \(2,\) .*, got \(1,\)"),
        (torch.tensor([1, 2]), r"must be .*tensor \(2,\) .*, got \(2,\) torch.int64"),
        (torch.tensor([0.1, 0.5]), "must be .*, got 0.1 to 0.5"),
        (torch.tensor([0.1, NAN]), "must be .*, got nan"),
    ],
)
def test_wrong_noise_levels(in_range, level, message):
    calls = [getattr(in_range, name) for name in ("encode", "decode", "score", "denoise")]
    calls += [in_range.jet, lambda images, noise_std: in_range.add_noise(images, images, noise_std)]
    if level is not None:  # drawn, or the largest
        calls += [in_range, lambda images, noise_std: in_range.sample(2, noise_std=noise_std)]
    for call in calls:
        with pytest.raises(ValueError, match=f"^`noise_std` {message}"):
            call(IMAGES, noise_std=level)


def test_noise_levels_and_steps_that_a_model_does_not_have(plain, in_range):
    one_level = tiny_model(noise_std=0.2, num_coupling_layers=1)
    assert torch.equal(one_level.encode(IMAGES, noise_std=0.2)[0], one_level.encode(IMAGES)[0])
    with pytest.raises(ValueError, match=r"^`noise_std` must be 0.2, the only noise level of this model, got 0.3\.$"):
        one_level.encode(IMAGES, noise_std=0.3)
    with pytest.raises(ValueError, match=r"^`noise_std` was given, but `config.noise_std` is None"):
        plain.encode(IMAGES, noise_std=0.2)
    for model, level in ((plain, "None"), (one_level, "0.2")):
        with pytest.raises(ValueError, match=f"^`denoising_steps` above 1 need .* but `config.noise_std` is {level}"):
            model.sample(2, denoising_steps=2)
    for number in (0, -1, 2.0, True, "2", None):
        message = re.escape(f"`denoising_steps` must be a whole number of at least 1, got {number!r}")
        for call in (in_range.sample, lambda _, **steps: in_range.denoise(IMAGES, noise_std=0.1, **steps)):
            with pytest.raises(ValueError, match=message):
                call(2, denoising_steps=number)
    for steps in ({"denoising_steps": 2}, {"stochastic": True}):
        with pytest.raises(ValueError, match=r"^`denoising_steps` and `stochastic` need `denoise`, got False"):
            in_range.sample(2, denoise=False, **steps)
    for noise in (IMAGES, IMAGES[None].double(), 0):
        with pytest.raises(ValueError, match=r"^`noise` must be a tensor \(denoising_steps - 1, .* \(1, 2, 3, 8, 8\)"):
            in_range.denoise(IMAGES, noise_std=0.1, denoising_steps=2, noise=noise)


# Samples and the distribution


def test_wrong_numbers_of_samples_and_temperatures(plain):
    for number in (0, -1, 2.0, True, "2", None, torch.tensor(2)):
        message = re.escape(f"`num_samples` must be a whole number of at least 1, got {number!r}")
        with pytest.raises(ValueError, match=message):
            plain.sample(number)
    for temperature in (-1, -1e-9, NAN, INF, -INF, "1", None):
        with pytest.raises(ValueError, match=f"`temperature` must be zero or a positive number, got {temperature!r}"):
            plain.sample(2, temperature=temperature)


@pytest.mark.parametrize(
    "images, message",
    [
        (IMAGES.movedim(1, -1), r"`value` must be a tensor of shape \(\*, 3, 8, 8\), got \(2, 8, 8, 3\)"),
        (IMAGES[:, :1], r"`value` must be a tensor of shape \(\*, 3, 8, 8\), got \(2, 1, 8, 8\)"),
        (IMAGES.tolist(), r"`value` must be a tensor of shape \(\*, 3, 8, 8\), got list"),
        (IMAGES[:0], r"`pixel_values` must have shape \(batch_size, 3, 8, 8\), got \(0, 3, 8, 8\)"),
        (BYTES, "`pixel_values` must be torch.float32, got torch.uint8"),
        (IMAGES.double(), "`pixel_values` must be torch.float32, got torch.float64"),
        (with_value(IMAGES, NAN), "`pixel_values` must be finite"),
        (with_value(IMAGES, INF), "`pixel_values` must be finite"),
    ],
)
def test_wrong_images_of_the_distribution(plain, images, message):
    with pytest.raises(ValueError, match=message):
        plain.distribution().log_prob(images)


@pytest.mark.parametrize(
    "context, message",
    [
        (None, "`context` is missing: `config.context_size` is set"),
        (CONTEXT, r"`context` must be a floating-point tensor of shape \(1, sequence_length, 6\), got \(2, 3, 6\)"),
        (CONTEXT[:1, :, :5], r"of shape \(1, sequence_length, 6\), got \(1, 3, 5\)"),
        (CONTEXT[:1].long(), r"floating-point tensor .* got \(1, 3, 6\) torch.int64"),
        (CONTEXT[:1].tolist(), "floating-point tensor .* got list"),
        (with_value(CONTEXT[:1], NAN), "`context` must be finite"),
    ],
)
def test_wrong_context_of_the_distribution(plain, conditional, context, message):
    with pytest.raises(ValueError, match=message):
        conditional.distribution(context)
    if context is not None:
        with pytest.raises(ValueError, match=UNEXPECTED):
            plain.distribution(context)


# Misspelled names


def test_misspelled_arguments_are_named(plain):
    with pytest.raises(TypeError, match="nosie"):
        plain(IMAGES, nosie=torch.zeros_like(IMAGES))
    with pytest.raises(TypeError, match="contxt"):
        plain.jet(IMAGES, contxt=CONTEXT)


def test_fields_that_the_configuration_does_not_have_are_named(caplog):
    logger = logging.getLogger("jet_hf.model.configuration_jet")
    logger.addHandler(caplog.handler)
    try:
        assert JetConfig(hiden_size=64, back_bone="cnn").hidden_size == 512
        assert "JetConfig ignores the unknown fields back_bone, hiden_size" in caplog.text
        caplog.clear()
        JetConfig(output_hidden_states=True, dtype="bfloat16", attn_implementation="eager", num_labels=3)
        assert caplog.text == ""
    finally:
        logger.removeHandler(caplog.handler)
