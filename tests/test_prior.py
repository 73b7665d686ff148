"""Restoration with a model as the prior, against closed forms: the posterior of an affine flow is normal."""

import math
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_model
from torch import nn

from jet_hf import JetForDensityEstimation
from jet_hf.analysis.prior.operators import SMOOTHNESS, fit_smoothest
from jet_hf.model.flow_jet import JetActNorm, JetInvertibleDense
from jet_hf.prior import JetPrior, LinearOperator, blur, downsample, identity, mask


SIGMA = 0.5


def new_model(**fields) -> JetForDensityEstimation:
    """Return a new model, whose density is N(0, I)."""
    return JetForDensityEstimation(tiny_config(**({"num_coupling_layers": 1, "hidden_size": 8} | fields))).eval()


def affine_model() -> JetForDensityEstimation:
    """Return a model of 8 x 8 gray images whose map is affine: Glow's layers, and conditioners that are constant."""
    model = new_model(num_channels=1, use_actnorm=True, use_invertible_dense=True).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "initialization", None) == "zeros":
                module.bias.normal_(std=0.3)
            elif isinstance(module, JetActNorm | JetInvertibleDense):
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def matrix_of(function, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the matrix of a linear function of images of a shape (1, C, H, W), in float64."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape[1:])
    return (function(basis) - function(torch.zeros(shape, dtype=torch.float64))).flatten(1).T


def noise(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=dtype)


OPERATORS = {
    "mask": mask(torch.arange(64).reshape(8, 8) % 3 > 0),
    "downsample": downsample(2),
    "blur": blur(torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.3, 0.2], [0.0, 0.1, 0.0]])),
    "own": LinearOperator(lambda x: x.flip(-1) + x, lambda y: y.flip(-1) + y),
}


@pytest.mark.parametrize("space", ["image", "latent"])
def test_a_new_model_denoises_as_the_wiener_filter_does(space):
    noisy, sigma = noise(3, 3, 8, 8), torch.tensor([0.1, 0.5, 1.0])
    prior = JetPrior(new_model())
    found = prior.restore(noisy, identity(), sigma, space=space, num_steps=250, step_size=0.25)
    wiener = noisy / (1 + sigma[:, None, None, None] ** 2)
    torch.testing.assert_close(found.images, wiener, rtol=0, atol=1e-4)
    assert found.objective.shape == (251, 3) and found.converged.all()
    # Each image is restored as if it were alone.
    alone = prior.restore(noisy[1:2], identity(), 0.5, space=space, num_steps=250, step_size=0.25)
    torch.testing.assert_close(alone.images, found.images[1:2], rtol=0, atol=1e-5)
    assert not prior.restore(noisy, identity(), sigma, space=space, num_steps=2).converged.any()


@pytest.mark.parametrize("scale", [8, 1000])
def test_the_default_steps_fit_measurements_on_a_larger_scale(scale):
    """As with sums of many pixels, the noise is then large, and images are not."""
    larger = LinearOperator(lambda images: scale * images, lambda measurements: scale * measurements)
    noisy = noise(1, 3, 8, 8)
    found = JetPrior(new_model()).restore(scale * noisy, larger, SIGMA * scale)
    assert found.converged.all()
    torch.testing.assert_close(found.images, noisy / (1 + SIGMA**2), rtol=0, atol=0.01)


def test_the_weight_of_the_prior_scales_its_precision():
    noisy = noise(1, 3, 8, 8)
    images = JetPrior(new_model(), weight=3).denoise(noisy, SIGMA, num_steps=200)
    torch.testing.assert_close(images, noisy / (1 + 3 * SIGMA**2), rtol=0, atol=5e-3)


