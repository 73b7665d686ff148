"""The original implementations' numbers, through the converter's command and from_pretrained."""

import json

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from script_runner import run_script

from jet_hf import JetForDensityEstimation
from jet_hf.importers import convert_big_vision, names


BIG_VISION = {
    "paper_mix_32px": [],
    "default_kinds_16px": [],
    "context_16px": [],
    "spatial_only_gray_16px": ["--num-channels", "1"],
    "training_trajectory_16px": [],
}
SCORED = [name for name in BIG_VISION if not name.startswith("training")]


def convert(folder, source: str, checkpoint, *flags: str) -> JetForDensityEstimation:
    assert run_script("convert_checkpoint.py", source, checkpoint, folder, *flags) == 0
    return JetForDensityEstimation.from_pretrained(folder).eval()


def to_nchw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(array, -1, 1).copy())


def largest(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest difference, relative to the reference's largest magnitude if that is above 1."""
    assert ours.shape == reference.shape
    return (ours - reference).abs().max().item() / max(1.0, reference.abs().max().item())


def largest_relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference) / reference).abs().max().item()


def check_transforms(within, name: str, output, decoded, reference) -> None:
    """Compare latents, samples and both log-determinants with the original's."""
    images, inverse_log_det = decoded
    log_dets = [torch.from_numpy(reference[f"out/{key}"].ravel()) for key in ("logdet", "sample_logdet")]
    within(f"{name}: latents", largest(output.latents, to_nchw(reference["out/latent"])), 2e-5)
    within(f"{name}: log_det", (output.log_det - log_dets[0]).abs().max().item(), 1e-3)
    within(f"{name}: samples", largest(images, to_nchw(reference["out/sample"])), 2e-5)
    within(f"{name}: log_det of samples", (inverse_log_det - log_dets[1]).abs().max().item(), 1e-3)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    models = {}

    def get(name: str):
        if name not in models:
            folder = tmp_path_factory.mktemp("converted") / name
            models[name] = convert(folder, "big_vision", FIXTURES / f"{name}.npz", *BIG_VISION[name])
        return models[name], np.load(FIXTURES / f"{name}.npz")

    return get


def inputs(reference) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    pixel_values = to_nchw(reference["in/pixels_uint8"]).float() / 127.5 - 1
    context = torch.from_numpy(reference["in/context"]) if "in/context" in reference else None
    return pixel_values, to_nchw(reference["in/noise"]), context


@pytest.mark.parametrize("name", SCORED)
@torch.no_grad()
def test_scores_and_samples(converted, within, name):
    model, reference = converted(name)
    pixel_values, noise, context = inputs(reference)
    output = model(pixel_values, context=context, noise=noise)
    check_transforms(within, name, output, model.decode(to_nchw(reference["in/latent"]), context), reference)
    bits = torch.from_numpy(reference["out/bits_per_dim"])
    within(f"{name}: bits per dimension, relative", largest_relative(output.bits_per_dim, bits), 1e-6)


@pytest.mark.parametrize("name", SCORED)
def test_gradient_norms_by_parameter(converted, within, name):
    model, reference = converted(name)
    pixel_values, noise, context = inputs(reference)
    model.zero_grad()
    model(pixel_values, context=context, noise=noise).loss.backward()

    fixed = names.BIG_VISION | (names.BIG_VISION_CONTEXT if context is not None else {})
    table = names.name_table(fixed, names.BIG_VISION_BLOCK, model.config.num_hidden_layers)
    compared, worst = 0, 0.0
    for ours, (_, *theirs) in table.items():
        gradients = [c.conditioner.get_parameter(ours).grad for c in model.jet.couplings]
        for part, their_name in enumerate(theirs):
            # The parts of a fused projection are the original's separate arrays.
            norm = torch.stack([gradient.chunk(len(theirs))[part].norm() for gradient in gradients]).norm().item()
            expected = reference[f"grad_norm/couplings/dnn/{their_name}"].item()
            # The softmax does not depend on the key's bias: its gradient is the rounding of zero.
            if their_name.endswith("key/bias"):
                assert norm < 1e-6 and expected < 1e-6
            else:
                worst = max(worst, abs(norm / expected - 1))
            compared += 1
    assert compared == sum(key.startswith("grad_norm/") for key in reference.files)
    within(f"{name}: gradient norms, relative", worst, 1e-4)


@torch.no_grad()
def test_jet_pytorch(tmp_path, within):
    name = "jet_pytorch_16px"
    flags = ["--num-attention-heads", "4", "--coupling-kinds", "channels", "channels", "spatial"]
    model = convert(tmp_path / "model", "jet_pytorch", FIXTURES / f"{name}.safetensors", *flags)
    reference = np.load(FIXTURES / f"{name}.npz")
    pixel_values, noise, _ = inputs(reference)
    output, decoded = model(pixel_values, noise=noise), model.decode(to_nchw(reference["in/latent"]))
    check_transforms(within, name, output, decoded, reference)


