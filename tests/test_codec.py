"""
Files of the codec are exact, weigh what the model says, and are refused when they are damaged.

    python -m pytest tests/test_codec.py --codec-crops 4096 --codec-mutations 10000
"""

import json
import os
import subprocess
import sys
import tracemalloc
from inspect import getsource

import numpy as np
import pytest
import torch
from conftest import FIXTURES, ROOT, tiny_config, tiny_model
from PIL import Image
from train_process import ForkedScript

import jet_hf_cli
from examples.photographs import load_photograph
from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.codec import container, integer_flow, stack
from jet_hf.analysis.codec.encoder import Encoder
from jet_hf.analysis.codec.integer_flow import IntegerFlow
from jet_hf.analysis.codec.stack import Stack
from jet_hf.analysis.codec.tables import base_density, sigmoid_scales
from jet_hf.codec import Codec, CodecError, compress, decompress, estimate
from jet_hf.commands.decompress import png_names
from jet_hf.model.modeling_jet import scale_bytes
from jet_hf.utils.noise import uniform_noise


SHAPES = [(8, 8), (20, 30), (5, 7), (16, 48), (8, 8), (1, 1)]


def random_pixels(shapes=SHAPES, channels: int = 3, levels: int = 256, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(levels, size=(*shape, channels), dtype=np.uint8) for shape in shapes]


def photograph_crops(count: int, size: int = 32) -> np.ndarray:
    """Return crops of the held-out photographs, uint8 (count, size, size, 3)."""
    rng, crops = np.random.default_rng(0), []
    photographs = [load_photograph(name) for name in ("china", "coffee")]
    for i in range(count):
        photograph = photographs[i % 2]
        top, left = (rng.integers(extent - size + 1) for extent in photograph.shape[:2])
        crops.append(photograph[top : top + size, left : left + size])
    return np.stack(crops)


def assert_exact(images, found) -> None:
    assert len(images) == len(found)
    for image, other in zip(images, found, strict=True):
        assert other.dtype == np.uint8 and np.array_equal(image, other)


@pytest.fixture(scope="module")
def shipped() -> JetForDensityEstimation:
    return JetForDensityEstimation.from_pretrained(ROOT / "space" / "model").eval()


# Parts


@pytest.mark.parametrize("num_words", [0, 3, 3000])
def test_the_stack_undoes_every_operation(monkeypatch, num_words):
    """Also on an empty stack, and across the words that are set aside."""
    monkeypatch.setattr(stack, "NUM_ACTIVE_WORDS", 256)
    rng = np.random.default_rng(0)
    start = rng.integers(1, 2**32, num_words, dtype=np.uint32).tobytes()
    density = base_density(1020)
    # Latents of all sizes: within the table, and on either side far beyond it.
    cells = np.rint(rng.normal(size=5000) * 1020 * 10.0 ** rng.integers(0, 8, 5000)).astype(np.int64)
    scales = sigmoid_scales(2.0)
    places = rng.integers(len(scales.shifts), size=5000)
    pushed = Stack(start)
    noise = pushed.pop_uniform(2000, 8)
    values = pushed.scale(cells, scales.multipliers[places], scales.shifts[places])
    pushed.push_latents(values, density)
    pushed.push_bytes(b"\0\0jet\xff")
    popped = Stack(pushed.to_bytes())
    assert popped.pop_bytes(6) == b"\0\0jet\xff"
    assert np.array_equal(popped.pop_latents(5000, density), values)
    assert np.array_equal(popped.unscale(values, scales.multipliers[places], scales.shifts[places]), cells)
    popped.push_uniform(noise, 8)
    assert popped.to_bytes() == start


def test_scaling_costs_the_logarithm_of_the_scale():
    scales = sigmoid_scales(2.0)
    ratio = scales.multipliers / 2.0**scales.shifts
    raw = np.arange(-2048, 2049) / 128
    expected = 2 / (1 + np.exp(-raw))
    in_range = expected > 2.0**-15
    assert np.abs(ratio / expected - 1)[in_range].max() < 1 / 511
    assert np.allclose(scales.bits(), -np.log2(ratio), rtol=0, atol=1e-12)
    rng = np.random.default_rng(0)
    places = rng.integers(1000, 3000, size=20000)
    bits = Stack(rng.integers(1, 2**32, 20000, dtype=np.uint32).tobytes())
    before = bits.num_bits
    bits.scale(rng.integers(-1000, 1000, 20000), scales.multipliers[places], scales.shifts[places])
    assert bits.num_bits - before == pytest.approx(scales.bits()[places].sum(), abs=2)


