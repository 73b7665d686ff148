"""Bits patch by patch, against the model's own scores."""

import math

import pytest
import torch
from conftest import random_images, tiny_model

from jet_hf.analysis.density import bits_per_patch


FIELDS = [{}, {"coupling_kinds": ["spatial"]}, {"coupling_kinds": ["channels"], "num_channels": 4, "patch_size": 4}]
FIELDS[1] |= {"image_size": (8, 4)}


@pytest.mark.parametrize("fields", FIELDS, ids=["mixed", "spatial", "channels"])
@torch.no_grad()
def test_the_patches_add_up_to_the_score_and_each_term_to_its_own(fields):
    model = tiny_model(**fields)
    pixel_values = random_images(3, model.config)
    noise = torch.rand(pixel_values.shape, generator=torch.Generator().manual_seed(0))
    bits = bits_per_patch(model, pixel_values, noise)
    output = model(pixel_values, noise=noise)
    num_dims = model.config.num_dims
    assert bits.latent.shape == bits.log_det.shape == (3, *model.config.grid_shape)
    torch.testing.assert_close(bits.total.sum((1, 2)) / num_dims, output.bits_per_dim.double(), rtol=1e-6, atol=0)
    volume = -(output.log_det.double() - num_dims * math.log(127.5)) / math.log(2)
    torch.testing.assert_close(bits.log_det.sum((1, 2)), volume, rtol=1e-6, atol=0)
    # The latents of a patch lie where the patch does.
    p = model.config.patch_size
    squares = output.latents.double().square().unfold(2, p, p).unfold(3, p, p).sum((1, 4, 5))
    expected = (squares / 2 + model.config.patch_dim / 2 * math.log(2 * math.pi)) / math.log(2)
    torch.testing.assert_close(bits.latent, expected, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def test_a_patch_s_log_determinant_is_at_its_own_place():
    """One spatial layer scales only the patches of its second half: elsewhere a gray level keeps its volume."""
    model = tiny_model(num_coupling_layers=1, coupling_kinds=["spatial"], spatial_couplings=["vstripes"])
    pixel_values = random_images(2, model.config)
    bits = bits_per_patch(model, pixel_values, torch.zeros_like(pixel_values))
    untouched = torch.full((), model.config.patch_dim * math.log2(127.5), dtype=torch.float64)
    torch.testing.assert_close(bits.log_det[:, :, ::2], untouched.expand(2, 4, 2))
    assert ((bits.log_det[:, :, 1::2] - untouched).abs() > 1e-3).all()


def test_wrong_images_and_noise_are_refused(model):
    pixel_values = random_images(1, model.config)
    with pytest.raises(ValueError, match="`pixel_values` must have shape"):
        bits_per_patch(model, pixel_values[0], torch.zeros_like(pixel_values))
    with pytest.raises(ValueError, match=r"`noise` must lie in \[0, 1\)"):
        bits_per_patch(model, pixel_values, torch.ones_like(pixel_values))
