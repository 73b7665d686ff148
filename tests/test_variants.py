"""Variants of the model in the paper: shared properties of all variants, then those of single variants."""

import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import random_images, randomize, tiny_config, tiny_model
from PIL import Image
from script_runner import run_script
from test_transformers import assert_same_tensors
from train_process import TINY, list_flags, run_to_end, write_images

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.density import bits_per_patch
from jet_hf.analysis.evaluation import evaluate
from jet_hf.data import Batch, BatchSharding, DataSource, ReadOptions, load_pixels, read_pixels, stream_batches
from jet_hf.model import flow_jet
from jet_hf.model.modeling_jet import JetDensityEstimationOutput
from jet_hf.training import Trainer, parse_arguments
from jet_hf.training import train as run_training


GLOW = {"use_actnorm": True, "use_invertible_dense": True}
FLOW = {"dequantization": "flow", "dequantization_num_coupling_layers": 2}
CNN = {"backbone": "cnn", "num_groups": 2}
VARIANTS = {
    "masking": {"coupling_mode": "masking"},
    "cnn": CNN,
    "glow": GLOW,
    "dequantization_flow": FLOW | {"dequantization_hidden_size": 24, "dequantization_num_attention_heads": 3},
    "classes": {"num_classes": 3},
    "context": {"context_size": 5, "num_levels": 17},
    "noise": {"noise_std": 0.2, "image_size": [12, 8]},
    "noise_range": {"noise_std": [0.05, 0.4], "use_actnorm": True},
    "noise_range_context": {"noise_std": [0.05, 0.4], "context_size": 5},
    "everything": CNN | GLOW | FLOW | {"coupling_mode": "masking", "num_classes": 3, "image_size": [8, 12]},
}
# A flow of few layers with every kind of split.
SPLITS = {"coupling_kinds": ["channels", "spatial", "spatial"], "num_coupling_layers": 9}
PROCESSOR = JetImageProcessor(size=8)
variants = pytest.mark.parametrize("name", VARIANTS)


def conditions_of(model: JetForDensityEstimation, batch_size: int) -> dict[str, torch.Tensor]:
    """Return the inputs of a conditional model: labels, some missing, or a context with padding; noise levels."""
    levels = {}
    if model.config.noise_range is not None:
        levels["noise_std"] = torch.linspace(*model.config.noise_range, batch_size, dtype=model.jet.state_dtype)
    if model.config.num_classes is not None:
        return levels | {"labels": torch.arange(batch_size) % (model.config.num_classes + 1)}
    if model.config.context_size is not None:
        shape = (batch_size, 4, model.config.context_size)
        context = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=model.jet.state_dtype)
        mask = torch.arange(4) <= torch.arange(batch_size)[:, None]
        return levels | {"context": context, "context_mask": mask}
    return levels


def variant(name: str, std: float = 0.1, **fields) -> JetForDensityEstimation:
    return tiny_model(std, **(SPLITS | VARIANTS[name] | fields))


def noise_of(images: torch.Tensor) -> torch.Tensor:
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(1), dtype=images.dtype)


@torch.no_grad()
def scores(model: JetForDensityEstimation) -> torch.Tensor:
    images = random_images(4, model.config)
    return score_of(model(images, noise=noise_of(images), **conditions_of(model, 4)))


def score_of(output: JetDensityEstimationOutput) -> torch.Tensor:
    """Return the bits per dimension of images, or the nats per dimension of noisy images."""
    return output.noisy_nats_per_dim if output.bits_per_dim is None else output.bits_per_dim


@variants
@torch.no_grad()
def test_it_inverts(name):
    model = variant(name)
    images = random_images(4, model.config)
    conditions = conditions_of(model, 4)
    latents, log_det = model.encode(images, **conditions)
    assert (latents - images).abs().max() > 0.1
    decoded, inverse_log_det = model.decode(latents, **conditions)
    assert (decoded - images).abs().max() < 1e-4
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-5, atol=1e-3)


