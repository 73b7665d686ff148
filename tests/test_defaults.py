"""What a newcomer types: training without a recipe, and runs that do not fit the memory."""

import shutil

import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import ROOT, random_bytes
from PIL import Image
from safetensors.torch import load_file
from train_process import TINY, like_a_process, train_here, write_images

from jet_hf import JetConfig, JetForDensityEstimation
from jet_hf.analysis.cost import LiveMemory
from jet_hf.arguments import SIZES, SMALL_RUN, TrainArguments, parse_arguments
from jet_hf.data import Batch
from jet_hf.training import Trainer
from jet_hf.training.dry_run import estimate_run, least_memory


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("defaults")
    with like_a_process(root):
        yield root


@pytest.fixture(scope="module")
def photos(root):
    return write_images(root / "photos", num_train=20, num_validation=3, size=40)


# The small run


def test_without_a_recipe_and_sizes_the_model_is_that_of_the_photographs_recipe(caplog):
    with caplog.at_level("INFO", "jet_hf"):
        arguments = parse_arguments(["--dataset_path", "photos", "--patch_size", "2", "--train_batch_size", "8"])
    assert "no recipe: training the small model of recipes/photographs.yaml" in caplog.text
    expected = SMALL_RUN | {"patch_size": 2, "train_batch_size": 8}
    assert {name: getattr(arguments, name) for name in SMALL_RUN} == expected
    recipe = yaml.safe_load((ROOT / "recipes" / "photographs.yaml").read_text())
    same = SMALL_RUN.keys() & {*recipe} - {"save_steps", "logging_steps", "eval_steps", "sample_steps"}
    assert {name: recipe[name] for name in same} == {name: SMALL_RUN[name] for name in same}
    assert 2e6 < JetForDensityEstimation(JetConfig(**arguments.config_fields())).num_parameters() < 5e6


def test_recipes_sizes_and_models_to_fine_tune_keep_the_defaults(tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text("seed: 3\n")
    with caplog.at_level("INFO", "jet_hf"):
        for flags in (
            ["--config", str(tmp_path / "recipe.yaml")],
            ["--model_name_or_path", "model"],
            *([f"--{name}", "64"] for name in SIZES),
        ):
            arguments = parse_arguments(flags)
            defaults = TrainArguments()
            changed = {name for name, value in vars(arguments).items() if value != getattr(defaults, name)}
            assert changed <= {"seed", "model_name_or_path", *SIZES} and len(changed) == 1
    assert not caplog.text


def test_the_newcomers_command_trains_shows_samples_and_resumes(root, photos, caplog):
    fields = dict.fromkeys(TINY) | {
        "dataset_path": photos,
        "image_size": 16,
        "max_steps": 2,
        "num_samples": 4,
        "save_steps": 1,
    }
    with caplog.at_level("INFO", "jet_hf"):
        train_here(**fields, output_dir=root / "run")
    assert Image.open(root / "run" / "samples" / "samples-00000002.png").size == (34, 34)
    recipe = yaml.safe_load((root / "run" / "recipe.yaml").read_text())
    assert recipe["hidden_size"] == 128 and recipe["train_batch_size"] == 16 and recipe["image_size"] == 16
    shutil.copytree(root / "run" / "checkpoint-1", root / "resumed" / "checkpoint-1")
    # The values that the run recorded count, should those of the small run change some day.
    (root / "resumed" / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"logging_steps": 1}))
    caplog.clear()
    train_here(**fields, output_dir=root / "resumed", resume_from_checkpoint="latest")
    assert "no recipe" not in caplog.text
    assert yaml.safe_load((root / "resumed" / "recipe.yaml").read_text())["logging_steps"] == 1
    ours, theirs = (load_file(root / name / "model.safetensors") for name in ("resumed", "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_of_the_papers_model_without_a_recipe_resumes_with_that_model(tmp_path):
    """Earlier commits started it by the same command."""
    recipe = {"output_dir": "runs/jet", "train_batch_size": 1024, "hidden_size": None, "learning_rate": 3e-4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    flags = ["--dataset_path", "photos", "--output_dir", str(tmp_path), "--resume_from_checkpoint", "latest"]
    arguments = parse_arguments(flags)
    assert arguments.config_fields() == {} and arguments.train_batch_size == 1024 and arguments.learning_rate == 3e-4


# Memory


def test_a_run_that_exceeds_the_memory_is_refused_before_its_data_are_prepared(tmp_path, photos, monkeypatch):
    """The paper's model on this machine."""
    monkeypatch.setattr("jet_hf.training.run.load_data", None)
    fields = dict.fromkeys(TINY) | {"dataset_path": photos, "output_dir": tmp_path / "run", "max_steps": 1}
    expected = (
        r"needs 4\d\d\.\d GiB in each process, .* the cpu has \d+\.\d GiB: lower `train_batch_size` \(1024\), raise"
    )
    with pytest.raises(ValueError, match=expected):
        train_here(**fields | {"num_coupling_layers": 32, "train_batch_size": 1024})
    with pytest.raises(ValueError, match=r"the cpu has .* GiB: choose a smaller model \(`num_coupling_layers`"):
        train_here(**fields | {"hidden_size": 8192, "num_coupling_layers": 1000, "train_batch_size": 1})
    assert not (tmp_path / "run").exists()


def test_the_memory_of_each_process_is_its_share(tmp_path, monkeypatch, photos):
    fields = {"dataset_path": photos, "output_dir": tmp_path / "run"}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(psutil.virtual_memory().available // 2**20))
    with pytest.raises(ValueError, match=r"the cpu has 0\.0 GiB"):
        train_here(**fields, train_batch_size=64, gradient_accumulation_steps=1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_memory_that_a_run_is_refused_for_is_not_more_than_a_step_takes(batch_size):
    """With one image the gradients are larger than the activations."""
    fields = {"image_size": 16, "num_coupling_layers": 6, "hidden_size": 96, "num_attention_heads": 4}
    arguments = TrainArguments(**fields, train_batch_size=batch_size)
    config, accelerator = JetConfig(**arguments.config_fields()), Accelerator()
    estimate = estimate_run(arguments, config, accelerator, num_steps=1)
    model = JetForDensityEstimation(config)
    trainer = Trainer(model, 10, accelerator=accelerator)
    memory = LiveMemory(model)
    with memory:
        for _ in range(2):  # the first step creates the moments of Adam
            trainer.step([Batch(random_bytes(batch_size, config), torch.arange(batch_size))])
    peak = estimate.memory["weight"] + memory.peak
    assert (estimate.memory["gradient"] > estimate.memory["activation"]) == (batch_size == 1)
    assert 0.85 * peak <= least_memory(estimate) <= 1.01 * peak <= 1.05 * estimate.total_bytes
