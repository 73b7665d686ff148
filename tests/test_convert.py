"""Importers: what they refuse, what they leave behind, and what a converted folder contains."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FIXTURES, ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from jet_hf import JetConfig, JetForDensityEstimation, JetImageProcessor
from jet_hf.importers import convert_big_vision, convert_checkpoint, convert_jet_pytorch


BIG_VISION = FIXTURES / "context_16px.npz"
WITHOUT_CONTEXT = FIXTURES / "default_kinds_16px.npz"
JET_PYTORCH = FIXTURES / "jet_pytorch_16px.safetensors"
JET_PYTORCH_FLAGS = {"num_attention_heads": 4, "coupling_kinds": ["channels", "channels", "spatial"]}

CHANNEL_MASKS, SPATIAL_MASKS = "channel_coupling_masks-FREEZE_ME", "spatial_coupling_masks-FREEZE_ME"
DNN, BLOCK = "couplings/dnn", "couplings/dnn/vit/encoderblock_0"
ATTENTION, CROSS = f"{BLOCK}/MultiHeadDotProductAttention_0", f"{DNN}/MultiHeadDotProductAttention_0"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """The parameters of a big_vision checkpoint: 4 layers, alternating channels and spatial, 16 patches of 48."""
    return {k.removeprefix("params/"): v for k, v in np.load(BIG_VISION).items() if k.startswith("params/")}


@pytest.fixture
def altered(arrays, tmp_path):
    """Write the checkpoint with one array changed by a function, left out (`None`) or added."""

    def write(name: str, change) -> Path:
        new = arrays | {name: change(arrays[name].copy()) if callable(change) else change}
        np.savez(tmp_path / "altered.npz", **{f"params/{k}": v for k, v in new.items() if v is not None})
        return tmp_path / "altered.npz"

    return write


# Files that are not checkpoints


def truncated(path: Path, share: float) -> bytes:
    content = path.read_bytes()
    return content[: int(share * len(content))]


def damaged(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


def test_files_that_are_not_npz(tmp_path):
    contents = [b"", b"\x00" * 1000, b"not an archive", damaged(BIG_VISION)]
    contents += [truncated(BIG_VISION, share) for share in (0.9, 0.1)]
    paths = [tmp_path / "missing.npz", tmp_path, tmp_path / "array.npy", JET_PYTORCH]
    np.save(tmp_path / "array.npy", np.zeros(3))
    for i, content in enumerate(contents):
        paths.append(tmp_path / f"file{i}.npz")
        paths[-1].write_bytes(content)
    for path in paths:
        with pytest.raises(ValueError, match=rf"{path.name} is not a whole NumPy \.npz file: "):
            convert_big_vision(path)


def test_npz_files_of_something_else(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3), b=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("a", "text")
    np.savez(tmp_path / "nothing.npz")
    for name, has in (("other.npz", "a, b"), ("archive.zip", "a"), ("nothing.npz", "no arrays")):
        with pytest.raises(ValueError, match=rf"{name} is not a checkpoint of big_vision's Jet.* It has {has}\."):
            convert_big_vision(tmp_path / name)


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "file.npz", **{f"{DNN}/init_proj/kernel": np.array([print], dtype=object)})
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        convert_big_vision(tmp_path / "file.npz")


# Checkpoints with an error


@pytest.mark.parametrize(
    "name",
    [
        CHANNEL_MASKS,
        SPATIAL_MASKS,
        f"{DNN}/init_proj/kernel",
        f"{DNN}/posemb",
        f"{DNN}/vit/encoder_norm/scale",
        f"{BLOCK.replace('_0', '_1')}/LayerNorm_0/scale",
        f"{BLOCK}/MlpBlock_0/Dense_1/bias",
        f"{ATTENTION}/key/bias",
        f"{CROSS}/key/kernel",
        f"{CROSS}/out/bias",
    ],
)
def test_a_missing_array_is_named(altered, name):
    with pytest.raises(ValueError, match=f"(lacks the array|has no array) {name}"):
        convert_big_vision(altered(name, None))


@pytest.mark.parametrize("name", [f"{DNN}/vit/encoderblock_3/LayerNorm_0/bias", f"{BLOCK}/LayerNorm_2/bias"])
def test_an_unexpected_array_is_named(altered, name):
    with pytest.raises(ValueError, match=f"has arrays that a Jet of this shape does not have: {name}"):
        convert_big_vision(altered(name, np.zeros((4, 32), np.float32)))


def doubled(mask: np.ndarray) -> np.ndarray:
    mask[0, :, 0] = mask[0, :, 1]
    return mask


KERNEL, BIAS, POSITIONS = f"{DNN}/init_proj/kernel", f"{DNN}/init_proj/bias", f"{DNN}/posemb"
NOT_A_PERMUTATION, ONE_MASK = "is not a permutation matrix", "coupling layer 0 must have one mask, channel or spatial"


@pytest.mark.parametrize(
    "name, change, message",
    [
        (BIAS, lambda a: a[:3], r"init_proj/bias must have a first axis of 4 layers, got \(3, 32\)"),
        (BIAS, lambda a: np.float32(1), r"init_proj/bias must have a first axis of 4 layers, got \(\)"),
        (BIAS, lambda a: a.astype(str), r"init_proj/bias must hold numbers, got <U"),
        (BIAS, lambda a: a.astype(complex), "init_proj/bias must hold numbers, got complex128"),
        (KERNEL, lambda a: a[:3], f"{CHANNEL_MASKS} must hold 3 square matrices"),
        (KERNEL, lambda a: a[:0], "has no coupling layers"),
        (KERNEL, lambda a: a[0, 0], "must hold 32 square matrices"),
        (KERNEL, lambda a: a[:, 0], r"an input projection of shape \(32,\)"),
        (KERNEL, lambda a: a[:, :20], "has patches of 40 numbers, which 3 channels do not fill"),
        (POSITIONS, lambda a: a[:, :, :12], "has 12 patches, which do not form a square image"),
        (POSITIONS, lambda a: a[:, :, :9], r"(?s)does not make a configuration: .*which is 9 patches"),
        (POSITIONS, lambda a: a[:, 0], r"position embeddings of shape \(16, 32\)"),
        (POSITIONS, lambda a: a[..., :20], r"position_embeddings would be of shape \(1, 16, 20\).* \(1, 16, 32\)"),
        (
            f"{DNN}/final_proj/kernel",
            lambda a: a[..., :40],
            r"out_proj.weight would be of shape \(40, 32\).* \(48, 32",
        ),
        (f"{BLOCK}/MlpBlock_0/Dense_0/bias", lambda a: a[:, :99], r"fc1.bias would be of shape \(99,\).* \(128,\)"),
        (f"{BLOCK}/LayerNorm_0/scale", lambda a: a[:, 0], r"do not fit together: .*LayerNorm_0/scale \(\)"),
        (f"{ATTENTION}/key/kernel", lambda a: a[:, :20], r"do not fit together: .*key/kernel \(20, 4, 8\)"),
        (f"{ATTENTION}/key/kernel", lambda a: a.reshape(4, 32, 2, 16), r"different numbers of heads, \[2, 4\]"),
        (f"{CROSS}/out/kernel", lambda a: a.reshape(4, 8, 4, 32), r"different numbers of heads, \[4, 8\]"),
        (CHANNEL_MASKS, lambda a: a[:3], r"must hold 4 square matrices, got shape \(3, 48, 48\)"),
        (SPATIAL_MASKS, lambda a: a[..., :9], r"must hold 4 square matrices, got shape \(4, 16, 9\)"),
        (CHANNEL_MASKS, lambda a: 0.5 * a, NOT_A_PERMUTATION),
        (CHANNEL_MASKS, doubled, NOT_A_PERMUTATION),
        (CHANNEL_MASKS, lambda a: np.where(a, np.nan, 0), NOT_A_PERMUTATION),
        (SPATIAL_MASKS, lambda a: a + (a.any(axis=(1, 2), keepdims=True) & (a == 0)), NOT_A_PERMUTATION),
        (CHANNEL_MASKS, np.zeros_like, ONE_MASK),
        (CHANNEL_MASKS, lambda a: np.roll(a, 1, axis=0), ONE_MASK),
        (SPATIAL_MASKS, lambda a: a + np.eye(16), ONE_MASK),
        (SPATIAL_MASKS, lambda a: a[:, ::-1], r"spatial split of coupling layer 1 is none of \['checkerboard'"),
    ],
)
def test_wrong_shapes_types_and_masks(altered, name, change, message):
    with pytest.raises(ValueError, match=message):
        convert_big_vision(altered(name, change))


# Fields that the user provides


@pytest.mark.parametrize(
    "field, given, shown",
    [
        ("num_attention_heads", 2, 4),
        ("image_size", 32, 16),
        ("patch_size", 2, 4),
        ("hidden_size", 64, 32),
        ("intermediate_size", 64, 128),
        ("num_hidden_layers", 1, 2),
        ("num_coupling_layers", 8, 4),
        ("context_size", 12, 24),
        ("coupling_kinds", ["channels", "channels", "spatial"], ["channels", "spatial"]),
        ("coupling_kinds", [], ["channels", "spatial"]),
        ("spatial_couplings", ["vstripes"], ["hstripes", "vstripes"]),
    ],
)
def test_fields_that_contradict_the_file(field, given, shown):
    message = f"{BIG_VISION} shows {field}={shown}, which contradicts the given {given}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        convert_big_vision(BIG_VISION, **{field: given})


def test_fields_that_agree_with_the_file():
    known = {
        "image_size": 16,
        "num_attention_heads": 4,
        "context_size": 24,
        "coupling_kinds": ("channels", "spatial", "channels", "spatial"),
        "spatial_couplings": ("hstripes", "vstripes"),
    }
    config, _ = convert_big_vision(BIG_VISION, **known, scale_factor=3.0, num_channels=None)
    assert config.to_dict() == convert_big_vision(BIG_VISION)[0].to_dict() | {"scale_factor": 3.0}


def test_fields_that_cannot_work():
    for num_channels in (1, 2, 4, 5, 100, -3):
        message = f"patches of 48 numbers, which {num_channels} channels do not fill with a square: pass the num_chan"
        with pytest.raises(ValueError, match=message):
            convert_big_vision(BIG_VISION, num_channels=num_channels)
    with pytest.raises(ValueError, match="shows context_size=None, which contradicts the given 24"):
        convert_big_vision(WITHOUT_CONTEXT, context_size=24)
    for field, value in {
        "scale_factor": -1.0,
        "num_channels": 0,
        "hidden_act": "gelou",
        "layer_norm_eps": "1e-6",
    }.items():
        with pytest.raises(ValueError, match=f"(?s){BIG_VISION} does not make a configuration: .*{field}"):
            convert_big_vision(BIG_VISION, **{field: value})


# jet-pytorch


def test_files_that_are_not_safetensors(tmp_path):
    paths = [tmp_path / "missing.safetensors", BIG_VISION]
    for i, content in enumerate((b"", b"text", truncated(JET_PYTORCH, 0.9), truncated(JET_PYTORCH, 0.001))):
        paths.append(tmp_path / f"file{i}.safetensors")
        paths[-1].write_bytes(content)
    for path in paths:
        with pytest.raises(ValueError, match=rf"{path.name} is not a whole safetensors file: "):
            convert_jet_pytorch(path, **JET_PYTORCH_FLAGS)


def layer(index: int, name: str) -> str:
    return f"blocks.{index}.dnn.{name}"


@pytest.mark.parametrize(
    "name, change, message",
    [
        (
            layer(0, "init_proj.weight"),
            None,
            "is not a checkpoint of jet-pytorch: it has no array blocks.0.dnn.init_p",
        ),
        (layer(3, "init_proj.weight"), None, "lacks the array blocks.3.dnn.init_proj.weight"),
        (layer(6, "encoder.ln.bias"), None, "lacks the array blocks.6.dnn.encoder.ln.bias"),
        (layer(0, "encoder.blocks.0.ln1.weight"), None, "lacks the array blocks.0.dnn.encoder.blocks.0.ln1.weight"),
        ("channel_projections", None, "lacks the array channel_projections"),
        ("spatial_projections", None, "lacks the array spatial_projections"),
        ("extra", lambda _: torch.zeros(3), "has arrays that a Jet of this shape does not have: extra"),
        (layer(3, "pos_emb"), lambda t: t[:, :9], r"position_embeddings would be of shape \(1, 9, 32\)"),
        (layer(0, "pos_emb"), lambda t: t[0], r"position embeddings of shape \(16, 32\)"),
        (layer(2, "final_proj.bias"), lambda t: t[0], r"do not fit together: final_proj.bias \(\)"),
        ("channel_projections", lambda t: t[:4], "has 4 channels couplings, but coupling_kinds"),
        ("channel_projections", lambda t: t[:, :9], NOT_A_PERMUTATION),
        ("channel_projections", lambda t: t / 2, NOT_A_PERMUTATION),
        ("spatial_projections", lambda t: t.flip(1), "spatial split of coupling layer 2 is none of"),
    ],
)
def test_jet_pytorch_with_an_error(tmp_path, name, change, message):
    tensors = load_file(JET_PYTORCH)
    tensor = tensors.pop(name, None)
    if change is not None:
        tensors[name] = change(tensor).contiguous()
    save_file(tensors, tmp_path / "altered.safetensors")
    with pytest.raises(ValueError, match=message):
        convert_jet_pytorch(tmp_path / "altered.safetensors", **JET_PYTORCH_FLAGS)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_attention_heads": None}, "does not show the number of attention heads: pass num_attention_heads"),
        ({"num_attention_heads": 5}, "`hidden_size` must be divisible by `num_attention_heads`"),
        ({"coupling_kinds": None}, "has 5 channels couplings, but .* 7 layers give 6: pass the coupling_kinds"),
        ({"coupling_kinds": ["spatial"]}, r"has 5 channels couplings, but coupling_kinds \['spatial'\].* give 0"),
        ({"coupling_kinds": ["chanels"]}, "has 5 channels couplings"),
        ({"image_size": 32}, "shows image_size=16, which contradicts the given 32"),
        ({"hidden_act": "relu"}, "shows hidden_act=gelu, which contradicts the given relu"),
        ({"context_size": 4}, "shows context_size=None, which contradicts the given 4"),
        ({"num_channels": 4}, "patches of 48 numbers, which 4 channels do not fill"),
    ],
)
def test_jet_pytorch_with_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        convert_jet_pytorch(JET_PYTORCH, **JET_PYTORCH_FLAGS | fields)


def test_jet_pytorch_in_bfloat16(tmp_path):
    save_file({k: v.bfloat16() for k, v in load_file(JET_PYTORCH).items()}, tmp_path / "half.safetensors")
    config, weights = convert_jet_pytorch(tmp_path / "half.safetensors", **JET_PYTORCH_FLAGS)
    expected_config, expected = convert_jet_pytorch(JET_PYTORCH, **JET_PYTORCH_FLAGS)
    assert config.to_dict() == expected_config.to_dict()
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.dtype == expected[name].dtype
        assert torch.equal(weight, expected[name].bfloat16().to(weight.dtype)), name


# Folders


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_converted_folder_is_whole_and_loads(tmp_path):
    folder = tmp_path / "deep" / "down"
    assert convert_checkpoint("big_vision", BIG_VISION, folder) == folder
    assert list(tmp_path.rglob(".*")) == []
    code = {path.name for path in (ROOT / "src/jet_hf/model").glob("*_jet.py")}
    written = {path.name for path in folder.iterdir()}
    assert {*code, "config.json", "model.safetensors", "preprocessor_config.json"} <= written

    _, weights = convert_big_vision(BIG_VISION)
    model, loading = JetForDensityEstimation.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    assert type(AutoModel.from_pretrained(folder)) is JetForDensityEstimation
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is JetImageProcessor
    assert (processor.size, processor.num_channels) == ({"height": 16, "width": 16}, 3)


def test_an_empty_folder_is_filled_with_a_processor_of_as_many_channels(tmp_path):
    convert_checkpoint("big_vision", FIXTURES / "spatial_only_gray_16px.npz", tmp_path, num_channels=1)
    assert JetConfig.from_pretrained(tmp_path).num_channels == 1
    assert JetImageProcessor.from_pretrained(tmp_path).num_channels == 1


def test_existing_files_are_left_untouched(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine too")
    before = listing(tmp_path)
    for name in ("model", "file"):
        with pytest.raises(FileExistsError, match=f"{name} already exists and is not an empty folder"):
            convert_checkpoint("big_vision", BIG_VISION, tmp_path / name)
    # The refusal comes before a long conversion and before its errors.
    with pytest.raises(FileExistsError):
        convert_checkpoint("big_vision", tmp_path / "missing.npz", tmp_path / "model")
    with pytest.raises(ValueError, match=r"`source` must be one of .*'big_vision'.* got 'tarflow'"):
        convert_checkpoint("tarflow", BIG_VISION, tmp_path / "new")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(self, folder, *args, **kwargs):
        (folder / "half").write_text("written")
        raise error

    monkeypatch.setattr(JetImageProcessor, "save_pretrained", fail)  # after the model
    with pytest.raises(type(error)):
        convert_checkpoint("big_vision", BIG_VISION, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