@pytest.mark.parametrize("name", BIG_VISION)
def test_configuration_is_read_from_the_file(converted, name):
    model, reference = converted(name)
    expected = json.loads(reference["config_json"].item())
    config = model.config
    assert (config.image_size, config.num_channels, config.patch_size) == (
        expected["image_size"],
        expected["num_channels"],
        expected["ps"],
    )
    assert (config.num_coupling_layers, config.num_hidden_layers) == (expected["depth"], expected["block_depth"])
    assert (config.hidden_size, config.num_attention_heads) == (expected["emb_dim"], expected["num_heads"])
    kinds = expected.get("kinds", ["channels", "channels", "spatial"])
    assert config.coupling_kinds == kinds[: len(config.coupling_kinds)]
    patterns = expected.get("spatial_coupling_projs", ["checkerboard", "checkerboard-inv"])
    assert config.spatial_couplings == patterns[: len(config.spatial_couplings)]


@torch.no_grad()
def test_patch_size_one_with_any_number_of_channels(tmp_path):
    """Convert a flow over the feature maps of another encoder, with 10 channels and patches of one pixel."""
    rng = np.random.default_rng(0)
    layers, tokens, dims, width = 3, 16, 10, 8
    arrays = {}
    table = names.name_table(names.BIG_VISION, {}, 0)
    shapes = {
        "in_proj.weight": (dims // 2, width),
        "in_proj.bias": (width,),
        "position_embeddings": (1, tokens, width),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
        "out_proj.weight": (width, dims),
        "out_proj.bias": (dims,),
    }
    for ours, (_, theirs) in table.items():
        arrays[f"params/couplings/dnn/{theirs}"] = rng.normal(size=(layers, *shapes[ours])).astype(np.float32)
    channel, spatial = np.zeros((layers, dims, dims), np.float32), np.zeros((layers, tokens, tokens), np.float32)
    for layer in (0, 1):
        channel[layer, rng.permutation(dims), np.arange(dims)] = 1
    order = [0, 2, 5, 7, 8, 10, 13, 15, 1, 3, 4, 6, 9, 11, 12, 14]  # a 4 x 4 checkerboard
    spatial[2, order, np.arange(tokens)] = 1
    arrays["params/channel_coupling_masks-FREEZE_ME"] = channel
    arrays["params/spatial_coupling_masks-FREEZE_ME"] = spatial
    np.savez(tmp_path / "features.npz", **arrays)
    flags = ["--num-channels", "10", "--num-attention-heads", "2"]
    model = convert(tmp_path / "model", "big_vision", tmp_path / "features.npz", *flags)
    assert (model.config.patch_size, model.config.image_size, model.config.num_channels) == (1, 4, 10)

    # The original's formulas, with its one-hot matrices, in float64.
    x = rng.normal(size=(2, 4, 4, dims))
    state, expected_log_det = x.reshape(2, tokens, dims), 0
    for layer in range(layers):
        weights = {
            ours: arrays[f"params/couplings/dnn/{theirs}"][layer].astype(float) for ours, (_, theirs) in table.items()
        }
        if channel[layer].any():
            first, second = np.split(state @ channel[layer], 2, axis=-1)
        else:
            parts = np.split(np.einsum("ntk,tm->nmk", state, spatial[layer]), 2, axis=1)
            first, second = (part.reshape(2, tokens, dims // 2) for part in parts)
        hidden = first @ weights["in_proj.weight"] + weights["in_proj.bias"] + weights["position_embeddings"]
        hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
        hidden = hidden * weights["layernorm.weight"] + weights["layernorm.bias"]
        bias, raw = np.split(hidden @ weights["out_proj.weight"] + weights["out_proj.bias"], 2, axis=-1)
        scale = 2 / (1 + np.exp(-raw))
        second, expected_log_det = (second + bias) * scale, expected_log_det + np.log(scale).sum(axis=(1, 2))
        if channel[layer].any():
            state = np.concatenate([first, second], axis=-1) @ channel[layer].T
        else:
            halves = [half.reshape(2, tokens // 2, dims) for half in (first, second)]
            state = np.einsum("ntk,tm->nmk", np.concatenate(halves, axis=1), spatial[layer].T)
    latents, log_det = model.encode(to_nchw(x.astype(np.float32)))
    assert largest(latents, to_nchw(state.reshape(x.shape).astype(np.float32))) <= 2e-5
    np.testing.assert_allclose(log_det.numpy(), expected_log_det, atol=1e-3)


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_checkpoint_layouts_of_big_vision(tmp_path, prefix):
    """Real files hold the parameters at the root or under opt/target/, some in bfloat16 stored as 2-byte void."""
    arrays = {
        name.removeprefix("params/"): array
        for name, array in np.load(FIXTURES / "default_kinds_16px.npz").items()
        if name.startswith("params/")
    }
    _, expected = convert_big_vision(FIXTURES / "default_kinds_16px.npz")
    kernel = arrays["couplings/dnn/init_proj/kernel"]
    arrays["couplings/dnn/init_proj/kernel"] = (kernel.view(np.uint32) >> 16).astype(np.uint16).view("V2")
    np.savez(tmp_path / "checkpoint.npz", step=np.array(7), **{prefix + name: value for name, value in arrays.items()})
    _, state_dict = convert_big_vision(tmp_path / "checkpoint.npz")
    truncated = {name for name in expected if name.endswith("in_proj.weight")}
    for name, tensor in expected.items():
        if name in truncated:
            tensor = (tensor.view(torch.int32) >> 16 << 16).view(torch.float32)
        assert torch.equal(state_dict[name], tensor), name
