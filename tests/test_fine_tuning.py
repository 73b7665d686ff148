"""Fine-tuning: other image sizes, other classes, recipes beside the model, and models that are not there."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, random_images, tiny_config, tiny_model
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from train_process import TINY, like_a_process, train_here, write_images
from transformers import AutoModel

from examples.photographs import load_photograph
from jet_hf import JetConfig, JetForDensityEstimation, JetImageProcessor
from jet_hf.cli import run as run_command
from jet_hf.model.flow_jet import spatial_permutation
from jet_hf.model.modeling_jet import scale_bytes
from jet_hf.model.positions_jet import resize_positions
from jet_hf.training.fine_tuning import adapt_model


# Flags of a run without those of a new model.
NO_MODEL = dict.fromkeys(name for name in TINY if name in JetConfig.__annotations__)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("fine-tuning")
    with like_a_process(root):
        yield root


@pytest.fixture(scope="module")
def images(root):
    """Two classes of training images, three for evaluation in the same classes."""
    folder = write_images(root / "images", size=12)
    for path in list(folder.rglob("*.png")):
        of_class = path.parent / f"class-{int(path.stem) % 2}"
        of_class.mkdir(exist_ok=True)
        path.rename(of_class / path.name)
    return folder


def save(model: JetForDensityEstimation, folder) -> str:
    model.save_pretrained(folder)
    JetImageProcessor(size=model.config.image_size).save_pretrained(folder)
    return str(folder)


# Image sizes


@pytest.mark.parametrize("pattern", ["channels", "checkerboard", "vstripes-inv", "hstripes"])
def test_positions_keep_their_places_in_the_image(pattern):
    """Embeddings that are linear in the place of their patch are so on the other grid, away from its border."""

    def places(rows: int, columns: int) -> torch.Tensor:
        """Row and column of the middle of each token's patch, in fractions of the image: (1, N, 2)."""
        if pattern == "channels":
            patches = torch.arange(rows * columns)
        else:
            half = spatial_permutation(pattern, rows, columns)[: rows * columns // 2]
            patches = half.repeat_interleave(2)
        return (torch.stack([patches // columns, patches % columns], dim=-1)[None] + 0.5) / torch.tensor(
            [rows, columns]
        )

    small, large = places(16, 20), places(24, 28)
    inside = ((large - 0.5).abs() < 0.35).all(dim=2)
    resized = resize_positions(small, (16, 20), (24, 28), pattern)
    assert resized.shape == large.shape and inside.sum() > 100
    torch.testing.assert_close(resized[inside], large[inside], rtol=0, atol=1e-5)
    if pattern != "channels":  # both tokens of a patch
        first, second = small.unflatten(1, (-1, 2)).clone().unbind(2)
        halves = torch.stack([first, second + 5], dim=2).flatten(1, 2)
        shifted = resize_positions(halves, (16, 20), (24, 28), pattern) - resized
        torch.testing.assert_close(
            shifted, torch.tensor([0.0, 5.0]).repeat(24 * 28 // 2)[None, :, None].expand(1, -1, 2)
        )


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dequantization": "flow", "coupling_mode": "masking", "image_size": (12, 4)},
        {"backbone": "cnn", "num_groups": 4, "num_classes": 2},
    ],
)
def test_another_size_keeps_every_weight_but_positions_and_splits(fields, caplog, tmp_path):
    model = tiny_model(**fields)
    size = (8, 12) if "image_size" in fields else 12
    config = JetConfig(
        **{name: getattr(model.config, name) for name in JetConfig.__annotations__} | {"image_size": size}
    )
    with caplog.at_level("INFO", "jet_hf"):
        adapted = adapt_model(model, config)
    (old, new), (old_grid, new_grid) = (
        (("[12, 4]", "[8, 12]"), ("6 x 2", "4 x 6")) if "image_size" in fields else (("8", "12"), ("4 x 4", "6 x 6"))
    )
    message = (
        f"`image_size` {old} -> {new}: position embeddings are interpolated from {old_grid} to {new_grid} patches"
    )
    assert message in caplog.text
    before, after = model.state_dict(), adapted.state_dict()
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"permutation"} | ({"position_embeddings"} if "backbone" not in fields else set())
    for coupling in adapted.jet.couplings:
        assert torch.equal(coupling.permutation, coupling.make_permutation())
    labels = torch.tensor([0, 1]) if "num_classes" in fields else None
    pixels = random_images(2, config)
    latents, _ = adapted.encode(pixels, labels=labels)
    torch.testing.assert_close(adapted.decode(latents, labels=labels)[0], pixels, rtol=0, atol=1e-4)
    assert adapt_model(adapted, config) is adapted
    model.save_pretrained(tmp_path / "small")
    opened = JetForDensityEstimation.from_pretrained(tmp_path / "small", image_size=size, interpolate_positions=True)
    opened.save_pretrained(tmp_path / "large")
    saved = load_file(tmp_path / "large" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in after.items())
    torch.testing.assert_close(opened.encode(pixels, labels=labels)[0], latents)


@torch.no_grad()
def test_a_model_starts_better_with_interpolated_positions_than_with_new_ones():
    folder, noise = ROOT / "space" / "model", torch.full((2, 3, 64, 64), 0.5)
    images = [load_photograph("coffee")[y : y + 64, x : x + 64] for y, x in ((100, 150), (250, 300))]
    pixels = scale_bytes(torch.from_numpy(np.stack(images)).movedim(3, 1))
    given = {"image_size": 64, "interpolate_positions": True}
    bits = JetForDensityEstimation.from_pretrained(folder, **given)(pixels, noise=noise).loss
    new = JetForDensityEstimation.from_pretrained(folder, image_size=64, ignore_mismatched_sizes=True)
    assert bits < new(pixels, noise=noise).loss - 0.3


def test_interpolation_to_the_same_size_and_through_other_doors(tmp_path):
    model, noise = tiny_model(), torch.full((2, 3, 8, 8), 0.5)
    folder, pixels = save(model, tmp_path / "model"), random_images(2, model.config)
    expected = model(pixels, noise=noise).bits_per_dim
    for same in ({}, {"image_size": 8}, {"image_size": (8, 8)}, {"config": model.config}):
        opened = JetForDensityEstimation.from_pretrained(folder, interpolate_positions=True, **same)
        assert torch.equal(opened(pixels, noise=noise).bits_per_dim, expected)
    large = JetForDensityEstimation.from_pretrained(folder, image_size=12, interpolate_positions=True)
    config = tiny_config(image_size=12)
    for other in (
        JetForDensityEstimation.from_pretrained(folder, config=config, interpolate_positions=True),
        AutoModel.from_pretrained(folder, image_size=12, interpolate_positions=True),
    ):
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), large.parameters(), strict=True))
    half = JetForDensityEstimation.from_pretrained(
        folder, image_size=12, interpolate_positions=True, dtype="bfloat16", output_loading_info=True
    )[0]
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16} and config.image_size == 12
    model.requires_grad_(False)
    model.set_image_size((12, 4))
    assert model.sample(1).shape == (1, 3, 12, 4) and not any(tensor.requires_grad for tensor in model.parameters())