def test_tweedies_formula_serves_the_noise_levels_of_a_model_and_map_all_others():
    noisy = noise(2, 3, 20, 13)  # of larger images, every pixel is the mean of tiles
    prior = JetPrior(new_model(noise_std=0.6))
    torch.testing.assert_close(prior.denoise(noisy, 0.6), 0.64 * noisy)
    noisy = noise(2, 3, 8, 8)
    torch.testing.assert_close(prior.denoise(noisy, 0.3, num_steps=100), noisy / 1.09, rtol=0, atol=5e-3)
    with pytest.raises(ValueError, match=r"`sigma` must be a noise level of the model .* got 0.3, but .* is 0.6"):
        prior.denoise(noisy, 0.3, method="tweedie")
    model = tiny_model(noise_std=[0.1, 0.4])
    levels = torch.tensor([0.1, 0.25])
    torch.testing.assert_close(JetPrior(model).denoise(noisy, levels), model.denoise(noisy, noise_std=levels))


@pytest.mark.parametrize(
    "name, space", [*((name, "image") for name in OPERATORS), ("mask", "latent"), ("blur", "latent")]
)
def test_restoration_with_an_affine_flow_is_the_mean_of_its_normal_posterior(name, space):
    model, operator = affine_model(), OPERATORS[name]
    measurements = operator.forward(noise(1, 1, 8, 8, dtype=torch.float64))
    mean, _ = normal_posterior(model, operator, measurements)
    found = JetPrior(model).restore(measurements, operator, SIGMA, space=space, num_steps=230, step_size=0.2)
    torch.testing.assert_close(found.images.flatten(), mean, rtol=0, atol=1e-4)


