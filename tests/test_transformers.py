"""Jet as a transformers model: saving and loading, attention, checkpointing and compilation."""

import json
import logging
import math
import re
import shutil
from contextlib import contextmanager

import psutil
import pytest
import torch
from conftest import random_images, tiny_config, tiny_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AutoConfig, AutoModel

# Some releases hide the short path to this class where torchvision is missing, which it does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from jet_hf import JetConfig, JetForDensityEstimation, JetImageProcessor, JetModel
from jet_hf.model.conditioners_jet import eager_attention_forward
from jet_hf.model.flow_jet import JetCoupling, merge, split


CONTEXT = {"context_size": 6}


def couplings(model: torch.nn.Module) -> list[JetCoupling]:
    return [module for module in model.modules() if isinstance(module, JetCoupling)]


def trained_model(**fields) -> JetForDensityEstimation:
    """Build a model with weights and permutations that no seed gives, so that new draws are noticed."""
    model = tiny_model(**fields)
    for coupling in couplings(model):
        coupling.permutation.copy_(coupling.permutation.flip(0))
        assert not torch.equal(coupling.permutation, coupling.make_permutation())
    return model


def inputs_of(config: JetConfig, batch_size: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixel_values = random_images(batch_size, config)
    inputs = {"pixel_values": pixel_values, "noise": torch.rand(pixel_values.shape, generator=generator)}
    if config.context_size is not None:
        inputs["context"] = torch.randn(batch_size, 3, config.context_size, generator=generator)
    return inputs


def latents_like(images: torch.Tensor) -> torch.Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(2))


