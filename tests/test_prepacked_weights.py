"""`prepack_weights`: the same results, never those of weights that are no longer there."""

import copy
import pickle

import pytest
import torch
from conftest import random_images, tiny_model

from jet_hf import JetForDensityEstimation
from jet_hf.model import linear_jet
from jet_hf.model.linear_jet import JetLinear


CONTEXT = {"context_size": 8}
BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.fixture(autouse=True)
def products_of_any_size(monkeypatch):
    monkeypatch.setattr(linear_jet, "SMALL_PRODUCT", 0)


def layers(model) -> list[JetLinear]:
    return [module for module in model.modules() if isinstance(module, JetLinear)]


def packed(model) -> list[bool]:
    """Whether each layer would take a packed weight."""
    return [layer._prepacked is not None and layer._packed(layer.weight).is_mkldnn for layer in layers(model)]


def prepacked_model(**fields):
    model = tiny_model(hidden_size=64, **fields).eval()
    model.prepack_weights()
    assert len(packed(model)) >= 4 and all(packed(model))
    return model


@pytest.mark.parametrize("dtype", [torch.float32] + [torch.bfloat16] * BF16, ids=str)
@pytest.mark.parametrize("fields", [{}, CONTEXT, {"dequantization": "flow"}], ids=str)
@torch.no_grad()
def test_results_are_the_same(fields, dtype, monkeypatch):
    model = tiny_model(hidden_size=64, **fields).to(dtype).eval()
    prepacked = copy.deepcopy(model)
    prepacked.prepack_weights()
    images = random_images(3, model.config)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    context = {"context": torch.ones(3, 2, 8)} if fields == CONTEXT else {}
    weights = []
    product = torch.ops.mkldnn._linear_pointwise

    def spied(x, weight, *rest):
        weights.append(weight.is_mkldnn)
        return product(x, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spied)
    expected = model(images, noise=noise, **context)
    assert weights and not any(weights)
    weights.clear()
    output = prepacked(images, noise=noise, **context)
    assert len(weights) == len(layers(model)) and all(weights)
    torch.testing.assert_close(output.bits_per_dim, expected.bits_per_dim, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.latents, expected.latents, rtol=1e-4, atol=1e-4)
    decoded, _ = prepacked.decode(output.latents, **context)
    torch.testing.assert_close(decoded, model.decode(output.latents, **context)[0], rtol=1e-4, atol=1e-4)


def train(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    model(random_images(4, model.config), noise=torch.zeros(4, 3, 8, 8)).loss.backward()
    optimizer.step()
    model.eval()


def load_others(model):
    model.load_state_dict(tiny_model(std=0.2, hidden_size=64).state_dict())


def assign_others(model):
    model.load_state_dict(tiny_model(std=0.2, hidden_size=64).state_dict(), assign=True)


def merge_an_adapter(model):
    for layer in layers(model):
        layer.weight.data += 0.01


def replace_data(model):
    for layer in layers(model):
        layer.weight.data = layer.weight.data + 0.01


def narrow_for_a_while(model):
    model.bfloat16().float()


@pytest.mark.parametrize(
    "change", [train, load_others, assign_others, merge_an_adapter, replace_data, narrow_for_a_while]
)
def test_changed_weights_are_never_passed_over(change):
    model = prepacked_model()
    images = random_images(3, model.config)
    with torch.no_grad():
        before = model.encode(images)[0]
    change(model)
    fresh = copy.deepcopy(model)
    assert not any(packed(fresh))
    with torch.no_grad():
        after = model.encode(images)[0]
        torch.testing.assert_close(after, fresh.encode(images)[0], rtol=0, atol=0)
    assert not torch.equal(after, before)
    assert all(layer._prepacked is None for layer in layers(model)), "the copies are of no more use"
    model.prepack_weights()
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images)[0], after, rtol=1e-5, atol=1e-5)


def test_one_layer_changes():
    model = prepacked_model()
    with torch.no_grad():
        layers(model)[2].weight[-1, -1] += 1
    assert packed(model) == [index != 2 for index in range(len(layers(model)))]


def test_copies_and_files_have_none(tmp_path):
    model = prepacked_model()
    assert model.state_dict().keys() == tiny_model(hidden_size=64).state_dict().keys()
    model.save_pretrained(tmp_path)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        JetForDensityEstimation.from_pretrained(tmp_path),
    ):
        assert not any(packed(other))
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)
    assert all(packed(model)), "they are the model's own, still"


def test_gradients_are_those_of_the_weights():
    model, plain = prepacked_model(), tiny_model(hidden_size=64).eval()
    images = random_images(2, model.config)
    for each in (model, plain):
        each.encode(images)[0].square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda: tiny_model(backbone="cnn", hidden_size=32, num_groups=8), "got a cnn in torch.float32 on cpu"),
        (lambda: tiny_model().double(), "got a vit in torch.float64 on cpu"),
        (lambda: tiny_model().to("meta"), "got a vit in torch.float32 on meta"),
        (torch.inference_mode()(tiny_model), "not made in inference mode"),
    ],
)
def test_nothing_to_prepare(make, got):
    with pytest.raises(ValueError, match="`prepack_weights` needs weights of linear layers") as error:
        make().prepack_weights()
    assert got in str(error.value)
