"""The flow is a bijection, and log_det is the log-determinant of its Jacobian."""

from functools import partial

import pytest
import torch
from conftest import random_bytes, random_images, randomize, tiny_config, tiny_model

from jet_hf import JetForDensityEstimation
from jet_hf.model.configuration_jet import SPATIAL_COUPLINGS
from jet_hf.model.flow_jet import channel_permutation, merge, spatial_permutation, split, split_indices


SPLITS = {"channels": {"coupling_kinds": ["channels"]}} | {
    pattern: {"coupling_kinds": ["spatial"], "spatial_couplings": [pattern]} for pattern in SPATIAL_COUPLINGS
}


def jacobian_model(**fields) -> tuple[JetForDensityEstimation, torch.Tensor | None]:
    fields = {"image_size": 4, "num_channels": 2, "num_coupling_layers": 2, "hidden_size": 8} | fields
    model = tiny_model(std=0.3, **fields).double()
    generator = torch.Generator().manual_seed(1)
    size = model.config.context_size
    return model, None if size is None else torch.randn(1, 3, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", SPLITS)
def test_log_det_is_that_of_the_jacobian(name):
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for context_size in (None, 5):
        model, context = jacobian_model(**SPLITS[name], context_size=context_size)
        for transform in (partial(model.encode, context=context), partial(model.decode, context=context)):
            _, log_det = transform(x)
            jacobian, _ = torch.autograd.functional.jacobian(transform, x)
            sign, expected = torch.linalg.slogdet(jacobian.reshape(32, 32))
            assert sign == 1 and expected.abs() > 0.1
            torch.testing.assert_close(log_det[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SPLITS)
def test_a_coupling_passes_one_half_unchanged_and_moves_all_of_the_other(name):
    model, _ = jacobian_model(**SPLITS[name], num_coupling_layers=1)
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = model.jet.patchify(model.encode(x)[0] != x)[0]
    assert moved.sum() == moved.numel() // 2
    if name == "channels":
        assert (moved == moved[0]).all()  # the same numbers of each patch
    else:
        row, column = torch.arange(2)[:, None], torch.arange(2)
        first = {"checkerboard": (row + column) % 2 == 0, "vstripes": column % 2 == 0, "hstripes": row % 2 == 0}
        passed = first[name.removesuffix("-inv")].expand(2, 2)
        passed = ~passed if name.endswith("-inv") else passed
        assert torch.equal(moved.all(dim=1), ~passed.flatten()) and torch.equal(moved.any(dim=1), ~passed.flatten())


@torch.no_grad()
def test_round_trip_at_64_coupling_layers_with_weights_far_from_zero():
    model = tiny_model(std=0.05, num_coupling_layers=64, image_size=16, hidden_size=32)
    x = random_images(4, model.config)
    latents, log_det = model.encode(x)
    assert (latents - x).abs().max() > 1 and log_det.abs().min() > 10
    reconstruction, inverse_log_det = model.decode(latents)
    assert (reconstruction - x).abs().max() < 1e-4
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-5, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("num_channels", [1, 3])
def test_8_bit_images_come_back_byte_for_byte(num_channels):
    model = tiny_model(num_coupling_layers=32, num_channels=num_channels)
    pixels = random_bytes(8, model.config)
    latents = model(pixels / 127.5 - 1, noise=torch.full(pixels.shape, 0.5)).latents
    assert (latents.abs() > 3).any()
    levels = torch.floor((model.decode(latents)[0] + 1) * 127.5)
    assert torch.equal(levels.to(torch.uint8), pixels)


@torch.no_grad()
@pytest.mark.parametrize("surroundings", ["plain", "autocast", "bfloat16", "medium"])
def test_splits_move_values_bit_exactly(surroundings):
    """A value with all 24 bits of its significand set would not survive bfloat16 or TF32."""
    x = torch.rand(2, 16, 12, generator=torch.Generator().manual_seed(0)) * (1 - 2**-23)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if surroundings == "medium" else precision)
    try:
        for pattern in SPLITS:
            spatial = pattern != "channels"
            permutation = spatial_permutation(pattern, 4, 4) if spatial else channel_permutation(0, 0, 12)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=surroundings == "autocast"):
                places = split_indices(permutation, 16, 12, spatial)
                first, second = split(x, places)
                merged = merge(first, second, places)
            assert first.shape == second.shape == (2, 16, 6)
            halves = torch.cat([first.flatten(), second.flatten()])
            assert torch.equal(halves.sort().values, x.flatten().sort().values)
            assert torch.equal(merged, x)
            model = tiny_model(coupling_kinds=["spatial" if spatial else "channels"], num_coupling_layers=1)
            model = model.to(torch.bfloat16) if surroundings == "bfloat16" else model
            images = random_images(2, model.config)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=surroundings == "autocast"):
                latents, log_det = model.encode(images)
            assert latents.dtype == log_det.dtype == torch.float32
            assert not torch.equal(latents, images) and (latents == images).sum() >= images.numel() // 2
    finally:
        torch.set_float32_matmul_precision(precision)