def normal_posterior(model, operator, measurements) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the covariance of the images given measurements, of a model whose map is affine."""
    shape = (1, *model.config.image_shape)
    with torch.no_grad():
        encoder = matrix_of(lambda images: model.encode(images)[0], shape)
        offset = model.encode(torch.zeros(shape, dtype=torch.float64))[0].flatten()
    measured = matrix_of(operator.forward, shape)
    covariance = torch.linalg.inv(encoder.T @ encoder + measured.T @ measured / SIGMA**2)
    return covariance @ (measured.T @ measurements.flatten() / SIGMA**2 - encoder.T @ offset), covariance


def test_langevin_samples_have_the_mean_and_the_covariance_of_a_normal_posterior():
    """The chains are independent, so that the bounds are those of independent draws, with 4.5 standard errors."""
    model, operator, chains = affine_model(), OPERATORS["mask"], 100
    measurements = operator.forward(noise(1, 1, 8, 8, dtype=torch.float64))
    mean, covariance = normal_posterior(model, operator, measurements)
    generator = torch.Generator().manual_seed(0)
    found = JetPrior(model, tile_batch_size=chains).sample_posterior(
        measurements.expand(chains, -1, -1, -1),
        operator,
        SIGMA,
        200,
        step_size=0.3,
        start=mean.view(1, 1, 8, 8).expand(chains, -1, -1, -1),
        num_samples=1,
        generator=generator,
    )
    variance = covariance.diagonal()
    for images in (found.mean, found.samples[0]):
        errors = (images.flatten(1).mean(dim=0) - mean).abs()
        assert (errors < 4.5 * images.flatten(1).std(dim=0) / chains**0.5).all()
    spread = found.samples[0].flatten(1).var(dim=0) / variance  # chi-squared, with a relative error of sqrt(2 / n)
    assert (spread - 1).abs().max() < 4.5 * (2 / chains) ** 0.5
    assert abs(float(spread.mean()) - 1) < 0.06
    # The variance is that within the chains plus that of their means.
    total = (found.std**2).mean(dim=0).flatten() + found.mean.flatten(1).var(dim=0)
    assert (total / variance - 1).abs().max() < 0.2
    assert abs(float((total / variance).mean()) - 1) < 0.03
    assert found.samples.shape == (1, chains, 1, 8, 8)


def test_langevin_steps_are_short_enough_for_measurements_on_a_larger_scale():
    """
    Steps of twice the narrowest scale give samples that are too wide, and velocities that last longer than the chain
    samples that are too narrow: it starts at the mode, without potential energy. Either looked mixed.
    """
    scales = torch.tensor([1.0, 5.0])[:, None, None, None]
    larger = LinearOperator(lambda images: scales * images, lambda measurements: scales * measurements)
    images, sigma = noise(1, 3, 8, 8).expand(2, -1, -1, -1), 0.01
    generator = torch.Generator().manual_seed(0)
    found = JetPrior(new_model()).sample_posterior(
        scales * images, larger, sigma, 200, start=images, generator=generator
    )
    exact = sigma / (scales.flatten() ** 2 + sigma**2).sqrt()
    assert found.mixed.all()
    torch.testing.assert_close(found.std.flatten(1).mean(dim=1), exact, rtol=0.05, atol=0)


def test_langevin_samples_depend_on_the_generator_only():
    prior, noisy = JetPrior(tiny_model()), noise(1, 3, 12, 8)
    options = {"num_steps": 9, "start": noisy, "num_samples": 3}

    def draw(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return prior.sample_posterior(noisy, identity(), SIGMA, generator=generator, **options)

    first, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(first.samples, again.samples) and not torch.equal(first.mean, other.mean)
    assert len(first.samples.unique(dim=0)) == 3
    # By default, the chain starts at the restored image.
    prior, noisy = JetPrior(new_model()), noisy[..., :8, :]
    options["start"] = prior.restore(noisy, identity(), SIGMA).images
    restored = draw(0)
    options["start"] = None
    assert torch.equal(draw(0).samples, restored.samples)


def test_a_chain_tells_whether_it_has_mixed():
    """Under N(0, I) the posterior has the standard deviation `1 / sqrt(1 + 1 / sigma^2)`."""
    prior, noisy = JetPrior(new_model()), noise(8, 3, 8, 8)
    exact, start = (1 + SIGMA**-2) ** -0.5, prior.restore(noisy, identity(), SIGMA).images

    def draw(**options):
        generator = torch.Generator().manual_seed(0)
        return prior.sample_posterior(noisy, identity(), SIGMA, start=start, generator=generator, **options)

    long = draw(num_steps=400, step_size=0.3)
    assert long.mixed.all() and abs(float(long.std.mean()) / exact - 1) < 0.02
    short = draw(num_steps=100, step_size=0.01)
    assert (short.r_hat > 1.5).all() and not short.mixed.any() and float(short.std.mean()) < 0.5 * exact
    assert draw(num_steps=4).r_hat.isnan().all()
    # The statistics of the quarters add up to those of all counted steps.
    few = draw(num_steps=13, num_samples=10)
    torch.testing.assert_close(few.mean, few.samples.mean(dim=0))
    torch.testing.assert_close(few.std, few.samples.std(dim=0))


def test_results_have_no_graph_and_need_none():
    model, measurements = tiny_model(), noise(1, 3, 8, 12)
    prior, operator = JetPrior(model), mask(torch.arange(12) % 3 > 0)
    generator, start = torch.Generator(), torch.zeros(1, 3, 8, 12)
    calls = (
        lambda images: prior.score(images),
        lambda images: prior.denoise(images, SIGMA, num_steps=3),
        lambda images: prior.restore(images, operator, torch.tensor([SIGMA]), num_steps=3).images,
        lambda images: prior.restore(images[..., :8].contiguous(), identity(), SIGMA, "latent", num_steps=3).images,
        lambda images: (
            prior.sample_posterior(images, operator, SIGMA, 3, start=start, generator=generator.manual_seed(0)).mean
        ),
    )
    for call in calls:
        expected = call(measurements)
        of_graph = call(measurements.clone().requires_grad_() * 1)
        with torch.inference_mode():
            inferred = call(measurements.clone())
        assert torch.equal(expected, of_graph) and torch.equal(expected, inferred) and not of_graph.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_measurements_may_be_numbers_of_any_shape():
    weights = noise(3, 8, 8) / noise(3, 8, 8).norm()
    operator = LinearOperator(lambda x: (x * weights).sum((1, 2, 3)), lambda y: y[:, None, None, None] * weights)
    measurements = torch.tensor([1.0, -2.0])
    found = JetPrior(new_model()).restore(measurements, operator, SIGMA, num_steps=200, step_size=0.2).images
    exact = operator.adjoint(measurements / (weights.square().sum() + SIGMA**2))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)


def test_an_image_of_the_models_size_is_one_tile():
    model, images = tiny_model(num_classes=4), noise(5, 3, 8, 8)
    labels = torch.tensor([0, 1, 2, 3, 4])
    prior = JetPrior(model, labels, tile_batch_size=2)
    torch.testing.assert_close(prior.log_prob(images), model_log_prob(model, images, labels))
    torch.testing.assert_close(prior.score(images), model.score(images, labels=labels))
    torch.testing.assert_close(JetPrior(model).score(images), model.score(images, labels=torch.full((5,), 4)))


def model_log_prob(model, images, labels) -> torch.Tensor:
    latents, log_det = model.encode(images, labels=labels)
    return torch.distributions.Normal(0, 1).log_prob(latents).flatten(1).sum(dim=1) + log_det


def test_larger_images_have_the_weighted_densities_of_their_tiles_a_few_at_a_time(monkeypatch):
    model, images = tiny_model(), noise(2, 3, 20, 13).requires_grad_()
    prior = JetPrior(model, tile_batch_size=3)
    alive: list[weakref.ref] = []
    largest = 0
    encode = model.encode

    def counted(tiles, **conditions):
        nonlocal largest
        alive.append(weakref.ref(tiles))
        largest = max(largest, sum(len(tensor) for ref in alive if (tensor := ref()) is not None))
        return encode(tiles, **conditions)

    monkeypatch.setattr(model, "encode", counted)
    score = prior.score(images)
    assert sum(1 for _ in alive) == -(-2 * 4 * 3 // 3)  # 4 rows and 3 columns of tiles in each image
    assert largest == 3
    (gradient,) = torch.autograd.grad(prior.log_prob(images).sum(), images)
    torch.testing.assert_close(score, gradient)
    torch.testing.assert_close(score, JetPrior(model, tile_batch_size=100).score(images))


def test_a_whole_image_under_a_new_model_has_the_closed_form_of_its_tiles():
    """Tiles of N(0, I) give each pixel the precision that its tiles' weights add up to."""
    measurements, operator = noise(1, 3, 10, 7), downsample(2)
    prior = JetPrior(new_model())
    # 2 x 10 and 2 x 7 pixels: starts 0, 4, 8, 12 and 0, 3, 6.
    rows, columns = coverage([0, 4, 8, 12], 20), coverage([0, 3, 6], 14)
    precision = (rows[:, None] * columns).expand(3, 20, 14).flatten()
    assert float(precision.mean()) == pytest.approx(1)
    measured = matrix_of(operator.forward, (1, 3, 20, 14))
    hessian = precision.diag() + measured.T @ measured / SIGMA**2
    exact = torch.linalg.solve(hessian, measured.T @ measurements.double().flatten() / SIGMA**2)
    found = prior.restore(measurements, operator, SIGMA, num_steps=200).images
    torch.testing.assert_close(found.double().flatten(), exact, rtol=0, atol=1e-3)
    # The density has the constant of one density of the whole image.
    zeros = torch.zeros(1, 3, 20, 14)
    assert prior.log_prob(zeros).item() == pytest.approx(-0.5 * math.log(2 * math.pi) * zeros.numel(), rel=1e-5)