@variants
def test_log_det_is_that_of_the_jacobian(name):
    sizes = {"noise": [4, 8], "everything": [8, 4]}
    fields = {"image_size": sizes.get(name, 4), "num_channels": 2, "hidden_size": 16 if name == "everything" else 24}
    model = variant(name, std=0.4, **fields).double()
    images = torch.randn(1, *model.config.image_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    conditions = conditions_of(model, 1)
    guided = [{}]
    if conditions.keys() - {"noise_std"}:
        guided = [{"guidance_scale": 1.5}, {"guidance_scale": (1, 2), "guidance": "variance_aware"}]
    elif model.config.backbone == "vit":
        guided += [{"guidance_scale": 2, "attention_temperature": 0.5, "guidance": "variance_aware"}]
    decoders = [partial(model.decode, **conditions, **guidance) for guidance in guided]
    for transform in (partial(model.encode, **conditions), *decoders):
        _, log_det = transform(images)
        jacobian, _ = torch.autograd.functional.jacobian(transform, images, vectorize=True)
        _, expected = torch.linalg.slogdet(jacobian.reshape(images.numel(), -1))
        assert expected.abs() > 0.1
        torch.testing.assert_close(log_det[0], expected, rtol=1e-8, atol=1e-8)


@variants
@torch.no_grad()
def test_a_new_flow_is_the_identity_and_its_loss_that_of_a_standard_normal(name):
    torch.manual_seed(0)
    model = JetForDensityEstimation(tiny_config(**(SPLITS | VARIANTS[name]))).eval()
    images = random_images(2, model.config)
    conditions = conditions_of(model, 2)
    latents, log_det = model.encode(images, **conditions)
    torch.testing.assert_close(latents, images, rtol=0, atol=1e-6)
    assert log_det.abs().max() < 1e-4
    noise, levels_per_unit = noise_of(images), (model.config.num_levels - 1) / 2
    is_noisy = model.config.noise_std is not None
    std = conditions.get("noise_std", torch.tensor(model.config.noise_std if is_noisy else 1 / levels_per_unit))
    noisy = images + noise * std.view(-1, 1, 1, 1)
    nats = (0.5 * noisy.square() + 0.5 * math.log(2 * math.pi)).mean(dim=(1, 2, 3))
    expected = nats if is_noisy else (nats + math.log(levels_per_unit)) / math.log(2)
    torch.testing.assert_close(score_of(model(images, noise=noise, **conditions)), expected)


@variants
@torch.no_grad()
@pytest.mark.parametrize("setting", ["autocast", "bfloat16"])
def test_bfloat16_conditioners_keep_a_float32_flow(name, setting):
    model = variant(name, std=0.05)
    expected = scores(model)
    model = model.bfloat16() if setting == "bfloat16" else model
    images = random_images(64, model.config)
    conditions = conditions_of(model, 64)
    # A state of zeros would be more sensitive to rounding.
    images = model.add_noise(images, noise_of(images), conditions.get("noise_std"))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
        latents, log_det = model.encode(images, **conditions)
        decoded, _ = model.decode(latents, **conditions)
        found = scores(model)
    assert latents.dtype == log_det.dtype == decoded.dtype == found.dtype == torch.float32
    # In a few images, float32 rounding of the first half changes a rounding to bfloat16 inside the conditioner.
    errors = (decoded - images).abs().amax(dim=(1, 2, 3))
    assert (errors > 1e-5).float().mean() < 0.1 and errors.max() < 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@variants
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model = variant(name).train()
    if model.config.use_actnorm:
        model.jet.initialize_actnorm(random_images(4, model.config), **conditions_of(model, 4))
    images = random_images(4, model.config)
    gradients = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        model.zero_grad()
        model(images, noise=noise_of(images), **conditions_of(model, 4)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    # Gradients of a key's bias are rounding noise, and those of an LU factor are zero in one triangle.
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    assert_same_tensors(*gradients)


@pytest.mark.parametrize(
    ("name", "backend"), [("noise", "eager"), ("noise_range_context", "eager"), ("everything", "aot_eager")]
)
def test_compiled_without_breaks(name, backend):
    fields = {"dequantization_num_coupling_layers": 1} if name == "everything" else {}
    model = variant(name, num_coupling_layers=1, coupling_kinds=["spatial"], **fields)
    images = random_images(2, model.config)
    inputs = {"pixel_values": images, "noise": noise_of(images), **conditions_of(model, 2)}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(score_of(compiled(**inputs)), score_of(model(**inputs)), rtol=1e-5, atol=1e-5)


@variants
def test_eager_and_sdpa_agree(name, tmp_path):
    model = variant(name)
    expected = scores(model)
    model.set_attn_implementation("eager")
    if model.dequantizer is not None:
        assert model.dequantizer.config._attn_implementation == "eager"
    torch.testing.assert_close(scores(model), expected, rtol=1e-5, atol=1e-5)


@variants
@torch.no_grad()
def test_bits_of_patches_add_up(name):
    model = variant(name)
    images = random_images(4, model.config)
    if model.config.noise_std is not None:
        with pytest.raises(ValueError, match="has no bits per dimension of images"):
            bits_per_patch(model, images, noise_of(images))
        return
    bits = bits_per_patch(model, images, noise_of(images), **conditions_of(model, 4))
    total = bits.total.sum(dim=(1, 2)).float() / model.config.num_dims
    torch.testing.assert_close(total, scores(model), rtol=1e-5, atol=1e-5)


@variants
def test_saved_and_loaded_bit_for_bit(name, tmp_path):
    model = variant(name)
    model.save_pretrained(tmp_path)
    again = JetForDensityEstimation.from_pretrained(tmp_path)
    assert_same_tensors(again.state_dict(), model.state_dict())
    assert torch.equal(scores(again), scores(model))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "data", size=12)


def train(images, folder, name, **fields):
    """Train in this process."""
    settings = TINY | {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "sample_steps": 4}
    settings |= VARIANTS[name] | {"dataset_path": images, "output_dir": folder} | fields
    run_training(parse_arguments(list_flags(settings)))


@pytest.mark.parametrize("name", ["masking", "glow", "dequantization_flow", "noise", "noise_range"])
def test_training_and_resuming_end_in_the_same_weights(name, images, tmp_path):
    train(images, tmp_path / "straight", name, random_flip=True)
    shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    train(images, tmp_path / "resumed", name, random_flip=True, resume_from_checkpoint="latest")
    models = [JetForDensityEstimation.from_pretrained(tmp_path / folder) for folder in ("straight", "resumed")]
    assert_same_tensors(models[0].state_dict(), models[1].state_dict())
    lines = (tmp_path / "straight" / "evaluations.jsonl").read_text().splitlines()
    losses = [json.loads(line)["noisy_nats_per_dim" if "noise" in name else "bits_per_dim"] for line in lines]
    assert losses[-1] < losses[0], "it learns"


# Properties of single variants


@pytest.mark.parametrize("pattern", ["checkerboard", "vstripes", "hstripes-inv"])
@torch.no_grad()
def test_masking_reads_outputs_at_the_positions_of_the_second_half(pattern):
    fields = {"coupling_kinds": ["spatial"], "spatial_couplings": [pattern], "num_coupling_layers": 1}
    model = tiny_model(coupling_mode="masking", **fields)
    coupling = model.jet.couplings[0]
    seen = []
    coupling.conditioner.register_forward_hook(lambda module, inputs, outputs: seen.extend([inputs[0], *outputs]))
    images = random_images(2, model.config)
    state = model.jet.patchify(images)
    mapped = model.jet.patchify(model.encode(images)[0])
    tokens, bias, raw_scale = seen
    changed = (mapped != state).all(dim=2)
    assert torch.equal(tokens, torch.where(changed[..., None], 0, state))
    expected = (state + bias) * 2 * torch.sigmoid(raw_scale)
    torch.testing.assert_close(mapped, torch.where(changed[..., None], expected, state))


def test_the_cnn_sees_neighbors_as_neighbors():
    """Each block carries information by one token of the grid, which must be a neighbor in the image."""
    for pattern in ("vstripes", "hstripes", "checkerboard"):
        fields = {"coupling_kinds": ["spatial"], "spatial_couplings": [pattern], "num_coupling_layers": 1}
        model = tiny_model(image_size=16, hidden_size=16, **CNN, **fields)
        for layer in model.modules():  # group norm mixes the whole grid
            if isinstance(layer, torch.nn.GroupNorm):
                layer.forward = lambda x: x
        x = random_images(1, model.config)
        jacobian = torch.autograd.functional.jacobian(
            lambda x, m=model: m.encode(x)[0].abs().sum(dim=(0, 1)), x, vectorize=True
        )
        reach = jacobian.abs().sum(dim=(2, 3)) > 0  # (S, S) outputs by (S, S) inputs
        for row, column in ((7, 6), (2, 13), (8, 8)):
            rows, columns = torch.nonzero(reach[row, column], as_tuple=True)
            assert (rows // 2 - row // 2).abs().max() <= 3 and (columns // 2 - column // 2).abs().max() <= 3


@torch.no_grad()
def test_standardized_convolutions_ignore_scale_and_shift_of_their_filters():
    model = variant("cnn")
    expected = scores(model)
    for module in model.modules():
        if type(module).__name__ == "JetStandardizedConv2d":
            module.weight.mul_(3).add_(0.5)
    torch.testing.assert_close(scores(model), expected, rtol=1e-4, atol=1e-4)


def test_only_the_first_training_batch_initializes_actnorm(tmp_path):
    torch.manual_seed(0)
    model = JetForDensityEstimation(tiny_config(use_actnorm=True, num_coupling_layers=3))
    randomize(torch.nn.ModuleList([coupling.conditioner for coupling in model.jet.couplings]))
    images = random_images(8, model.config)
    model.eval()(images)
    assert not model.jet.actnorm_initialized
    states = []
    for coupling in model.jet.couplings:
        coupling.actnorm.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    model.train()(images, noise=noise_of(images))
    assert model.jet.actnorm_initialized
    for state in states[-3:]:
        numbers = state.flatten(0, 1)
        torch.testing.assert_close(numbers.mean(dim=0), torch.zeros(12), rtol=0, atol=1e-5)
        torch.testing.assert_close(numbers.std(dim=0, correction=0), torch.ones(12), rtol=0, atol=1e-5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model(random_images(8, model.config, seed=5))
    model.save_pretrained(tmp_path)
    loaded = JetForDensityEstimation.from_pretrained(tmp_path).train()
    loaded(random_images(8, model.config, seed=6))
    assert_same_tensors(loaded.state_dict(), expected)


def test_actnorm_leaves_a_constant_alone():
    model = JetForDensityEstimation(tiny_config(use_actnorm=True, num_coupling_layers=2)).train()
    images = random_images(4, model.config)
    images[:, 0] = 1.0
    model.jet.initialize_actnorm(images)
    assert torch.isfinite(model(images, noise=torch.full_like(images, 0.5)).loss)


def test_log_det_of_the_dequantization_noise():
    model = variant("dequantization_flow", image_size=4, num_channels=2, hidden_size=16).double()
    images = random_images(1, model.config).double()
    noise = noise_of(images)
    drawn, log_det = model.dequantizer(images, noise)
    assert drawn.min() > 0 and drawn.max() < 1 and (drawn - noise).abs().max() > 0.01
    jacobian = torch.autograd.functional.jacobian(
        lambda noise: model.dequantizer(images, noise)[0], noise, vectorize=True
    )
    _, expected = torch.linalg.slogdet(jacobian.reshape(32, 32))
    torch.testing.assert_close(log_det[0], expected, rtol=1e-8, atol=1e-8)
    other = model.dequantizer(-images, noise)[0]
    assert (other - drawn).abs().max() > 1e-3, "it depends on the image"


@torch.no_grad()
def test_importance_weights_recover_the_same_likelihood_from_either_noise():
    """Flow and uniform noise bound the likelihood of the same flow, which the mean weight of many draws estimates."""
    sizes = {"image_size": 2, "num_channels": 2, "patch_size": 1, "num_coupling_layers": 2}
    sizes |= dict.fromkeys(("hidden_size", "dequantization_hidden_size"), 8)
    sizes |= dict.fromkeys(("num_attention_heads", "dequantization_num_attention_heads"), 1)
    model = variant("dequantization_flow", std=0.06, **sizes).double()
    images = random_images(1, model.config).double().expand(50_000, -1, -1, -1)
    noise = noise_of(images)
    by_flow = model(images, noise=noise).log_likelihood
    model.dequantizer = None
    by_uniform = model(images, noise=noise).log_likelihood
    assert (by_flow - by_uniform).mean().abs() > 0.1, "the bounds themselves differ"
    weights = (by_flow - by_uniform.mean()).exp(), (by_uniform - by_uniform.mean()).exp()
    errors = [weight.std() / len(weight) ** 0.5 for weight in weights]
    assert max(errors) < 0.005
    assert (weights[0].mean() - weights[1].mean()).abs() < 4 * max(errors)


@torch.no_grad()
def test_samples_do_not_depend_on_the_dequantization_flow():
    model = variant("dequantization_flow")
    generator = torch.Generator()
    expected = model.sample(2, generator=generator.manual_seed(0))
    model.dequantizer = None
    assert torch.equal(model.sample(2, generator=generator.manual_seed(0)), expected)


@torch.no_grad()
def test_padding_of_the_context_changes_nothing():
    model = variant("context")
    images = random_images(2, model.config)
    context = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    expected, _ = model.encode(images, context)
    padded = torch.cat([context, torch.full((2, 4, 5), 100.0)], dim=1)
    mask = torch.arange(7).expand(2, 7) < 3
    for kind in (mask, mask.long()):
        torch.testing.assert_close(model.encode(images, padded, context_mask=kind)[0], expected)
    assert (model.encode(images, padded)[0] - expected).abs().max() > 0.01
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(model.encode(images, padded, context_mask=mask)[0], expected)


@torch.no_grad()
def test_guidance_extrapolates_from_no_label_to_the_label():
    model = variant("classes")
    latents = random_images(2, model.config)
    labels, none = torch.tensor([0, 2]), torch.tensor([3, 3])
    guided = {scale: model.decode(latents, labels=labels, guidance_scale=scale)[0] for scale in (0, 0.5, 1, 3)}
    torch.testing.assert_close(guided[1], model.decode(latents, labels=labels)[0])
    torch.testing.assert_close(guided[0], model.decode(latents, labels=none)[0])
    assert (guided[0] - guided[1]).abs().max() > 0.01
    generator = torch.Generator()
    samples = [
        model.sample(2, generator=generator.manual_seed(0), labels=labels, guidance_scale=scale) for scale in (None, 3)
    ]
    assert (samples[0] - samples[1]).abs().max() > 0.01


@torch.no_grad()
def test_variance_aware_guidance_divides_normal_densities():
    """Each coupling decodes `N(-bias, 1 / scale ** 2)`; the guided density is `p ** (1 + w) / unguided ** w`."""
    model = variant("classes", std=0.3, num_coupling_layers=1, coupling_kinds=["channels"])
    coupling, labels = model.jet.couplings[0], torch.tensor([0, 2])
    predicted = []
    coupling.conditioner.register_forward_hook(lambda module, inputs, outputs: predicted.append(outputs))
    latents = random_images(2, model.config)

    def decoded(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        predicted.clear()
        images, _ = model.decode(latents, labels=labels, guidance_scale=scale, guidance="variance_aware")
        return (
            flow_jet.split(model.jet.patchify(values), coupling.split_indices())[1] for values in (images, latents)
        )

    for weight in (-1.0, 0.0, 0.7, 3.0):
        given, standard = decoded(1 + weight)
        (mean, std), (other_mean, other_std) = (
            (-bias.double(), 1 / (2 * torch.sigmoid(raw.double()))) for bias, raw in predicted
        )
        other_std = torch.maximum(other_std, std)
        precision = (1 + weight) / std**2 - weight / other_std**2
        expected_mean = ((1 + weight) * mean / std**2 - weight * other_mean / other_std**2) / precision
        torch.testing.assert_close(given.double(), expected_mean + standard * precision**-0.5, rtol=1e-5, atol=1e-5)
        if weight >= 0:
            assert (precision**-0.5 <= std * (1 + 1e-9)).all(), "it never widens"
            assert weight == 0 or ((precision**-0.5 < 0.99 * std).any() and (other_std == std).any())


@torch.no_grad()
def test_guidance_is_annealed_over_the_depth():
    model = variant("classes", num_coupling_layers=3)
    seen = []
    for coupling in model.jet.couplings:
        coupling.register_forward_pre_hook(lambda module, inputs: seen.append((module.layer_index, inputs[4].scale)))
    latents, labels = random_images(2, model.config), torch.tensor([0, 2])
    model.decode(latents, labels=labels, guidance_scale=(1, 2))
    assert seen == [(2, 1.0), (1, 1.5), (0, 2.0)], "from the layer next to the latents to the one next to the image"
    same = [model.decode(latents, labels=labels, guidance_scale=scale)[0] for scale in (1.5, (1.5, 1.5), [1.5])]
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])


@torch.no_grad()
def test_attention_temperature_guides_a_model_without_labels():
    model = tiny_model(num_coupling_layers=3)
    latents = random_images(2, model.config)
    plain, _ = model.decode(latents)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        guided = {
            (scale, temperature): model.decode(latents, guidance_scale=scale, attention_temperature=temperature)[0]
            for scale, temperature in ((1, 0.5), (2, 0.5), (0, 0.5), (2, 1.0))
        }
        torch.testing.assert_close(guided[1, 0.5], plain)
        torch.testing.assert_close(guided[2, 1.0], plain)
        assert (guided[2, 0.5] - plain).abs().max() > 1e-3
        # The unguided prediction is that of a model with sharper attention.
        for module in model.modules():
            if hasattr(module, "scaling"):
                module.scaling *= 2
        torch.testing.assert_close(model.decode(latents)[0], guided[0, 0.5])
        for module in model.modules():
            if hasattr(module, "scaling"):
                module.scaling /= 2


@torch.no_grad()
def test_the_distribution_of_a_class():
    model = variant("classes")
    distribution = model.distribution(labels=torch.tensor([1]))
    images = distribution.sample((3,))
    latents, log_det = model.encode(images, labels=torch.full((3,), 1))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(latents).sum(dim=(1, 2, 3)) + log_det
    torch.testing.assert_close(distribution.log_prob(images), expected)


# Classes, from the data set to the samples


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Write an image folder of three classes, each of one color."""
    folder = tmp_path_factory.mktemp("classes") / "data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 3)):
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(60, size=(12, 12, 3)).astype(np.uint8)
                pixels[..., channel] += 180
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


CONDITIONAL = {"max_steps": 100, "save_steps": 80, "eval_steps": 0, "sample_steps": 100}


@pytest.fixture(scope="module")
def conditional(classes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional") / "run"
    train(classes, folder, "classes", num_classes=3, **CONDITIONAL)
    return folder


def test_a_class_conditional_model_learns_its_classes_and_resumes(classes, conditional, tmp_path):
    model = JetForDensityEstimation.from_pretrained(conditional).eval()
    processor = JetImageProcessor.from_pretrained(conditional)
    source = DataSource(path=str(classes))
    pixels = load_pixels(source, "validation", processor, ReadOptions(num_classes=3))
    names = pixels.dataset.features
    assert set(names) == {"pixels", "label"} and len(set(pixels.dataset["label"])) == 3
    images = read_pixels(pixels.dataset) / 127.5 - 1
    # Classes are numbered in alphabetical order.
    color = torch.tensor([2, 1, 0])[torch.tensor(pixels.dataset["label"])]
    assert torch.equal(images.mean(dim=(2, 3)).argmax(dim=1), color)
    with torch.no_grad():
        scored = [model(images, labels=torch.full((9,), c), noise=noise_of(images)).bits_per_dim for c in range(4)]
    assert torch.equal(torch.stack(scored[:3]).argmin(dim=0), torch.tensor(pixels.dataset["label"]))
    assert scored[3].mean() > evaluate(model, pixels.dataset).mean + 0.02, "the class tells something"
    shutil.copytree(conditional / "checkpoint-80", tmp_path / "run" / "checkpoint-80")
    train(classes, tmp_path / "run", "classes", num_classes=3, resume_from_checkpoint="latest", **CONDITIONAL)
    resumed = JetForDensityEstimation.from_pretrained(tmp_path / "run")
    assert_same_tensors(resumed.state_dict(), model.state_dict())


def test_samples_of_a_class(conditional, tmp_path, capsys):
    command = ["sample.py", "--model", conditional, "--num_images", 6, "--output_dir"]
    for name, flags in {"blue": ["--label", 0, "--guidance_scale", 1.5], "turns": []}.items():
        assert run_script(*command, tmp_path / name, *flags) == 0
    found = {
        name: [int(np.asarray(Image.open(path)).mean(axis=(0, 1)).argmax()) for path in sorted(folder.glob("0*.png"))]
        for name, folder in (("blue", tmp_path / "blue"), ("turns", tmp_path / "turns"))
    }
    assert found == {"blue": [2] * 6, "turns": [2, 1, 0, 2, 1, 0]}
    assert run_script(*command, tmp_path / "no", "--label", 3) == 1
    assert capsys.readouterr().err.endswith("error: `label` must be a class of the model, which has 3, got 3.\n")


def test_everything_at_once_trains_from_a_stream(classes, tmp_path):
    train(classes, tmp_path / "run", "everything", streaming=True, eval_steps=0, learning_rate=1e-3)
    assert JetForDensityEstimation.from_pretrained(tmp_path / "run").jet.actnorm_initialized
    streamed = stream_batches(
        DataSource(path=str(classes)), "train", PROCESSOR, ReadOptions(num_classes=3), BatchSharding(24), range(1)
    )
    (batch,) = streamed
    assert torch.equal(batch.pixels.float().mean(dim=(2, 3)).argmax(dim=1), 2 - batch.labels)


def test_classes_that_do_not_fit_are_refused(classes, images, tmp_path):
    with pytest.raises(ValueError, match=r"must lie from 0 to below `num_classes` 2, got 0 to 2"):
        train(classes, tmp_path / "run", "classes", num_classes=2)
    with pytest.raises(ValueError, match=r"expected one column of classes, got none among \['image'\]"):
        train(images, tmp_path / "run", "classes")
    with pytest.raises(ValueError, match=r"must lie from 0 to below `num_classes` 2, got 2 to 2"):
        options, sharding = ReadOptions(num_classes=2), BatchSharding(24)
        list(stream_batches(DataSource(path=str(classes)), "train", PROCESSOR, options, sharding, range(1)))
    with pytest.raises(ValueError, match=r"`context_size` must be None, .* got 5"):
        train(images, tmp_path / "run", "context")


def test_labels_are_dropped_for_whole_steps(classes):
    model = JetForDensityEstimation(tiny_config(num_classes=3, num_coupling_layers=1))
    seen = []
    model.jet.couplings[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    trainer = Trainer(model, 40, label_dropout=0.5)
    for step in range(40):
        pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        trainer.step([Batch(pixels, torch.arange(4) + step, torch.tensor([0, 1, 2, 0]))])
    empty = torch.stack([(context == 0).flatten(1).all(dim=1) for context in seen])
    assert (empty.all(dim=1) | ~empty.any(dim=1)).all()
    assert 8 < empty.all(dim=1).sum() < 32


def test_everything_at_once_does_not_depend_on_processes_and_accumulation(classes, tmp_path):
    """The first batch of activation normalization, noise, flips and label dropout are the same in two processes."""
    fields = TINY | VARIANTS["everything"] | {"learning_rate": 1e-3, "sample_steps": 0, "random_flip": True}
    train(classes, tmp_path / "1", "everything", **fields)
    fields |= {"dataset_path": classes, "output_dir": tmp_path / "2", "gradient_accumulation_steps": 2}
    run_to_end(tmp_path, num_processes=2, **fields)
    losses = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        lines = [*(folder / "metrics.jsonl").open(), *(folder / "evaluations.jsonl").open()]
        losses.append([row.get("loss", row.get("bits_per_dim")) for row in map(json.loads, lines)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][-1] < losses[0][0]


def test_more_draws_tighten_the_bound_of_a_dequantization_flow(images):
    model = variant("dequantization_flow", std=0.05)
    pixels = load_pixels(DataSource(path=str(images)), "validation", PROCESSOR)
    bounds = [evaluate(model, pixels.dataset, num_noise_samples=number).mean for number in (1, 16)]
    assert bounds[1] < bounds[0] - 1e-3
