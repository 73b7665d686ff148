"""The model under transforms of torch.func, tracing, export and quantization."""

import copy
import io

import onnxruntime
import pytest
import torch
from conftest import random_images, tiny_model
from torch.func import functional_call, grad, jacrev, jvp, vmap


VARIANTS = {
    "plain": {},
    "context": {"context_size": 6},
    "classes": {"num_classes": 3},
    "cnn": {"backbone": "cnn", "num_groups": 2},
    "masking": {"coupling_mode": "masking", "use_invertible_dense": True},
    "dequantization": {"dequantization": "flow", "dequantization_num_coupling_layers": 2},
    "noise": {"noise_std": 0.2, "num_levels": 17},
    "noise_range": {"noise_std": [0.05, 0.4], "num_classes": 3},
}


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return tiny_model(num_coupling_layers=3, coupling_kinds=["channels", "spatial"], **VARIANTS[request.param])


def inputs_of(model, batch_size: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return images, and their noise, labels and context."""
    generator = torch.Generator().manual_seed(1)
    images = random_images(batch_size, model.config)
    others = {"noise": torch.rand(images.shape, generator=generator)}
    if model.config.noise_range is not None:
        others["noise_std"] = torch.linspace(*model.config.noise_range, batch_size)
    if model.config.num_classes is not None:
        others["labels"] = torch.arange(batch_size) % (model.config.num_classes + 1)
    if model.config.context_size is not None:
        others["context"] = torch.randn(batch_size, 2, model.config.context_size, generator=generator)
    return images, others


def of_one(others: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs of a single image as a batch of one."""
    return {name: value[None] for name, value in others.items()}


@pytest.mark.parametrize("training", [False, True])
def test_per_sample_gradients(model, training):
    model = copy.deepcopy(model).train(training)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    images, others = inputs_of(model)

    def loss(parameters, image, others):
        return functional_call(model, (parameters, buffers), (image[None],), of_one(others)).loss

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, others)
    for i in range(len(images)):
        model.zero_grad()
        loss(parameters, images[i], {name: value[i] for name, value in others.items()}).backward()
        for name, parameter in model.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[name][i], expected, rtol=1e-4, atol=1e-5)


def test_scores_of_images_in_a_map(model):
    images, others = inputs_of(model)
    del others["noise"]
    scores = vmap(lambda image, others: model.score(image[None], **of_one(others))[0])(images, others)
    torch.testing.assert_close(scores, model.score(images, **others), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_jacobian_and_maps_over_samples(model, training):
    model = copy.deepcopy(model).train(training)
    images, others = inputs_of(model)
    del others["noise"]
    encoded = vmap(lambda image, others: model.encode(image[None], **of_one(others))[0][0])(images, others)
    torch.testing.assert_close(encoded, model.encode(images, **others)[0], rtol=1e-5, atol=1e-5)
    decoded = vmap(lambda latent, others: model.decode(latent[None], **of_one(others))[0][0])(encoded, others)
    torch.testing.assert_close(decoded, images, rtol=0, atol=1e-5)
    first = {name: value[:1] for name, value in others.items()}
    jacobian = jacrev(lambda image: model.encode(image[None], **first)[0].flatten())(images[0]).flatten(1)
    log_det = model.encode(images[:1], **first)[1]
    torch.testing.assert_close(torch.linalg.slogdet(jacobian.double())[1].float()[None], log_det, rtol=1e-4, atol=1e-4)


def test_forward_mode_and_second_derivatives_with_eager_attention():
    model = tiny_model(num_coupling_layers=2, coupling_kinds=["channels", "spatial"], attn_implementation="eager")
    model, image = model.double(), inputs_of(model)[0][0].double()

    def log_prob(image):
        return model.distribution().log_prob(image)

    tangent = torch.randn(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient = jacrev(log_prob)(image)
    _, slope = jvp(log_prob, (image,), (tangent,))
    torch.testing.assert_close(slope, (gradient * tangent).sum())
    _, curvature = jvp(jacrev(log_prob), (image,), (tangent,))
    step = 1e-5
    differences = (jacrev(log_prob)(image + step * tangent) - jacrev(log_prob)(image - step * tangent)) / (2 * step)
    torch.testing.assert_close(curvature, differences, rtol=1e-5, atol=1e-6)


def test_activation_normalization_is_set_before_transforms():
    model = tiny_model(num_coupling_layers=2, use_actnorm=True).train()
    (images, others), (parameters, buffers) = (
        inputs_of(model),
        (dict(model.named_parameters()), dict(model.named_buffers())),
    )

    def loss(parameters, image, others):
        return functional_call(model, (parameters, buffers), (image[None],), of_one(others)).loss

    with pytest.raises(RuntimeError, match="call `initialize_actnorm` before"):
        vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, others)
    with pytest.raises(ValueError, match=r"`pixel_values` must be torch.float32, got torch.uint8"):
        model.jet.initialize_actnorm(images.byte())
    model.jet.initialize_actnorm(images)
    vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, others)
    with pytest.raises(ValueError, match=r"`config.use_actnorm` is False"):
        tiny_model().jet.initialize_actnorm(images)