def coverage(starts: list[int], length: int) -> torch.Tensor:
    """Return the sum of weights of evenly spaced tiles of 8 pixels for each of the pixels of an axis."""
    distance, total = (length - 8) / (len(starts) - 1), torch.zeros(length, dtype=torch.float64)
    for start in starts:
        is_end = start in (0, length - 8)
        total[start : start + 8] += (1 + distance / 8) / 2 if is_end else distance / 8
    return total


@pytest.mark.parametrize("name", OPERATORS)
def test_restoration_starts_at_the_smoothest_images_that_fit(name):
    operator, shape = OPERATORS[name], (1, 1, 8, 8)
    measurements = operator.forward(noise(*shape, dtype=torch.float64))
    measured = matrix_of(operator.forward, shape)
    differences = torch.cat([matrix_of(lambda x, dim=dim: x.diff(dim=dim), shape) for dim in (2, 3)])
    hessian = measured.T @ measured + SMOOTHNESS * differences.T @ differences
    exact = torch.linalg.solve(hessian, measured.T @ measurements.flatten())
    torch.testing.assert_close(fit_smoothest(measurements, operator).flatten(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_have_exact_adjoints(name):
    operator = OPERATORS[name]
    forward = matrix_of(operator.forward, (1, 2, 8, 8))
    shape = operator.forward(torch.zeros(1, 2, 8, 8)).shape
    torch.testing.assert_close(matrix_of(operator.adjoint, tuple(shape)), forward.T)
    operator.check_adjoint(torch.zeros(shape))
    wrong = LinearOperator(operator.forward, lambda measurements: 1.02 * operator.adjoint(measurements))
    with pytest.raises(ValueError, match=r"`adjoint` must be the adjoint of `forward`, got <A x, y> = \S+ and <x"):
        wrong.check_adjoint(torch.zeros(shape))


HALF = torch.arange(8) < 4
GOOD = {"measurements": torch.zeros(1, 3, 8, 8), "operator": identity(), "sigma": SIGMA}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sigma": -0.1}, "`sigma` must be a positive number or a tensor .1,. of them, got -0.1"),
        ({"sigma": 0}, "`sigma` must be a positive number"),
        ({"sigma": float("nan")}, "`sigma` must be a positive number"),
        ({"sigma": torch.ones(2)}, "`sigma` must be a positive number"),
        ({"sigma": 1e-20}, "`sigma` must be a positive number .*, got 1e-20"),
        (
            {"sigma": 1e-12, "measurements": noise(1, 3, 8, 8)},
            "the square of its gradient must be finite .*: `sigma` may be too small",
        ),
        ({"operator": mask(torch.ones(5, 8).bool())}, r"`kept` must broadcast to images of .*8, 8\), got .* \(5, 8\)"),
        (
            {"operator": LinearOperator(lambda x: x.mul_(HALF), lambda y: y * HALF)},
            "`forward` must not change its argument in place",
        ),
        (
            {"operator": LinearOperator(lambda x: x * HALF, lambda y: y.mul_(HALF))},
            "`adjoint` must not change its argument in place",
        ),
        ({"sigma": torch.tensor(1j)}, "`sigma` must be a positive number"),
        ({"measurements": torch.tensor(0.5)}, "`measurements` must be a tensor .batch_size, ...., got .."),
        (
            {"measurements": torch.zeros(0, 3, 8, 8)},
            "`measurements` must be a tensor .batch_size, ...., got .0, 3, 8, 8.",
        ),
        (
            {"operator": LinearOperator(lambda x: x + 0j, lambda y: y)},
            "`forward` must return a tensor of torch.float32",
        ),
        (
            {"operator": LinearOperator(lambda x: x, lambda y: y.tolist())},
            "`adjoint` must return a tensor .* got list",
        ),
        ({"measurements": torch.full((1, 3, 8, 8), 1e38)}, "images that fit `measurements` must be finite"),
        (
            {"operator": LinearOperator(lambda x: x[:1] + x[1:], lambda y: torch.cat([y, y]))},
            "`measurements` must be those of as many images, 1, got 2",
        ),
        ({"measurements": torch.full((1, 3, 8, 8), float("nan"))}, "`measurements` must be finite"),
        ({"measurements": torch.zeros(1, 3, 8, 8).byte()}, "`measurements` must be a tensor of torch.float32"),
        ({"measurements": torch.zeros(3, 8, 8)}, "must be a tensor .batch_size, 3, height, width., got .3, 8, 8."),
        ({"measurements": torch.zeros(1, 1, 8, 8)}, "must be a tensor .batch_size, 3"),
        ({"measurements": torch.zeros(1, 3, 8, 7)}, "must be at least as large as the model's images, .8, 8., got .8"),
        ({"operator": lambda x: x}, "`operator` must be a LinearOperator, got function"),
        ({"operator": LinearOperator(lambda x: x, lambda y: 2 * y)}, "`adjoint` must be the adjoint"),
        (
            {"operator": LinearOperator(lambda x: x[..., :4], lambda y: y)},
            "`measurements` must have the shape .1, 3, 8, 4. that `forward` gives",
        ),
        ({"space": "pixels"}, "`space` must be one of"),
        ({"measurements": torch.zeros(1, 3, 8, 12), "space": "latent"}, "`space` must be 'image' for images larger"),
        ({"num_steps": 0}, "`num_steps` must be a whole number"),
        ({"step_size": -1}, "`step_size` must be a positive number, got -1"),
        ({"start": torch.zeros(1, 3, 9, 9)}, "`start` must have shape .1, 3, 8, 8., got"),
    ],
)
def test_bad_measurements_are_refused_in_a_sentence(changes, message):
    prior = JetPrior(new_model())
    with pytest.raises(ValueError, match=message):
        prior.restore(**GOOD | changes)


