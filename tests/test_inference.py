"""Models prepared for inference: equal scores, equal files, and a refusal of everything else."""

import copy
import math

import pytest
import torch
from accelerate import cpu_offload
from conftest import random_images, tiny_model
from torch import nn
from torch.nn.functional import gelu

from jet_hf import JetForDensityEstimation
from jet_hf.analysis import inference
from jet_hf.analysis.inference import (
    PreparedMLP,
    prepare_for_inference,
    prepared_for_inference,
    undo_preparation,
)
from jet_hf.model.conditioners_jet import JetMLP


def mlps(model: nn.Module) -> list[JetMLP]:
    return [module for module in model.modules() if isinstance(module, JetMLP)]


def types(model: nn.Module) -> set[type]:
    return {type(mlp) for mlp in mlps(model)}


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("fields", [{}, {"num_classes": 3, "coupling_mode": "masking"}, {"dequantization": "flow"}])
@torch.no_grad()
def test_scores_and_images_are_those_of_the_plain_model(fields, is_fused, monkeypatch):
    monkeypatch.setattr(inference, "has_fused_kernel", lambda: is_fused)
    model = tiny_model(hidden_size=64, num_coupling_layers=3, **fields)
    prepared = copy.deepcopy(model)
    prepare_for_inference(prepared)
    assert types(prepared) == {PreparedMLP} and types(model) == {JetMLP}
    images, noise = random_images(8, model.config), torch.full((8, 3, 8, 8), 0.5)
    labels = None if model.config.num_classes is None else torch.arange(8) % 4
    expected, output = (each(images, labels=labels, noise=noise) for each in (model, prepared))
    torch.testing.assert_close(output.bits_per_dim, expected.bits_per_dim, rtol=1e-5, atol=1e-5)
    decoded = [each.decode(expected.latents, labels=labels)[0] for each in (model, prepared)]
    torch.testing.assert_close(decoded[1], decoded[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(prepared(images, labels=labels, noise=noise).latents, output.latents), "it is deterministic"


@pytest.mark.parametrize("is_fused", [inference.has_fused_kernel(), False])  # not all processors have the kernel
@torch.no_grad()
def test_bfloat16_is_as_close_to_float32_as_the_plain_model(is_fused, monkeypatch):
    monkeypatch.setattr(inference, "has_fused_kernel", lambda: is_fused)
    model = tiny_model(hidden_size=64)
    images = random_images(8, model.config)
    exact, _ = model.encode(images)
    narrow = model.bfloat16()
    plain = (narrow.encode(images)[0] - exact).abs().mean()
    with prepared_for_inference(narrow):
        prepared = (narrow.encode(images)[0] - exact).abs().mean()
    assert prepared < 1.5 * plain < 0.05


def test_the_sigmoid_gives_the_tanh_gelu():
    inputs = torch.cat([torch.linspace(-12, 12, 10_001), torch.tensor([-3e38, -1e20, -0.0, 1e20, 3e38, math.nan])])
    expected = gelu(inputs.double(), approximate="tanh").float()
    torch.testing.assert_close(inference.tanh_gelu(inputs), expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_saved_files_are_those_of_the_plain_model(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "plain")
    with prepared_for_inference(model):
        assert types(model) == {PreparedMLP}
        model.save_pretrained(tmp_path / "prepared")
    assert types(model) == {JetMLP}
    plain, prepared = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("plain", "prepared")
    )
    assert plain == prepared and type(JetForDensityEstimation.from_pretrained(tmp_path / "prepared")) is type(model)
    model.train()(random_images(2, model.config)).loss.backward()


class Adapted(nn.Linear):
    """A subclass, such as the layers of adapters and quantizers."""


def test_models_that_cannot_be_prepared_are_refused():
    def refuse(message: str, model: JetForDensityEstimation) -> None:
        with pytest.raises(ValueError, match=message):
            prepare_for_inference(model)
        with prepared_for_inference(model):  # runs the plain layers
            assert types(model) == {JetMLP}

    refuse(r"`model` must be in evaluation mode: call `model.eval\(\)` first", tiny_model().train())
    adapted, hooked, compiled = tiny_model(), tiny_model(), tiny_model()
    mlps(adapted)[-1].fc1.__class__ = Adapted
    refuse("must have plain linear layers, got Adapted", adapted)
    mlps(hooked)[-1].fc1.register_forward_hook(lambda *_: None)
    refuse("must have linear layers without hooks", hooked)
    compiled.compile_couplings(backend="eager")
    refuse("must not be compiled", compiled)
    refuse("must have weights of float32 or bfloat16 on the CPU, got torch.float64 on cpu", tiny_model().double())
    refuse("on the CPU, got torch.float32 on meta", tiny_model().to("meta"))
    refuse("on the CPU, got torch.float32 on meta", cpu_offload(tiny_model(), execution_device="cpu"))
    other = tiny_model(hidden_act="gelu")
    prepare_for_inference(other)
    assert types(other) == {JetMLP}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor")
def test_prepared_models_refuse_training_gradients_and_tracing():
    model = tiny_model(num_coupling_layers=1)
    images = random_images(2, model.config)
    plain = torch.no_grad()(model.encode)(images)
    prepare_for_inference(model)
    for gradients, training in ((True, False), (False, True)):
        with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match="must run in evaluation mode and w"):
            model.train(training).encode(images)
    model.eval()
    with torch.no_grad():
        with pytest.raises(
            RuntimeError, match="cannot be compiled, exported or traced: call `undo_preparation` first"
        ):
            torch.jit.trace(mlps(model)[0], torch.zeros(1, 16, 16))
        with torch.autocast("cpu", torch.bfloat16):
            assert model.encode(images)[0].isfinite().all()
        undo_preparation(model)
        assert torch.equal(model.encode(images)[0], plain[0])