def test_interpolation_refuses_other_changes_and_sizes_that_cannot_work(tmp_path):
    folder = save(tiny_model(), tmp_path / "model")
    for fields, message in (
        ({"image_size": 9}, "`image_size` must be divisible by `patch_size`, got image_size=9 and patch_size=2"),
        ({"image_size": 6}, "the number of patches must be even"),
        (
            {"image_size": 12, "num_channels": 1},
            "`num_channels` must be 3, as in .*, got 1: `interpolate_positions`",
        ),
        (
            {"patch_size": 4},
            "`patch_size` must be 2, as in .*, got 4: `interpolate_positions`",
        ),
        ({"image_size": 12, "permutation_seed": 1}, "`permutation_seed` must be 0, with which the weights of"),
    ):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            JetForDensityEstimation.from_pretrained(folder, interpolate_positions=True, **fields)
    with pytest.raises(ValueError, match="`interpolate_positions` must be False without saved weights, got True"):
        JetForDensityEstimation.from_pretrained(
            None, config=tiny_config(), state_dict=tiny_model().state_dict(), interpolate_positions=True
        )


def test_a_split_that_is_not_the_configurations_cannot_be_resized():
    model = tiny_model()
    model.jet.couplings[4].permutation.copy_(model.jet.couplings[4].permutation.flip(0))
    with pytest.raises(ValueError, match=r"`image_size` cannot be changed: `jet.couplings.4.permutation` is not"):
        adapt_model(model, tiny_config(image_size=12))


# Classes


@torch.no_grad()
def test_other_classes_get_a_new_embedding_and_a_model_without_classes_starts_as_it_was(caplog):
    plain, conditional = tiny_model(), tiny_model(num_classes=10)
    pixels, noise = random_images(3, plain.config), torch.full((3, 3, 8, 8), 0.5)
    with caplog.at_level("INFO", "jet_hf"):
        new = adapt_model(plain, tiny_config(num_classes=5), seed=1)
        other = adapt_model(conditional, tiny_config(num_classes=5), seed=1)
    assert "`num_classes` None -> 5: a new embedding of the classes and cross-attention to it, which" in caplog.text
    assert "`num_classes` 10 -> 5: a new embedding of the classes." in caplog.text
    labels, none, none_of_ten = torch.tensor([0, 2, 4]), torch.full((3,), 5), torch.full((3,), 10)
    expected = plain(pixels, noise=noise).bits_per_dim
    torch.testing.assert_close(new.eval()(pixels, noise=noise, labels=labels).bits_per_dim, expected)
    expected = conditional(pixels, noise=noise, labels=none_of_ten).bits_per_dim
    torch.testing.assert_close(other.eval()(pixels, noise=noise, labels=none).bits_per_dim, expected)
    assert not torch.allclose(other(pixels, noise=noise, labels=labels).bits_per_dim, expected)
    assert other.jet.label_embedding.weight.shape == (5, 16)
    repeated = adapt_model(conditional, tiny_config(num_classes=5), seed=1).jet.label_embedding.weight
    assert torch.equal(repeated, other.jet.label_embedding.weight)


