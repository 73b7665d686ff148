import math

import pytest
import torch
from conftest import random_bytes, random_images, tiny_config, tiny_model
from PIL import Image

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.model.modeling_jet import bits_per_dim, scale_bytes


@torch.no_grad()
def test_outputs_are_those_of_the_formulas():
    model = tiny_model()
    x, noise = random_images(3, model.config), torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    output = model(x, noise=noise)
    latents, log_det = model.encode(x + noise / 127.5)
    dims = 3 * 8 * 8
    normal = torch.distributions.Normal(0.0, 1.0)
    log_prob = normal.log_prob(latents).sum(dim=(1, 2, 3)) + log_det
    bits = -(log_prob - dims * math.log(127.5)) / (dims * math.log(2))
    torch.testing.assert_close(output.bits_per_dim, bits)
    torch.testing.assert_close(output.log_likelihood, -bits * dims * math.log(2))
    torch.testing.assert_close(output.loss, bits.mean())
    assert torch.equal(output.latents, latents) and torch.equal(output.log_det, log_det)


@torch.no_grad()
def test_untrained_model_scores_random_bytes_as_theory_says():
    """A new model is the identity, so its density is N(0, I) at x uniform on [-1, 1 + 1/127.5)."""
    torch.manual_seed(0)
    model = JetForDensityEstimation(tiny_config(image_size=16)).eval()
    top = 1 + 1 / 127.5
    second_moment = (top**3 + 1) / (3 * (top + 1))
    expected = (0.5 * math.log(2 * math.pi) + 0.5 * second_moment + math.log(127.5)) / math.log(2)
    generator = torch.Generator().manual_seed(0)
    bits = model(random_images(512, model.config), generator=generator).bits_per_dim
    assert 8.5 < expected < 8.6
    assert bits.mean().item() == pytest.approx(expected, abs=4 * bits.std().item() / math.sqrt(512))
    assert bits.std() / math.sqrt(512) < 1e-3


@torch.no_grad()
def test_a_model_of_the_uniform_density_would_score_the_bits_of_a_level():
    dims = 12
    for num_levels in (2, 17, 256, 65536):
        width = 2 / (num_levels - 1)
        log_prob = torch.tensor([-dims * math.log(2 + width)])  # uniform over [-1, 1 + width)
        expected = torch.tensor([math.log2(num_levels)])
        torch.testing.assert_close(bits_per_dim(log_prob, dims, num_levels), expected)
    log_prob = torch.tensor([-dims * math.log(256 / 127.5)])
    torch.testing.assert_close(bits_per_dim(log_prob, dims), torch.tensor([8.0]))


@torch.no_grad()
@pytest.mark.parametrize("num_levels", [2, 17, 65536])
def test_images_of_other_levels_are_scored_on_their_grid(num_levels):
    model = tiny_model(num_levels=num_levels)
    levels = random_bytes(3, model.config)
    x, noise = random_images(3, model.config), torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert levels.int().max() == num_levels - 1 or num_levels > 256
    torch.testing.assert_close(x, 2 * levels.float() / (num_levels - 1) - 1)
    output = model(x, noise=noise)
    nats = model.distribution().log_prob(x + noise * 2 / (num_levels - 1))
    bits = -nats / (192 * math.log(2)) + math.log2((num_levels - 1) / 2)
    torch.testing.assert_close(output.bits_per_dim, bits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.log_likelihood, -bits * 192 * math.log(2), rtol=1e-5, atol=1e-4)
    # The probabilities of a new model's two levels, from the normal distribution function.
    torch.manual_seed(0)
    new = JetForDensityEstimation(tiny_config(num_levels=2)).eval()
    images = torch.ones(1, 3, 8, 8).expand(400, -1, -1, -1)
    chances = [torch.special.ndtr(torch.tensor(bound)).item() for bound in (1.0, 3.0)]
    draws = new(images, generator=torch.Generator().manual_seed(0)).bits_per_dim
    expected = (0.5 * math.log(2 * math.pi) + 0.5 * (3**3 - 1) / (3 * 2) - math.log(2)) / math.log(2)
    assert draws.mean().item() == pytest.approx(expected, abs=5 * draws.std().item() / 20)
    assert expected > -math.log2(chances[1] - chances[0]), "an upper bound"


def test_levels_that_contradict_the_data_are_refused():
    model = tiny_model(num_levels=17)
    bytes_ = random_bytes(2, tiny_config())
    for images, message in (
        (bytes_ / 127.5 - 1, "got 8-bit images: reduce them to the model's levels, or set `num_levels` to 256"),
        (random_bytes(2, model.config) / 16, r"got values `u / 16` in \[0, 1\]: scale them"),
        (random_bytes(2, model.config).float(), "got whole numbers from 0 to 16: scale levels by `u / 8 - 1`"),
        (random_images(2, model.config) * 1.5, "which lie in .* differently"),
        (random_images(2, model.config) * 0.9, "between the gray levels"),
    ):
        with pytest.raises(ValueError, match=f"^`pixel_values` must be images of 17 levels `u / 8 - 1`, .*{message}"):
            model(images)
    with pytest.raises(ValueError, match=r"`pixel_values` must be 8-bit images .* between the gray levels"):
        tiny_model()(random_images(2, model.config))
    with pytest.raises(ValueError, match=r"`pixels` must be gray levels from 0 to 16 \(`num_levels` 17\), got 255"):
        scale_bytes(bytes_.clamp(min=255), 17)
    with pytest.raises(ValueError, match=r"of a model with `num_levels` 65536 \(torch.uint16\), got torch.uint8"):
        scale_bytes(bytes_, 65536)
    deep = tiny_model(num_levels=65536)
    for dtype in (torch.float16, torch.bfloat16):
        model(random_images(2, model.config).to(dtype))
        with pytest.raises(ValueError, match=f"must be torch.float32, got {dtype}"):
            deep(random_images(2, deep.config).to(dtype))