@torch.no_grad()
def test_hooks_see_the_same_with_gradients_and_without():
    model, seen = tiny_model(num_coupling_layers=1), []
    mlp = model.jet.couplings[0].conditioner.layers[0].mlp
    mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            model.encode(random_images(2, model.config))
    torch.testing.assert_close(*seen)


def test_bad_values_are_refused_inside_a_map():
    model = tiny_model(num_coupling_layers=2, num_classes=3)
    images, others = inputs_of(model)

    def score(image, others):
        return model(image[None], **of_one(others)).loss

    for message, changed_images, changed in (
        ("between the gray levels", images + 0.001, {}),
        ("must be finite", torch.cat([images[:2], torch.full_like(images[:1], torch.nan)]), {}),
        (r"`noise` must lie in \[0, 1\)", images, {"noise": others["noise"] + 1}),
        (r"`labels` must lie in \[0, 3\]", images, {"labels": others["labels"] + 3}),
    ):
        with pytest.raises(ValueError, match=message):
            vmap(score)(changed_images, others | changed)


class Score(torch.nn.Module):
    """Bits per dimension of 8-bit images with given noise, as a module of two tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values, noise=noise).bits_per_dim


def trace(score, arguments):
    return torch.jit.trace(score, arguments)


def export(score, arguments):
    return torch.export.export(score, arguments).module()


def to_onnx(score, arguments):
    names, file = ["pixel_values", "noise"], io.BytesIO()
    torch.onnx.export(score, arguments, file, input_names=names, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    return lambda *tensors: torch.from_numpy(
        session.run(None, dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True)))[0]
    )


EXPORTS = {
    "jit.trace": trace,
    "export": export,
    "onnx, TorchScript": to_onnx,  # tests/test_integrations.py exports by dynamo
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("kind", "training"), [*[(kind, False) for kind in EXPORTS], ("jit.trace", True)])
def test_exports_have_the_scores_of_the_model(kind, training):
    model = tiny_model(num_coupling_layers=2)
    images, noise = random_images(2, model.config), torch.full((2, 3, 8, 8), 0.5)
    others = random_images(2, model.config, seed=5)
    with torch.no_grad():
        expected = model(others, noise=noise).bits_per_dim
    exported = EXPORTS[kind](Score(model).train(training), (images, noise))
    with torch.no_grad():
        torch.testing.assert_close(exported(others, noise), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@torch.no_grad()
def test_quantized_linear_layers_give_nearly_the_same_scores():
    model = tiny_model(num_coupling_layers=3, context_size=6)
    images, others = inputs_of(model)
    expected = model(images, **others).bits_per_dim
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    assert not any(isinstance(module, torch.nn.Linear) for module in quantized.modules())
    scores = quantized(images, **others).bits_per_dim
    assert not torch.equal(scores, expected)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0.02)


def test_gradients_of_gradients_in_training():
    """The recomputed activation is differentiated twice, as a loss on scores asks for."""
    model = tiny_model(num_coupling_layers=2, attn_implementation="eager").double()
    images = random_images(2, model.config).double()

    def loss_gradients() -> list[torch.Tensor]:
        x = images.clone().requires_grad_()
        (score,) = torch.autograd.grad(model.distribution().log_prob(x).sum(), x, create_graph=True)
        return torch.autograd.grad(score.square().mean(), list(model.parameters()), allow_unused=True)

    expected = loss_gradients()
    model.train()
    for given, wanted in zip(loss_gradients(), expected, strict=True):
        torch.testing.assert_close(given, wanted)
    assert sum(gradient is not None for gradient in expected) > len(expected) // 2


@pytest.mark.parametrize("record", [torch.fx.symbolic_trace, torch.jit.script])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_recorders_that_cannot_follow_the_model_refuse(record):
    with pytest.raises((ValueError, OSError, RuntimeError, AssertionError)):
        record(Score(tiny_model(num_coupling_layers=2)))