@torch.no_grad()
@pytest.mark.parametrize("setting", ["autocast", "bfloat16"])
def test_round_trip_with_bfloat16_conditioners(setting):
    """
    The state is float32, so that the inverse sees the same first half up to float32 rounding. In a few images this
    changes a rounding to bfloat16 inside the conditioner.
    """
    errors = []
    for seed in range(12):
        model = randomize(JetForDensityEstimation(tiny_config(num_coupling_layers=8)), 0.1, seed).eval()
        model = model.to(torch.bfloat16) if setting == "bfloat16" else model
        x = random_images(2, model.config, seed)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
            latents, log_det = model.encode(x)
            reconstruction, inverse_log_det = model.decode(latents)
        assert {t.dtype for t in (latents, log_det, reconstruction, inverse_log_det)} == {torch.float32}
        errors.append((reconstruction - x).abs())
    errors = torch.stack(errors)
    assert (errors.flatten(1).amax(dim=1) < 1e-5).sum() >= 9
    assert errors.max() < 0.05


@torch.no_grad()
def test_density_integrates_to_one():
    """Sum the density of a flow over two dimensions on a fine grid."""
    fields = {"image_size": 1, "patch_size": 1, "num_channels": 2, "coupling_kinds": ["channels"]}
    model = tiny_model(std=0.3, num_coupling_layers=4, **fields)
    axis = torch.linspace(-24, 24, 481)
    grid = torch.cartesian_prod(axis, axis).reshape(-1, 2, 1, 1)
    density = torch.cat([model.distribution().log_prob(part).double().exp() for part in grid.split(2**18)])
    assert (density.sum() * (axis[1] - axis[0]).double() ** 2).item() == pytest.approx(1, abs=1e-4)
    at_zero = model.distribution().log_prob(torch.zeros(2, 1, 1))
    assert not torch.isclose(at_zero, torch.log(torch.tensor(1 / (2 * torch.pi))), atol=0.1)  # not the identity


def test_every_parameter_gets_a_gradient_in_both_directions():
    model = tiny_model(context_size=5)
    context = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    for transform in (model.encode, model.decode):
        model.zero_grad()
        output, log_det = transform(random_images(2, model.config), context)
        (output.square().sum() + log_det.sum()).backward()
        for name, parameter in model.named_parameters():
            # The softmax does not depend on the key's bias, which alone has no gradient.
            gradient = parameter.grad.chunk(3)[2] if "qkv_proj.bias" in name else parameter.grad
            assert gradient.abs().max() > 1e-6, name


def test_patches_are_laid_out_as_in_the_original():
    """ "b (h hp) (w wp) c -> b (h w) (hp wp c)": channel fastest, then column, then row of a patch."""
    model = tiny_model(image_size=4, num_channels=3)
    images = torch.arange(48.0).reshape(1, 3, 4, 4)
    expected = [images[0, c, y, x].item() for y in (0, 1) for x in (2, 3) for c in range(3)]
    assert model.jet.patchify(images)[0, 1].tolist() == expected
    assert torch.equal(model.jet.unpatchify(model.jet.patchify(images)), images)


def test_permutations_depend_on_seed_and_layer_only():
    # A hash determines the permutation, so that it is the same on every machine and in every release.
    expected = [4, 2, 6, 0, 7, 5, 1, 3]
    assert channel_permutation(0, 0, 8).tolist() == expected
    assert channel_permutation(0, 1, 8).tolist() != expected != channel_permutation(1, 0, 8).tolist()
    first = tiny_config(permutation_seed=3)
    torch.manual_seed(1)
    a = JetForDensityEstimation(first).state_dict()
    torch.manual_seed(2)
    b = JetForDensityEstimation(first).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a if name.endswith("permutation"))