def test_the_table_of_the_base_density_is_the_normal_density():
    """It gives no more bits than N(0, 1) to a latent of N(0, 1), and fewer to outliers."""
    density = base_density(1020)
    cells = np.rint(np.random.default_rng(0).normal(size=100_000) * 1020).astype(np.int64)
    excess = (density.table_bits(cells) - density.normal_bits(cells)).mean()
    assert abs(excess) < 2e-4
    outliers = np.array([-9000, 8000])
    assert (density.table_bits(outliers) < density.normal_bits(outliers)).all()
    bits = Stack()
    bits.push_latents(cells, density)
    assert bits.num_bits == pytest.approx(density.table_bits(cells).sum(), rel=1e-4)


# Images

VARIANTS = {
    "channels": {"coupling_kinds": ["channels"]},
    "pairing": {},
    "masking": {"coupling_mode": "masking", "coupling_kinds": ["spatial"]},
    "cnn": {"backbone": "cnn", "num_groups": 2},
    "glow": {"use_actnorm": True, "use_invertible_dense": True},
    "gray": {"num_channels": 1},
    "17 levels": {"num_levels": 17},
    "classes": {"num_classes": 4},
    "scale factor": {"scale_factor": 3.0},
    "64 layers": {"num_coupling_layers": 64},
    "not square": {"image_size": (8, 4)},
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_images_of_all_sizes_are_exact_at_the_models_rate(fields):
    model = tiny_model(**fields)
    config = model.config
    # Smooth images, that far latents do not hide a wrong map.
    ramp = np.add.outer(np.arange(64), np.arange(40)) * (config.num_levels - 1) // 110
    smooth = np.repeat(ramp[:, :, None], config.num_channels, axis=2).astype(np.uint8)
    images = [*random_pixels(channels=config.num_channels, levels=config.num_levels), smooth]
    labels = [0, 1, 2, 3, 4, 0, 0] if config.num_classes else None
    codec = Codec(model)
    data, weight = codec.compress(images, labels, allow_webp=False)
    assert_exact(images, decompress(data, model))
    tally = weight.tally
    assert weight.stack_bits >= tally.maps + tally.table - 1

    _, height, width = config.image_shape
    tiles = smooth.reshape(64 // height, height, 40 // width, width, -1).swapaxes(1, 2)
    tiles = tiles.reshape(-1, *tiles.shape[2:])
    data, weight = codec.compress(list(tiles), labels and [1] * len(tiles), allow_webp=False, verify=False)
    scored = tiles[-weight.tally.num_dims // tiles[0].size :]
    pixel_values = scale_bytes(torch.from_numpy(scored).permute(0, 3, 1, 2), config.num_levels)
    given = None if labels is None else torch.ones(len(scored), dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        repeated = pixel_values.repeat(24, 1, 1, 1), None if given is None else given.repeat(24)
        draws = model(repeated[0], labels=repeated[1], generator=generator).bits_per_dim.view(24, -1).mean(dim=1)
    expected, spread = draws.mean().item(), draws.std().item()
    coded = (weight.tally.maps + weight.tally.normal) / weight.tally.num_dims
    assert coded == pytest.approx(expected, abs=4 * spread + 0.004)


def test_flat_random_and_tiny_images_are_exact():
    model = tiny_model()
    flat = [np.full((40, 40, 3), level, dtype=np.uint8) for level in (0, 255)]
    images = [*flat, *random_pixels([(64, 64), (1, 1), (8, 8), (3, 200), (200, 3)])]
    assert_exact(images, decompress(compress(images, model, allow_webp=False, verify=False), model))
    codec = Codec(model)
    for image in images:
        data, _ = codec.compress([image], allow_webp=False, verify=False)
        ((kind, header, body),) = container.unpack(data)
        assert_exact([image], [found for _, found in codec.decode(kind, header, body)])
    assert decompress(compress([], model), model) == []
    assert len(compress(flat, model)) < 400  # as WebP


def test_an_image_longer_than_webp_allows_is_exact():
    image = np.arange(16_400 * 3, dtype=np.uint8).reshape(1, -1, 3)
    assert_exact([image], decompress(compress([image], tiny_model()), tiny_model()))


def test_gray_images_need_no_channel_axis():
    model, (image,) = tiny_model(num_channels=1), random_pixels([(20, 20)], channels=1)
    assert_exact([image], decompress(compress([image[:, :, 0]], model), model))


def test_a_file_has_many_groups_and_flat_memory(monkeypatch):
    """The stack sets words aside and takes them back, and tiles wait for their group only."""
    monkeypatch.setattr(stack, "NUM_ACTIVE_WORDS", 128)
    model, images = tiny_model(), random_pixels([(24, 40)] * 40)
    reader = Encoder(IntegerFlow(model, 8))
    waiting = []
    for image in images:
        reader.add(image, None)
        waiting.append(len(reader._tiles))
    assert max(waiting) < 32 and len(reader.steps) > 20 and reader.stack._settled
    assert_exact(images, decompress(compress(images, model, allow_webp=False, verify=False), model))


# Rates


@pytest.fixture(scope="module")
def crops(request) -> np.ndarray:
    return photograph_crops(request.config.getoption("--codec-crops"))


@pytest.fixture(scope="module")
def file_of_crops(shipped, crops):
    """Return a file of crops and its parts."""
    return Codec(shipped).compress(list(crops), allow_webp=False, verify=False)


def test_the_rate_is_the_models(shipped, crops, file_of_crops):
    """
    The tiles of a file take the bits that the model gives them, within 0.005 bits per dimension.

    Codec and model dequantize with other noise. The variance of the scores between draws bounds the difference that
    comes of it, at 95 % confidence.
    """
    data, weight = file_of_crops
    assert_exact(crops, decompress(data, shipped))
    tally = weight.tally
    # Tiles that are not among the first ones, which are coded as WebP.
    scored = torch.from_numpy(crops[-tally.num_dims // crops[0].size :]).permute(0, 3, 1, 2)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        draws = [shipped(scale_bytes(scored), generator=generator).bits_per_dim.double() for _ in range(2)]
    scores = torch.stack(draws)
    error = (scores.var(dim=0).mean() * (1 + 1 / len(draws)) / len(scored)).sqrt().item()
    # The coder gives outliers fewer bits than N(0, 1).
    correction = (tally.table - tally.normal) / tally.num_dims
    difference = weight.stack_bits / tally.num_dims - correction - scores.mean().item()
    assert abs(difference) + 1.96 * error < 0.005
    assert -0.005 < correction <= 0


def test_the_estimate_is_near_the_size(shipped, crops):
    """Of a photograph, which the shipped model leaves to WebP, and of noise, which no WebP makes smaller."""
    for images, model in (([np.concatenate(list(crops[:8]))], shipped), (random_pixels([(128, 128)]), tiny_model())):
        size = len(compress(images, model, verify=False))
        assert estimate(images, model) == pytest.approx(size, rel=0.02)


# Determinism


def philox_model(**fields) -> JetForDensityEstimation:
    """Return a model whose weights are the same on every machine and with every version of PyTorch."""
    model = JetForDensityEstimation(tiny_config(**fields)).eval()
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(model.named_parameters())):
            noise = uniform_noise(0, torch.tensor([i]), tuple(parameter.shape))[0]
            parameter.copy_((noise - 0.5) * 0.5)
    return model


def test_a_file_of_an_earlier_commit_is_read():
    """Its pixels are the bytes of a formula: see `fixtures/codec.jet`, made by `write_fixture` below."""
    model = philox_model()
    assert_exact(fixture_images(), decompress((FIXTURES / "codec.jet").read_bytes(), model))


def fixture_images() -> list[np.ndarray]:
    grid = np.add.outer(np.arange(36) ** 2, 3 * np.arange(52)) % 256
    return [np.stack([grid, grid[::-1], grid[:, ::-1]], axis=2).astype(np.uint8)]


def write_fixture() -> None:
    data = compress(fixture_images(), philox_model(), allow_webp=False)
    (FIXTURES / "codec.jet").write_bytes(data)


def encode_group(model: JetForDensityEstimation, tiles: np.ndarray, batch_size: int) -> bytes:
    """Return the stack of a group of tiles, of which a file has many only after its first hundred tiles."""
    group = Stack()
    IntegerFlow(model, batch_size).encode(group, tiles, None, 0.5)
    return group.to_bytes()


def decode_group(model: JetForDensityEstimation, data: bytes, count: int, batch_size: int) -> np.ndarray:
    group = Stack(data)
    tiles = IntegerFlow(model, batch_size).decode(group, count, None, 0.5)
    assert group.to_bytes() == b""
    return tiles


@pytest.fixture(scope="module")
def group(shipped, crops) -> tuple[np.ndarray, bytes]:
    return crops[:4], encode_group(shipped, crops[:4], 3)


def test_batches_and_threads_change_no_file(shipped, group):
    (tiles, data), num_threads = group, torch.get_num_threads()
    assert encode_group(shipped, tiles, 1) == data
    torch.set_num_threads(2)
    try:
        assert encode_group(shipped, tiles, 32) == data
        assert np.array_equal(decode_group(shipped, data, len(tiles), 32), tiles)
    finally:
        torch.set_num_threads(num_threads)


# Instruction sets of PyTorch and MKL. Every machine has the plainest.
MACHINES = {
    "plain": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"},
}


def test_another_instruction_set_reads_and_writes_the_same_file(group, tmp_path, request):
    tiles, data = group
    np.save(tmp_path / "tiles.npy", tiles)
    (tmp_path / "here").write_bytes(data)
    # Neither this module nor the collections of garbage that imports cause.
    code = f"""
import gc, os, sys
gc.disable()
from pathlib import Path
import numpy as np
import torch
from jet_hf import JetForDensityEstimation
from jet_hf.analysis.codec.integer_flow import IntegerFlow
from jet_hf.analysis.codec.stack import Stack
{getsource(encode_group)}
{getsource(decode_group)}
folder = Path({str(tmp_path)!r})
tiles, data = np.load(folder / "tiles.npy"), (folder / "here").read_bytes()
model = JetForDensityEstimation.from_pretrained({str(ROOT / "space" / "model")!r}).eval()
print(torch.backends.cpu.get_cpu_capability())
assert np.array_equal(decode_group(model, data, len(tiles), 8), tiles)
assert encode_group(model, tiles, 8) == data
sys.stdout.flush()
os._exit(0)  # Python takes a second to end a process with so many objects
"""
    names = MACHINES if request.config.getoption("--codec-crops") > 1000 else ["plain"]
    for name in names:
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | MACHINES[name], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert MACHINES[name]["ATEN_CPU_CAPABILITY"].upper() in done.stdout.decode()


def test_values_near_a_rounding_boundary_are_encoded_again(monkeypatch):
    model, images = tiny_model(), random_pixels([(32, 32)])
    codec = Codec(model)
    monkeypatch.setattr(integer_flow, "MARGIN", 1e-4)
    data, weight = codec.compress(images, allow_webp=False)
    assert weight.num_retries > 0
    ((_, header, _),) = container.unpack(data)
    assert any(kind == container.GROUP and rest[-1] > 0 for kind, *rest in header.steps)
    # With no offset left, tiles are coded as WebP.
    monkeypatch.setattr(integer_flow, "MARGIN", 0.6)
    without, weight = codec.compress(images, allow_webp=False)
    assert weight.tally.num_dims == 0
    monkeypatch.undo()
    for file in (data, without):
        assert_exact(images, decompress(file, model))


# What the file holds


def test_files_one_after_another_are_one_file():
    model = tiny_model()
    first, second = random_pixels([(20, 20), (8, 8)]), random_pixels([(9, 30)], seed=1)
    data = compress(first, model, allow_webp=False) + compress(second, model)
    assert_exact([*first, *second], decompress(data, model))


def test_names_and_classes_are_kept():
    model, images = tiny_model(num_classes=3), random_pixels()
    data, _ = Codec(model).compress(images, [3, 1, 1, 0, 2, 3], names=list("abcdéf"), allow_webp=False)
    ((_, header, _),) = container.unpack(data)
    assert header.names == list("abcdéf") and header.image_labels() == [3, 1, 1, 0, 2, 3]


# Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise_std": 0.1}, "`noise_std` must be None"),
        ({"dequantization": "flow"}, "`dequantization` must be 'uniform'"),
        ({"context_size": 4}, "`context_size` must be None"),
        ({"num_levels": 300}, "`num_levels` must be at most 256"),
        ({"num_channels": 2}, "`num_channels` must be 1 or 3"),
        ({"scale_factor": 200.0}, "`scale_factor` must be at most 128"),
    ],
)
def test_models_without_integer_maps_are_refused(fields, message):
    model = tiny_model(**fields)
    for use in (lambda: compress([], model), lambda: decompress(b"", model), lambda: estimate([], model)):
        with pytest.raises(ValueError, match=message):
            use()


def test_wrong_arguments_are_refused(model):
    good = random_pixels([(9, 9)])[0]
    for bad, message in [
        (good.astype(np.float32), r"`images\[1\]` must be a uint8 array \(H, W, 3\).*float32"),
        (good[:, :, 0], r"got uint8 \(9, 9\)"),
        (np.zeros((9, 9, 4), np.uint8), r"got uint8 \(9, 9, 4\)"),
        (good[:0], r"got uint8 \(0, 9, 3\)"),
    ]:
        for use in (compress, estimate):
            with pytest.raises(ValueError, match=message):
                use([good, bad], model)
    with pytest.raises(ValueError, match="`names` must have one name for each of 1 images, got 2"):
        compress([good], model, names=["a", "b"])
    with pytest.raises(ValueError, match="`labels` must be None"):
        compress([good], model, labels=[0])
    with pytest.raises(ValueError, match="`labels` must be 1 numbers from 0 to 3"):
        compress([good], tiny_model(num_classes=3), labels=[4])
    with pytest.raises(ValueError, match="levels from 0 to 16, got 255"):
        compress([np.full((8, 8, 3), 255, np.uint8)], tiny_model(num_levels=17))
    with pytest.raises(ValueError, match="`batch_size`"):
        compress([good], model, batch_size=0)


def test_files_of_other_models_and_versions_are_refused(model, monkeypatch):
    data = compress(random_pixels(), model, allow_webp=False)
    other = tiny_model()
    with torch.no_grad():
        other.jet.couplings[2].conditioner.out_proj.bias[5] += 1e-3
    for wrong in (other, tiny_model(scale_factor=2.5), tiny_model(coupling_kinds=["channels"])):
        with pytest.raises(CodecError, match=r"must be decompressed with the model .* that made it"):
            decompress(data, wrong)
    half = tiny_model().bfloat16()
    rounded = tiny_model()
    rounded.load_state_dict(half.state_dict())
    assert_exact(random_pixels(), decompress(compress(random_pixels(), half, allow_webp=False), rounded))
    monkeypatch.setattr(container, "VERSION", 2)
    with pytest.raises(CodecError, match="version 2, got 1"):
        decompress(data, model)
    monkeypatch.undo()
    monkeypatch.setattr(integer_flow, "OFFSETS", (0.5,))
    monkeypatch.setattr("jet_hf.analysis.codec.api.OFFSETS", (0.5,))
    with pytest.raises(CodecError, match="codec settings"):
        decompress(data, model)
    for text in (b"", b"\x89PNG\r\n", b"\x89JE"):
        with pytest.raises(CodecError, match=r"no file of `jet-hf compress`|cut short"):
            decompress(text, model)


def test_damaged_files_are_refused(request):
    """Whatever bytes change, the error is one class, and no memory is taken for what a file claims to hold."""
    model, rng = tiny_model(num_coupling_layers=2), np.random.default_rng(0)
    files = [compress(random_pixels(), model, allow_webp=allow, verify=False) for allow in (True, False)]
    count = request.config.getoption("--codec-mutations")
    tracemalloc.start()
    for i in range(count):
        damaged = bytearray(files[i % 2])
        place = int(rng.integers(len(damaged)))
        if i % 5 == 0:
            del damaged[place:]
        elif i % 5 == 1:
            del damaged[place : place + int(rng.integers(1, 9))]
        elif i % 5 == 2:
            damaged[place:place] = rng.bytes(int(rng.integers(1, 9)))
        elif i % 5 == 3:
            damaged += rng.bytes(int(rng.integers(1, 9)))
        else:
            damaged[place] ^= int(rng.integers(1, 256))
        with pytest.raises(CodecError):
            list(container.unpack(bytes(damaged)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_wrong_contents_with_right_checksums_are_refused(model):
    """Headers and bodies that no encoder writes end in the same error, also where nothing was damaged on the way."""
    images, rng = random_pixels(), np.random.default_rng(0)
    codec = Codec(model)
    for allow_webp in (True, False):
        given = [images[0] * 0] if allow_webp else images
        data, _ = codec.compress(given, allow_webp=allow_webp, verify=False)
        ((kind, header, body),) = container.unpack(data)
        wrong = []
        for i in range(8):
            mutated = bytearray(body)
            place = int(rng.integers(len(mutated)))
            mutated[place] ^= int(rng.integers(1, 256))
            wrong.append((header, mutated if i % 2 else mutated[: 4 * int(rng.integers(len(body) // 4))]))
        text = json.dumps(vars(header))
        for old, new in [
            ('"pixels": ', '"pixels": 1'),
            ("[1, 8, 8]", "[2, 8, 8]"),
            ("[1, 8, 8]", "[1, 8, 80]"),
            ("[1, 8, 8]", "[1099511627775, 1, 1]"),
            ("[1, 8, 8]", "[1, 8]"),
            ('"steps": [[', '"steps": [[7, 1], ['),
            ('"steps": [[', '"steps": [[1, 1, 1], ['),
            ('"steps": [[0, ', '"steps": [[0, 99'),
            ('"steps": [[', '"steps": [[1, 0, 8], ['),
        ]:
            if old in text:
                wrong.append((container.Header(**json.loads(text.replace(old, new, 1))), body))
        assert len(wrong) > 12
        for changed, content in wrong:
            try:
                (file,) = container.unpack(container.pack(kind, changed, bytes(content)))
                found = dict(codec.decode(*file))
            except CodecError:
                continue
            # Some bits of a WebP image, which also codes first tiles and strips, have no meaning.
            assert changed is header
            assert_exact(given, [found[i] for i in range(len(found))])


# Commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a saved model and images of all modes."""
    folder = tmp_path_factory.mktemp("codec")
    model = tiny_model()
    model.save_pretrained(folder / "model")
    JetImageProcessor(size=model.config.image_size).save_pretrained(folder / "model")
    (folder / "images").mkdir()
    image = Image.fromarray(random_pixels([(20, 30)])[0])
    for name, mode in (("a", "RGB"), ("b", "L"), ("c", "P"), ("d", "1")):
        image.convert(mode).save(folder / "images" / f"{name}.png")
    image.convert("RGBA").save(folder / "clear.png")
    return folder


def jet_hf(*words) -> None:
    jet_hf_cli.main([str(word) for word in words])


def test_commands_restore_images_with_their_names(folder, tmp_path, capsys):
    paths = sorted((folder / "images").iterdir())
    options = ["--model", folder / "model", "-o"]
    jet_hf("compress", *paths, paths[0], *options, tmp_path / "all.jet", "--no_allow_webp")
    jet_hf("decompress", tmp_path / "all.jet", *options, tmp_path / "out")
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["00000_a.png", "00004_a.png", "b.png", "c.png", "d.png"]  # two images have the name a.png
    for path in paths:
        name = "00004_a.png" if path.stem == "a" else path.name
        with Image.open(path) as image, Image.open(tmp_path / "out" / name) as other:
            assert np.array_equal(image.convert("RGB"), other)
    assert "5 image(s) in " in capsys.readouterr().out


def test_two_processes_make_one_file(folder, tmp_path, monkeypatch):
    # The processes come from the server of trainings, which has imported all that they need.
    monkeypatch.setattr(ForkedScript.context, "set_forkserver_preload", lambda modules: None)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setattr("jet_hf.commands.compress.IMAGES_OF_PART", 3)
    paths = sorted((folder / "images").iterdir())
    options = ["--model", folder / "model", "-o"]
    jet_hf("compress", *paths, "--num_proc", 2, *options, tmp_path / "all.jet")
    assert [header.num_images for _, header, _ in container.unpack((tmp_path / "all.jet").read_bytes())] == [3, 1]
    jet_hf("decompress", tmp_path / "all.jet", *options, tmp_path / "out")
    for path in paths:
        with Image.open(path) as image, Image.open(tmp_path / "out" / path.name) as other:
            assert np.array_equal(image.convert("RGB"), other)


def test_names_of_a_file_stay_in_their_folder():
    header = container.Header(3, [[5, 8, 8]], 0, ["../../a.png", "/etc/b", "..", "c\\d.png", ""], "", "", [], [])
    assert png_names([header]) == ["a.png", "b.png", "00002.png", "d.png", "00004.png"]


def test_commands_refuse_wrong_files_before_they_write(folder, tmp_path):
    (tmp_path / "text.jet").write_text("not a file of the codec")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    image = folder / "images" / "a.png"
    jet_hf("compress", image, "-o", tmp_path / "a.jet", "--model", folder / "model")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    for words, message in (
        (
            ["compress", folder / "clear.png", "-o", out],
            "clear.png must be an image of the mode RGB or L or 1 or P",
        ),
        (["compress", folder / "none.png", "-o", out], "none.png"),
        (["compress", image, "-o", image], "`output` must not be one of the images"),
        (["compress", image, "-o", tmp_path / "none" / "out"], "`output` must be a file in an existing folder"),
        (["decompress", tmp_path / "text.jet", "-o", out], "the data are no file of `jet-hf compress`"),
        (["decompress", tmp_path / "a.jet", "-o", tmp_path / "full"], "already exists and is not an empty folder"),
        (["compress", image, "-o", out, "--label", 0], "`labels` must be None for a model without classes"),
    ):
        with pytest.raises(SystemExit) as stop:
            jet_hf(*words, "--model", folder / "model")
        assert str(stop.value).startswith("error: ") and message in str(stop.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_weigh_explains_every_bit(folder, tmp_path, capsys):
    words = ["--model", folder / "model", "--dataset", folder / "images", "--split", "all"]
    jet_hf("weigh", *words, "--random_crops_per_image", 10, "-o", tmp_path / "crops.jet")
    stdout, stderr = capsys.readouterr()
    result = json.loads(stdout)
    data = (tmp_path / "crops.jet").read_bytes()
    assert result["num_bytes"] == len(data) and result["num_images"] == 40
    assert sum(result["terms"].values()) == pytest.approx(result["file_bits_per_dim"], abs=1e-9)
    assert result["terms"]["model"] == pytest.approx(result["bits_per_dim"])
    assert result["file_bits_per_dim"] == pytest.approx(8 * len(data) / (40 * 8 * 8 * 3))
    assert len(decompress(data, JetForDensityEstimation.from_pretrained(folder / "model"))) == 40
    assert {"png", "webp", "jpegls", "jpegxl"} == result["codecs"].keys()
    assert "jpegxl" in stderr and "rounding" in stderr


# The gates of a release, which take minutes


def test_whole_photographs_are_exact(shipped, request):
    """Reduced by a factor of four in an ordinary run."""
    factor = 1 if request.config.getoption("--codec-crops") > 1000 else 4
    for name in ("china", "coffee"):
        photograph = load_photograph(name)[::factor, ::factor]
        data = compress([photograph], shipped, allow_webp=False, verify=False)
        assert_exact([photograph], decompress(data, shipped))