def test_bad_arguments_of_priors_operators_and_samplers_are_refused():
    model = new_model()
    prior, images = JetPrior(model), torch.zeros(1, 3, 8, 8)
    for call, message in [
        (lambda: JetPrior(new_model().train()), "`model` must be in evaluation mode"),
        (lambda: JetPrior(new_model(context_size=4)), "`context_size` must be None for a prior, got 4"),
        (lambda: JetPrior(model, weight=-1), "`weight` must be zero or a positive number"),
        (lambda: JetPrior(model, stride=9), "`stride` must be at most 8, the size of a tile, got 9"),
        (lambda: JetPrior(model, labels=torch.zeros(1).long()), "this model has no classes"),
        (lambda: JetPrior(tiny_model(num_classes=2), labels=1), "`labels` must be an int64 tensor .*, got int"),
        (lambda: JetPrior(tiny_model(num_classes=2), torch.tensor([0, 1])).score(images), "as many as `labels`, 2"),
        (lambda: prior.score(torch.full_like(images, float("inf"))), "`images` must be finite"),
        (lambda: prior.denoise(images, SIGMA, method="wiener"), "`method` must be one of"),
        (lambda: prior.denoise(images, SIGMA, method="tweedie"), "`config.noise_std` is None"),
        (lambda: prior.sample_posterior(**GOOD, num_steps=4, num_samples=4), "`num_samples` must be at most 3"),
        (lambda: prior.sample_posterior(**GOOD, generator=1), "`generator` must be a torch.Generator"),
        (lambda: prior.sample_posterior(**GOOD, step_size=9.0), "`step_size` must be smaller: .* NaN or infinite"),
        (lambda: downsample(0), "`factor` must be a whole number of at least 1"),
        (lambda: mask(images), "`kept` must be a boolean tensor"),
        (lambda: blur(images), "`kernel` must be a floating-point tensor"),
        (lambda: blur(images[0, 0, :0]), r"`kernel` must be a floating-point tensor \(h, w\), got \(0, 8\)"),
        (lambda: blur(torch.full((3, 3), float("nan"))), "`kernel` must be finite"),
        (lambda: JetPrior(model.jet), "`model` must be a JetForDensityEstimation, got JetModel"),
        (lambda: JetPrior(new_model().to("meta")), "`model` must have weights, got one on the device meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


# deepinv


@pytest.fixture
def fresh_adapter(monkeypatch):
    """Let the adapter be imported again."""
    monkeypatch.delitem(sys.modules, "jet_hf.analysis.prior.deepinv_adapter", raising=False)
    monkeypatch.delattr("jet_hf.analysis.prior.deepinv_adapter", raising=False)


@pytest.fixture
def deepinv(monkeypatch, fresh_adapter):
    """
    Return deepinv, or a stand-in for its two base classes (as of 0.5): it needs a torchvision that fits torch.

    `Prior` derives `grad` from `fn`, and algorithms call `fn(x, g_param)`, `grad(x, g_param)` and
    `prox(x, g_param, gamma=...)`. A `Denoiser` is called with images on the scale [0, 1] and a noise level.
    """
    try:
        import deepinv
    except ImportError:
        deepinv = types.ModuleType("deepinv")
        deepinv.optim, deepinv.models = types.ModuleType("deepinv.optim"), types.ModuleType("deepinv.models")

        class Prior(nn.Module):
            def __init__(self):
                super().__init__()
                self.explicit_prior = False

            def forward(self, x, *args, **kwargs):
                return self.fn(x, *args, **kwargs)

        class Denoiser(nn.Module):
            def __init__(self, device="cpu"):
                super().__init__()
                self.to(device)

        deepinv.optim.Prior, deepinv.models.Denoiser = Prior, Denoiser
        for module in (deepinv, deepinv.optim, deepinv.models):
            monkeypatch.setitem(sys.modules, module.__name__, module)
    return deepinv


def test_a_prior_and_a_denoiser_for_deepinv_have_its_scale_and_its_signatures(deepinv):
    from jet_hf.prior import DeepinvDenoiser, DeepinvPrior

    prior = DeepinvPrior(JetPrior(new_model()))
    assert isinstance(prior, deepinv.optim.Prior) and prior.explicit_prior
    images = (noise(2, 3, 8, 8) + 1) / 2
    scaled = torch.distributions.Normal(0.5, 0.5)  # N(0, I) on the scale [0, 1]
    torch.testing.assert_close(prior(images, 0.05), -scaled.log_prob(images).flatten(1).sum(dim=1))
    torch.testing.assert_close(prior.grad(images, 0.05), 4 * (images - 0.5))
    # argmin_u gamma * 4 * (u - 0.5)^2 / 2 + (u - x)^2 / 2
    exact = (images + 0.1 * 4 * 0.5) / (1 + 0.1 * 4)
    torch.testing.assert_close(prior.prox(images, 0.05, gamma=0.1), exact, rtol=0, atol=5e-3)

    denoiser = DeepinvDenoiser(JetPrior(new_model(noise_std=0.6)))
    assert isinstance(denoiser, deepinv.models.Denoiser)
    exact = (0.64 * (2 * images - 1) + 1) / 2
    for sigma in (0.3, torch.tensor(0.3), torch.full((2, 1, 1, 1), 0.3), [0.3], np.full(2, 0.3)):
        torch.testing.assert_close(denoiser(images, sigma), exact)
    with pytest.raises(ValueError, match=r"`sigma` must be a positive number or a tensor \(2,\) of them, got tensor"):
        denoiser(images, torch.full((3,), 0.3))


def test_a_missing_deepinv_is_named(monkeypatch, fresh_adapter):
    monkeypatch.setitem(sys.modules, "deepinv", None)
    with pytest.raises(ImportError, match=r"`DeepinvPrior` needs the extra `deepinv`: .*deepinv"):
        from jet_hf.prior import DeepinvPrior  # noqa: F401