def assert_same_tensors(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype, name
        assert torch.equal(given[name].cpu(), tensor), name


@contextmanager
def float32_flow(model: torch.nn.Module):
    """
    Check in every coupling that a bfloat16 conditioner leaves parameters, state and log-determinant in float32, and
    that splits, merges and the unchanged half are exact. Yield the list of the couplings that ran.
    """
    calls = []

    def check(coupling, arguments, output):
        states = (arguments[0], output[0])
        assert {tensor.dtype for tensor in (*states, output[1])} == {torch.float32}
        halves = [split(state, coupling.split_indices()) for state in states]
        assert torch.equal(halves[0][0], halves[1][0])
        for state, (first, second) in zip(states, halves, strict=True):
            assert torch.equal(merge(first, second, coupling.split_indices()), state)
        calls.append(coupling)

    def check_conditioner(conditioner, arguments, output):
        assert {tensor.dtype for tensor in output} == {torch.float32}

    def check_projection(projection, arguments, output):
        assert output.dtype == torch.bfloat16

    hooks = []
    for coupling in couplings(model):
        hooks.append(coupling.register_forward_hook(check))
        hooks.append(coupling.conditioner.register_forward_hook(check_conditioner))
        hooks.append(coupling.conditioner.out_proj.register_forward_hook(check_projection))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A density model with a context, and its folder."""
    model = trained_model(**CONTEXT)
    folder = tmp_path_factory.mktemp("saved") / "density"
    model.save_pretrained(folder)
    JetImageProcessor(size=model.config.image_size).save_pretrained(folder)
    return model, folder


# Auto classes


@pytest.mark.parametrize("bare", [True, False])
def test_auto_classes(saved, tmp_path, bare):
    model, folder = saved
    if bare:
        model, folder = model.jet, tmp_path
        model.save_pretrained(folder)
        JetImageProcessor(size=8).save_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is JetConfig
    assert [getattr(config, name) for name in JetConfig.__annotations__] == [
        getattr(model.config, name) for name in JetConfig.__annotations__
    ]
    for arguments in ({}, {"config": config}, {"trust_remote_code": True}, {"dtype": torch.float32}):
        loaded, report = AutoModel.from_pretrained(folder, output_loading_info=True, **arguments)
        assert type(loaded) is type(model)
        assert not any(report.values())
        assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert type(AutoModel.from_config(config)) is type(AutoModel.from_config(tiny_config())) is JetModel
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is JetImageProcessor
    assert (processor.size.height, processor.size.width) == (8, 8)


def test_density_model_from_a_saved_bijection(saved, tmp_path):
    model, _ = saved
    model.jet.save_pretrained(tmp_path)
    loaded, report = JetForDensityEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same_tensors(loaded.state_dict(), model.state_dict())


# Saving and loading


@pytest.mark.parametrize("bare", [True, False])
def test_saved_and_loaded_bit_for_bit(saved, tmp_path, bare):
    model = saved[0].jet if bare else saved[0]
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for folder, weights in (("whole", ["model.safetensors"]), ("sharded", None)):
        files = [file for file in (tmp_path / folder).iterdir() if file.suffix not in (".py", ".json")]
        assert [file.name for file in files] == weights if weights else len(files) > 3
        assert {file.suffix for file in files} == {".safetensors"}
    for load in ({}, {"device_map": "cpu"}, {"device_map": "auto"}, {"attn_implementation": "eager"}):
        for folder in ("whole", "sharded") if load == {"device_map": "auto"} else ("whole",):
            loaded = type(model).from_pretrained(tmp_path / folder, **load)
            assert_same_tensors(loaded.state_dict(), model.state_dict())
            assert not loaded.training
            assert loaded.config._attn_implementation == load.get("attn_implementation", "sdpa")


@torch.no_grad()
def test_offloaded_to_the_disk(saved, tmp_path):
    model, folder = saved
    places = {f"jet.couplings.{i}": "cpu" if i == 3 else "disk" for i in range(5)}
    loaded = JetForDensityEstimation.from_pretrained(folder, device_map=places, offload_folder=tmp_path)
    assert loaded.device.type == "meta"
    inputs = inputs_of(model.config)
    assert torch.equal(loaded(**inputs).bits_per_dim, model(**inputs).bits_per_dim)
    samples = [
        each.sample(2, generator=torch.Generator().manual_seed(3), context=inputs["context"])
        for each in (loaded, model)
    ]
    assert torch.equal(*samples)


@torch.no_grad()
def test_bfloat16_conditioners_keep_permutations_and_a_float32_flow(saved):
    model, folder = saved
    loaded = JetForDensityEstimation.from_pretrained(folder, dtype=torch.bfloat16)
    expected = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    assert expected["jet.couplings.0.permutation"].dtype == torch.int64
    assert_same_tensors(loaded.state_dict(), expected)

    inputs = inputs_of(model.config)
    exact = model(**inputs)
    with float32_flow(loaded) as calls:
        output = loaded(**inputs)
        images, log_det = loaded.decode(output.latents, inputs["context"])
    assert len(calls) == 2 * model.config.num_coupling_layers
    for name, value in output.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, exact[name], rtol=0.02, atol=1.0 if name == "log_det" else 0.1)
    assert images.dtype == log_det.dtype == torch.float32
    # The state itself is not rounded to bfloat16, which would move images by up to 4e-3.
    dequantized = inputs["pixel_values"] + inputs["noise"] / 127.5
    torch.testing.assert_close(images, dequantized, rtol=0, atol=1e-5)
    assert loaded.sample(2, context=inputs["context"]).dtype == torch.float32


@pytest.mark.parametrize("fields", [{}, {"use_actnorm": True, "dequantization": "flow"}])
def test_loading_draws_no_numbers_and_keeps_no_file_in_memory(tmp_path, fields):
    model = tiny_model(num_coupling_layers=2, **fields)
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    loaded = JetForDensityEstimation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state), "weights that the file replaces were drawn"
    mapped = {region.path for region in psutil.Process().memory_maps()}
    assert str(tmp_path / "model.safetensors") not in mapped, "a tensor is a view of the file"
    assert [name for name, _ in loaded.named_buffers()] == [name for name, _ in model.named_buffers()]


NAMES = [
    name.removeprefix("couplings.0.") for name in JetModel(tiny_config(num_coupling_layers=1, **CONTEXT)).state_dict()
]


def test_only_missing_tensors_are_initialized(saved, tmp_path):
    """One tensor of each kind is missing, in one coupling or another."""
    _, folder = saved
    tensors = load_file(folder / "model.safetensors")
    missing = {f"jet.couplings.{index % 5}.{name}": name for index, name in enumerate(NAMES)}
    for name in missing:
        del tensors[name]
    shutil.copy(folder / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = JetForDensityEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == set(missing) and not report["unexpected_keys"]
    state_dict = loaded.state_dict()
    for full_name, name in missing.items():
        fresh = state_dict.pop(full_name)
        if name == "permutation":
            assert torch.equal(fresh, couplings(loaded)[int(full_name.split(".")[2])].make_permutation())
        elif name.endswith("bias") or "out_proj" in name or "cross_attention.o_proj" in name:
            assert fresh.abs().max() < 1e-5, name
        elif "norm" in name:
            assert torch.equal(fresh, torch.ones_like(fresh)), name
        else:
            assert 0.05 < fresh.std() < 1, name
    assert_same_tensors(state_dict, tensors)


@pytest.mark.parametrize(("layers", "report_key"), [(4, "unexpected_keys"), (6, "missing_keys")])
def test_another_number_of_couplings_is_reported(saved, layers, report_key):
    model, folder = saved
    loaded, report = JetForDensityEstimation.from_pretrained(
        folder, num_coupling_layers=layers, output_loading_info=True
    )
    last = max(layers, model.config.num_coupling_layers) - 1
    names = {f"jet.couplings.{last}.{name}" for name in NAMES}
    assert {key: set(value) for key, value in report.items() if value} == {report_key: names}
    for ours, theirs in zip(couplings(loaded), couplings(model), strict=False):
        assert_same_tensors(ours.state_dict(), theirs.state_dict())


def test_mismatched_shapes_raise(saved):
    for field in ({"hidden_size": 32}, {"image_size": 16}, {"num_channels": 1}):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            JetForDensityEstimation.from_pretrained(saved[1], **field)


FIELDS = {
    "permutation_seed": 1,
    "spatial_couplings": ["vstripes"],
    "coupling_kinds": ["channels"],
    "coupling_mode": "masking",
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "scale_factor": 3.0,
    "num_groups": 2,
    "dequantization_num_attention_heads": 1,
    "num_levels": 17,
    "noise_std": 0.1,
    "image_size": (4, 16),  # of as many patches
}


@pytest.mark.parametrize("load", [JetForDensityEstimation, JetModel, AutoModel])
def test_fields_that_contradict_the_weights_are_refused(saved, tmp_path, load):
    """No tensor's shape shows these fields, so the loaded model would compute different numbers."""
    for name, value in FIELDS.items():
        message = f"`{name}` must be .* with which the weights of .* were made, got {re.escape(repr(value))}"
        for arguments in ({name: value}, {"config": JetConfig.from_pretrained(saved[1], **{name: value})}):
            with pytest.raises(ValueError, match=message):
                load.from_pretrained(saved[1], **arguments)
    # The saved values are accepted, and weights without a configuration contradict nothing.
    own = {name: getattr(saved[0].config, name) for name in FIELDS}
    assert own.items() <= load.from_pretrained(saved[1], **own).config.to_dict().items()
    shutil.copy(saved[1] / "model.safetensors", tmp_path)
    if load is not AutoModel:
        config = tiny_config(**CONTEXT, scale_factor=3.0)
        assert load.from_pretrained(tmp_path, config=config).config.scale_factor == 3.0


def test_fields_are_refused_wherever_they_are_given(saved, tmp_path):
    JetConfig.from_pretrained(saved[1]).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | {"permutation_seed": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="`permutation_seed` must be 0, with which the weights"):
        JetForDensityEstimation.from_pretrained(saved[1], config=tmp_path)
    with pytest.raises(ValueError, match="`config` must be a JetConfig or its path, got dict"):
        JetForDensityEstimation.from_pretrained(saved[1], config=fields)
    # Patches of as many numbers: every tensor has the shape that it had.
    model = tiny_model(num_channels=1, patch_size=4, image_size=16)
    model.save_pretrained(tmp_path / "gray")
    with pytest.raises(ValueError, match="`num_channels` must be 1, with which the weights"):
        JetForDensityEstimation.from_pretrained(tmp_path / "gray", num_channels=4, patch_size=2, image_size=8)


def test_a_model_is_saved_with_the_configuration_that_it_was_made_with(tmp_path):
    config = tiny_config()
    model = JetForDensityEstimation(config)
    for changed in (model, model.jet):
        config.scale_factor = 3.0
        with pytest.raises(ValueError, match=r"`config.scale_factor` must be 2.0, with which this model was built"):
            changed.save_pretrained(tmp_path / "changed")
        config.scale_factor = 2.0
        changed.save_pretrained(tmp_path / "same")
    assert not (tmp_path / "changed").exists()
    model.jet.couplings[0].permutation.zero_()
    with pytest.raises(ValueError, match=r"`jet.couplings.0.permutation` must hold each of 0 to 11 once"):
        model.save_pretrained(tmp_path / "changed")


def test_splits_in_the_weights_are_checked(saved, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    shutil.copy(saved[1] / "config.json", tmp_path)
    tensors = load_file(saved[1] / "model.safetensors")
    name = "jet.couplings.4.permutation"  # spatial, and reversed in `saved`
    JetForDensityEstimation.from_pretrained(saved[1])
    assert f"`{name}` is not the split 'checkerboard' of `config.spatial_couplings`" in caplog.text
    for changed in (tensors[name] // 2, tensors[name] + 1):
        save_file(tensors | {name: changed}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"the weights' `{name}` must hold each of 0 to 15 once"):
            JetForDensityEstimation.from_pretrained(tmp_path)


def test_damaged_weights_raise(saved, tmp_path):
    _, folder = saved
    shutil.copy(folder / "config.json", tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    for damaged in (data[:-100], data[:100], b"\xff" * len(data)):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(SafetensorError, match="header"):
            JetForDensityEstimation.from_pretrained(tmp_path)


# Attention


@torch.no_grad()
def test_registered_attention_is_called(saved):
    _, folder = saved
    model = JetForDensityEstimation.from_pretrained(folder)
    inputs, shapes = inputs_of(model.config), []

    def attention(module, query, key, value, attention_mask, **kwargs):
        assert attention_mask is None and not module.is_causal
        shapes.append((tuple(query.shape), tuple(key.shape)))
        output, weights = eager_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return 2 * output, weights

    expected = model(**inputs).bits_per_dim
    AttentionInterface.register("doubled", attention)
    model.set_attn_implementation("doubled")
    assert not torch.equal(model(**inputs).bits_per_dim, expected)
    cross_then_self = [((2, 2, 16, 8), (2, 2, 3, 8)), ((2, 2, 16, 8), (2, 2, 16, 8))]
    assert shapes == cross_then_self * model.config.num_coupling_layers


# Gradients and modes


def loss_of(model: JetForDensityEstimation, direction: str) -> torch.Tensor:
    inputs = inputs_of(model.config)
    if direction == "encode":
        return model(**inputs).loss
    images, log_det = model.decode(latents_like(inputs["pixel_values"]), inputs["context"])
    return images.square().mean() + log_det.mean()


@pytest.mark.parametrize(("direction", "use_reentrant"), [("encode", False), ("encode", True), ("decode", True)])
def test_gradient_checkpointing(direction, use_reentrant):
    model = tiny_model(**CONTEXT).train()
    loss_of(model, direction).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    calls = []
    for index, coupling in enumerate(couplings(model)):
        coupling.conditioner.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    loss = loss_of(model, direction)
    order = [0, 1, 2, 3, 4] if direction == "encode" else [4, 3, 2, 1, 0]
    assert calls == order
    loss.backward()
    assert calls == order + order[::-1], "the backward pass recomputes each coupling once, in its turn"
    assert_same_tensors({name: parameter.grad for name, parameter in model.named_parameters()}, expected)

    calls.clear()
    model.gradient_checkpointing_disable()
    loss_of(model, direction).backward()
    assert calls == order


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(saved, mode):
    model, _ = saved
    inputs = inputs_of(model.config)
    latents = latents_like(inputs["pixel_values"])
    expected, decoded = model(**inputs), model.decode(latents, inputs["context"])
    assert expected.loss.requires_grad and decoded[0].requires_grad
    with mode():
        output = model(**inputs)
        images, log_det = model.decode(latents, inputs["context"])
    assert not any(value.requires_grad for value in (*output.values(), images, log_det))
    for name, value in expected.items():
        torch.testing.assert_close(output[name], value.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close((images, log_det), (decoded[0].detach(), decoded[1].detach()), rtol=1e-6, atol=1e-5)


@torch.no_grad()
@torch.autocast("cpu", dtype=torch.bfloat16)
def test_autocast_narrows_the_conditioners_only(saved):
    model, _ = saved
    inputs = inputs_of(model.config)
    with float32_flow(model) as calls:
        output = model(**inputs)
        images, log_det = model.decode(output.latents, inputs["context"])
    assert len(calls) == 2 * model.config.num_coupling_layers
    assert {value.dtype for value in (*output.values(), images, log_det)} == {torch.float32}
    dequantized = inputs["pixel_values"] + inputs["noise"] / 127.5
    torch.testing.assert_close(images, dequantized, rtol=0, atol=1e-5)


@torch.no_grad()
def test_outputs(saved):
    model, _ = saved
    inputs = inputs_of(model.config)
    output = model(**inputs)
    assert list(output) == ["loss", "bits_per_dim", "log_likelihood", "latents", "log_det"]
    for ours, expected in zip(model(**inputs, return_dict=False), output.to_tuple(), strict=True):
        assert torch.equal(ours, expected)

    del inputs["noise"]
    latents, log_det = model.encode(**inputs)
    assert_same_tensors(model.jet(**inputs), {"latents": latents, "log_det": log_det})
    for ours, expected in zip(model.jet(**inputs, return_dict=False), (latents, log_det), strict=True):
        assert torch.equal(ours, expected)


@torch.no_grad()
def test_tuples_by_configuration(saved):
    _, folder = saved
    model = JetForDensityEstimation.from_pretrained(folder, return_dict=False)
    inputs = inputs_of(model.config)
    scored = model(**inputs)
    assert isinstance(scored, tuple) and len(scored) == 5
    assert torch.equal(scored[3], model(**inputs, return_dict=True).latents)


@torch.no_grad()
def test_hidden_states_are_those_of_the_flow(saved):
    model, _ = saved
    inputs = inputs_of(model.config)
    output = model(**inputs, output_hidden_states=True)
    state = model.jet.patchify(inputs["pixel_values"] + inputs["noise"] / 127.5)
    assert len(output.hidden_states) == model.config.num_coupling_layers
    for coupling, hidden_state in zip(couplings(model), output.hidden_states, strict=True):
        state, *_ = coupling(state, False, inputs["context"])
        assert torch.equal(hidden_state, state)
    assert torch.equal(model.jet.unpatchify(state), output.latents)
    assert model(**inputs).hidden_states is None
    # States that are not selected are None. Negative indices select none of them in releases that do not know these.
    some = model(**inputs, output_hidden_states=[1, 4]).hidden_states
    assert [state is None for state in some] == [True, False, True, True, False]
    *others, last = model(**inputs, output_hidden_states=[-1]).hidden_states
    assert others == [None] * 4 and (last is None or torch.equal(last, state))


# Initialization


normal_cdf = torch.special.ndtr


def uniform_cdf(samples: torch.Tensor) -> torch.Tensor:
    return ((samples + 1) / 2).clamp(0, 1)


def truncated_cdf(samples: torch.Tensor) -> torch.Tensor:
    """Return the distribution function of a standard normal distribution truncated at two standard deviations."""
    low, high = normal_cdf(torch.tensor([-2.0, 2.0], dtype=torch.float64))
    return (normal_cdf(samples.clamp(-2, 2)) - low) / (high - low)


def assert_drawn_from(cdf, scale: float, tensors: list[torch.Tensor]):
    """Apply the Kolmogorov-Smirnov test, with a false alarm rate of 1 in 700."""
    samples = torch.cat([tensor.flatten() for tensor in tensors]).double().sort().values / scale
    steps = torch.arange(len(samples) + 1, dtype=torch.float64) / len(samples)
    below, above = cdf(samples) - steps[:-1], steps[1:] - cdf(samples)
    assert torch.maximum(below, above).max() * len(samples) ** 0.5 < 2
    assert len(samples) >= 2000


@torch.no_grad()
def test_initialization_has_the_original_law():
    torch.manual_seed(0)
    config = tiny_config(
        image_size=16, patch_size=4, num_coupling_layers=2, num_hidden_layers=2, hidden_size=128, context_size=40
    )
    model = JetForDensityEstimation(config)
    vits = [coupling.conditioner for coupling in couplings(model)]
    blocks = [layer for vit in vits for layer in vit.layers]
    width, mlp_width = config.hidden_size, config.intermediate_size

    def xavier(fan_in: int, fan_out: int) -> float:
        return math.sqrt(6 / (fan_in + fan_out))

    for part in range(3):
        kernels = [block.attention.qkv_proj.weight.chunk(3)[part] for block in blocks]
        assert_drawn_from(uniform_cdf, xavier(width, width), kernels)
    assert_drawn_from(uniform_cdf, xavier(width, width), [block.attention.o_proj.weight for block in blocks])
    assert_drawn_from(uniform_cdf, xavier(width, mlp_width), [block.mlp.fc1.weight for block in blocks])
    assert_drawn_from(uniform_cdf, xavier(mlp_width, width), [block.mlp.fc2.weight for block in blocks])
    mlp_biases = [bias for block in blocks for bias in (block.mlp.fc1.bias, block.mlp.fc2.bias)]
    assert_drawn_from(normal_cdf, 1e-6, mlp_biases)
    assert_drawn_from(normal_cdf, width**-0.5, [vit.position_embeddings for vit in vits])

    # Truncation takes the standard deviation of a standard normal to 0.8796: the draws are widened by that first.
    cross = [vit.cross_attention for vit in vits]
    lecun = {
        config.patch_dim // 2: [[vit.in_proj.weight for vit in vits]],
        width: [[attention.q_proj.weight for attention in cross]],
        config.context_size: [[attention.kv_proj.weight.chunk(2)[part] for attention in cross] for part in (0, 1)],
    }
    for fan_in, kinds in lecun.items():
        for kernels in kinds:
            scale = fan_in**-0.5 / 0.8796256610342398
            assert_drawn_from(truncated_cdf, scale, kernels)
            assert max(kernel.abs().max() for kernel in kernels) <= 2 * scale * (1 + 1e-6)
            assert torch.stack(kernels).var().item() == pytest.approx(1 / fan_in, rel=0.05)

    zeros = [vit.in_proj.bias for vit in vits]
    zeros += [tensor for vit in vits for tensor in vit.out_proj.parameters()]
    zeros += [bias for block in blocks for bias in (block.attention.qkv_proj.bias, block.attention.o_proj.bias)]
    zeros += [tensor for attention in cross for tensor in attention.o_proj.parameters()]
    zeros += [bias for attention in cross for bias in (attention.q_proj.bias, attention.kv_proj.bias)]
    assert not any(tensor.any() for tensor in zeros)
    norms = [module for vit in vits for module in vit.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)
    drawn = 6 * len(blocks) + 4 * len(vits)
    assert drawn + len(zeros) + 2 * len(norms) == len(list(model.parameters())), "a kind of parameter is not tested"


@torch.no_grad()
def test_a_new_flow_is_the_identity():
    torch.manual_seed(0)
    model = JetForDensityEstimation(tiny_config(**CONTEXT))
    inputs = inputs_of(model.config)
    for transform in (model.encode, model.decode):
        images, log_det = transform(inputs["pixel_values"], inputs.get("context"))
        assert torch.equal(images, inputs["pixel_values"])
        assert torch.equal(log_det, torch.zeros(2))


# Compilation


@pytest.fixture
def compiled():
    """Compile a function to one graph, and call it twice without recompilation."""

    def call_twice(function, *args, backend: str = "aot_eager", **kwargs):
        torch._dynamo.reset()
        graph = torch.compile(function, fullgraph=True, backend=backend)
        torch.manual_seed(0)
        output = graph(*args, **kwargs)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        with torch._dynamo.config.patch(error_on_recompile=True):
            graph(*args, **kwargs)
        return output

    torch._dynamo.utils.counters.clear()
    yield call_twice
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def two_couplings():
    model = tiny_model(image_size=4, num_coupling_layers=2, coupling_kinds=["channels", "spatial"])
    return model, inputs_of(model.config)


def assert_close(given, expected):
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_compiled_decoder(two_couplings, compiled):
    model, inputs = two_couplings
    expected = model.decode(inputs["pixel_values"])
    assert_close(compiled(model.decode, inputs["pixel_values"]), expected)


def test_compiled_loss_and_gradients_with_checkpointing(two_couplings, compiled):
    model, inputs = two_couplings
    model.zero_grad()
    expected_output = model(**inputs)
    expected_output.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.train()
    model.gradient_checkpointing_enable()
    output = compiled(model, **inputs)
    model.gradient_checkpointing_disable()
    model.eval()
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name])
    for name, value in expected_output.items():
        assert_close(output[name], value)


def test_compiled_loss_draws_its_noise_for_any_batch_size(compiled):
    model = tiny_model(image_size=4, num_coupling_layers=1)
    compiled(model, random_images(2, model.config), backend="eager")
    graph = torch.compile(model, fullgraph=True, backend="eager")
    for batch_size in (3, 4, 5):
        pixel_values = random_images(batch_size, model.config)
        torch.manual_seed(0)
        scores = graph(pixel_values).bits_per_dim
        torch.manual_seed(0)
        assert_close(scores, model(pixel_values).bits_per_dim)
        assert not torch.equal(scores, graph(pixel_values).bits_per_dim)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "one for a fixed batch size, one for any"


def test_exported_with_any_batch_size(two_couplings):
    model, inputs = two_couplings
    shapes = {name: {0: torch.export.Dim("batch_size", min=1, max=64)} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False).module()
    more = inputs_of(model.config, batch_size=5)
    assert_close(program(**more).bits_per_dim, model(**more).bits_per_dim)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor needs a C++ compiler")
@torch.no_grad()
def test_couplings_compiled_by_inductor():
    torch._dynamo.reset()
    model = tiny_model(image_size=4, num_coupling_layers=2, coupling_kinds=["channels", "spatial"])
    inputs = inputs_of(model.config)
    expected = model(**inputs)
    model.compile_couplings()
    for name, value in model(**inputs).items():
        assert_close(value, expected[name])


@torch.no_grad()
def test_samples_of_any_temperature_seed_and_guidance_share_a_graph():
    torch._dynamo.reset()
    model = tiny_model(image_size=4, num_coupling_layers=2, coupling_kinds=["channels", "spatial"], num_classes=3)
    model.compile_couplings(backend="eager")

    def sample(temperature: float, seed: int, guidance_scale) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.tensor([0, seed % 3])
        return model.sample(2, temperature, generator, labels=labels, guidance_scale=guidance_scale)

    first = [sample(1.0, 0, scale) for scale in (None, 1.5)]
    with torch.compiler.set_stance("fail_on_recompile"):
        again = [sample(0.7, 1, None), sample(0, 2, 2.0), sample(0.3, 3, (1.0, 4.0)), sample(1.0, 0, 0.5)]
        assert torch.equal(sample(1.0, 0, 1.5), first[1])
    torch._dynamo.reset()
    assert len({tuple(images.flatten().tolist()) for images in (*first, *again)}) == 6