# Runs


def test_a_run_at_another_size_with_new_classes_resumes_bit_for_bit(root, images):
    fields = NO_MODEL | {"dataset_path": images, "max_steps": 4, "save_steps": 2, "eval_steps": 0}
    fields |= {"model_name_or_path": save(tiny_model(), root / "origin"), "image_size": 12, "num_classes": 2}
    train_here(**fields, output_dir=root / "tuned")
    tuned = JetForDensityEstimation.from_pretrained(root / "tuned")
    assert (tuned.config.image_size, tuned.config.num_classes, tuned.config.hidden_size) == (12, 2, 16)
    assert JetImageProcessor.from_pretrained(root / "tuned").size["height"] == 12
    shutil.copytree(root / "tuned" / "checkpoint-2", root / "resumed" / "checkpoint-2")
    train_here(**fields, output_dir=root / "resumed", resume_from_checkpoint="latest")
    ours, theirs = (load_file(root / name / "model.safetensors") for name in ("resumed", "tuned"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ValueError, match=r"cannot resume from .*`model.num_classes` was 2 and is now 3"):
        train_here(**fields | {"num_classes": 3}, output_dir=root / "resumed", resume_from_checkpoint="latest")


def test_a_models_own_recipe_may_stand_beside_it_and_a_difference_is_named(root, images, tmp_path):
    model = save(tiny_model(), tmp_path / "model")
    recipe = {name: value for name, value in TINY.items() if name in JetConfig.__annotations__}
    recipe |= {"coupling_kinds": list(JetConfig.coupling_kinds), "scale_factor": 2.0, "num_classes": None}
    (tmp_path / "model" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    fields = NO_MODEL | {"config": tmp_path / "model" / "recipe.yaml", "model_name_or_path": model}
    fields |= {"dataset_path": images, "output_dir": tmp_path / "run", "max_steps": 1, "eval_steps": 0}
    train_here(**fields, sample_steps=0)
    assert JetConfig.from_pretrained(tmp_path / "run").image_size == 8
    fields["output_dir"] = tmp_path / "other"
    for name, value, saved in (("patch_size", 4, 2), ("num_channels", 1, 3), ("hidden_size", 32, 16)):
        expected = f"`{name}` must be {saved}, as in the model .*, got {value}: .* only image_size and num_classes"
        with pytest.raises(ValueError, match=expected):
            train_here(**fields | {name: value})
    with pytest.raises(StrictDataclassError, match="`image_size` must be divisible by `patch_size`"):
        train_here(**fields | {"image_size": 9})
    assert not (tmp_path / "other").exists()


# Models that are not there


@pytest.fixture
def fail(monkeypatch, tmp_path, images):
    """Run a command in a folder; return its line on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, model: str) -> str:
        flags = {
            "train": ["--dataset_path", str(images), "--model_name_or_path", model],
            "evaluate": ["--dataset", str(images), "--model", model],
            "sample": ["--model", model],
        }[command]
        with pytest.raises(SystemExit) as stop:
            run_command([command, *flags])
        assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
        return stop.value.code

    return call


@pytest.mark.parametrize("command", ["train", "evaluate", "sample"])
def test_a_mistyped_path_is_called_a_path(fail, tmp_path, command):
    argument = "model_name_or_path" if command == "train" else "model"
    (tmp_path / "runs" / "photographs" / "checkpoint-200").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for model, message in {
        "./nowhere": "./nowhere is a path that does not exist.",
        "/nowhere/at/all": "/nowhere/at/all is a path that does not exist.",
        "runs/photgraphs": "runs/photgraphs is a path that does not exist: did you mean runs/photographs?",
        "runs/photographs": "runs/photographs must be the folder of a model, but it has no config.json; its "
        "checkpoints, such as runs/photographs/checkpoint-200, hold models.",
        "file": "file must be the folder of a model, but it is a file.",
        "someone/model": "someone/model is no folder here and cannot be loaded from the Hub: ",
        "bert": "must be a Jet, but bert is a model of type bert.",
    }.items():
        assert fail(command, model).startswith(f"error: `{argument}` {message}"), model
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "file", "bert"}


def test_a_recipe_that_needs_another_run_says_which_to_train_first(fail, tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.yaml").write_text("ingredients: [flour]\n")
    (tmp_path / "recipes" / "imagenet21k_64.yaml").write_text("output_dir: runs/imagenet21k_64\n")
    expected = "error: `model_name_or_path` runs/imagenet21k_64 does not exist yet: train it first by "
    expected += "`jet-hf train --config recipes/imagenet21k_64.yaml`."
    assert fail("train", "runs/imagenet21k_64") == expected