@torch.no_grad()
def test_results_repeat_bit_for_bit_with_a_generator():
    model = tiny_model()
    x = random_images(2, model.config)

    def seeded(seed=0):
        return torch.Generator().manual_seed(seed)

    first, second, other = (model(x, generator=seeded(s)).bits_per_dim for s in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    first, second, other = (model.sample(2, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    global_state = torch.get_rng_state()
    model(x, generator=seeded()), model.sample(1, generator=seeded())
    assert torch.equal(torch.get_rng_state(), global_state)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_noise_is_drawn_in_training_and_in_evaluation(training):
    model = tiny_model().train(training)
    x = random_images(2, model.config)
    assert not torch.equal(model(x).bits_per_dim, model(x).bits_per_dim)
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(5))
    with_generator = model(x, generator=torch.Generator().manual_seed(5))
    assert torch.equal(model(x, noise=drawn).bits_per_dim, with_generator.bits_per_dim)


@torch.no_grad()
def test_samples_are_decoded_normal_latents():
    model = tiny_model()
    for temperature in (1.0, 0.5, 0):
        images = model.sample(3, temperature=temperature, generator=torch.Generator().manual_seed(0))
        assert images.shape == (3, 3, 8, 8) and images.dtype == torch.float32
        latents = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(images, model.decode(temperature * latents)[0])


@torch.no_grad()
def test_a_context_changes_scores_and_samples():
    model = tiny_model(context_size=4)
    x = random_images(2, model.config)
    contexts = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    a, b = (model(x, context=c, generator=torch.Generator().manual_seed(0)).bits_per_dim for c in contexts)
    assert not torch.allclose(a, b, atol=1e-4)
    a, b = (model.sample(2, context=c, generator=torch.Generator().manual_seed(0)) for c in contexts)
    assert not torch.allclose(a, b, atol=1e-3)
    latents, _ = model.encode(x, contexts[0])
    torch.testing.assert_close(model.decode(latents, contexts[0])[0], x, atol=1e-5, rtol=0)


def test_distribution_of_torch():
    model = tiny_model()
    distribution = model.distribution()
    assert isinstance(distribution, torch.distributions.Distribution)
    assert distribution.event_shape == (3, 8, 8) and distribution.batch_shape == ()
    torch.manual_seed(0)
    images = distribution.sample((2, 3))
    assert images.shape == (2, 3, 3, 8, 8) and not images.requires_grad
    log_prob = distribution.log_prob(images)
    assert log_prob.shape == (2, 3) and distribution.log_prob(images[0, 0]).shape == ()

    # Consistent with the model's own bits per dimension.
    x, noise = random_images(2, model.config), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bits = model(x, noise=noise).bits_per_dim
    nats = distribution.log_prob(x + noise / 127.5)
    torch.testing.assert_close(bits, -(nats - 192 * math.log(127.5)) / (192 * math.log(2)))

    # Usable in pathwise gradients and in torch's own tools.
    distribution.rsample((2,)).square().sum().backward()
    assert model.jet.couplings[0].conditioner.out_proj.weight.grad.abs().max() > 0
    independent = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3, 8, 8), 1.0), 3)
    with torch.no_grad():
        kl = (distribution.log_prob(images[0]) - independent.log_prob(images[0])).mean()
    assert kl.isfinite()


@torch.no_grad()
def test_distribution_with_a_context():
    model = tiny_model(context_size=4)
    context = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    distribution = model.distribution(context)
    images = distribution.sample((2,))
    expected, log_det = model.encode(images, context.expand(2, -1, -1))
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(distribution.log_prob(images), normal.log_prob(expected).sum((1, 2, 3)) + log_det)


@torch.no_grad()
def test_bytes_of_one_image_do_not_depend_on_its_batch():
    model = tiny_model()
    x, noise = random_bytes(5, model.config) / 127.5 - 1, torch.full((5, 3, 8, 8), 0.25)
    whole = model(x, noise=noise).bits_per_dim
    alone = torch.cat([model(x[i : i + 1], noise=noise[i : i + 1]).bits_per_dim for i in range(5)])
    torch.testing.assert_close(alone, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_have_the_score_of_their_bytes(dtype):
    """Every byte is told apart, so that `.to(model.device, model.dtype)`, as for other models, changes nothing."""
    model = tiny_model(image_size=16, num_channels=1).to(dtype)
    every_byte = torch.arange(256).reshape(1, 1, 16, 16)
    exact = every_byte / 127.5 - 1
    processor = JetImageProcessor(size=16, num_channels=1)
    processed = processor(Image.fromarray(every_byte[0, 0].byte().numpy()), return_tensors="pt")
    narrow = processed.to(model.device, model.dtype).pixel_values
    assert narrow.dtype == dtype and not torch.equal(narrow.float(), exact)
    noise = torch.rand(exact.shape, generator=torch.Generator().manual_seed(0))
    for train in (False, True):
        model.train(train)
        output, expected = model(narrow, noise=noise), model(exact, noise=noise)
        assert output.bits_per_dim.dtype == torch.float32
        for name, value in output.items():
            assert torch.equal(value, expected[name]), name


def test_half_precision_images_have_gradients():
    model = tiny_model()
    images, noise = random_images(2, model.config), torch.full((2, 3, 8, 8), 0.5)
    gradients = []
    for pixel_values in (images, images.bfloat16()):
        pixel_values.requires_grad_()
        model(pixel_values, noise=noise).loss.backward()
        gradients.append(pixel_values.grad)
    assert torch.equal(gradients[0].bfloat16(), gradients[1])
