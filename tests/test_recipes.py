"""The recipes are complete, have the paper's settings, and state the costs that the code computes."""

import argparse
import dataclasses
import re
from functools import lru_cache

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands import launch
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import ROOT
from train_process import like_a_process

from examples.photographs import write_photographs
from jet_hf import JetConfig
from jet_hf.analysis.cost import CostEstimate, estimate_cost, peak_flops
from jet_hf.data import RELEASES
from jet_hf.training import TrainArguments, parse_arguments, train
from jet_hf.training.setup import count_steps


RECIPES = ROOT / "recipes"
SMALL = ("background", "debug", "digits", "photographs", "space")
# Figure, epochs, couplings, blocks, width, heads, image size: the paper's table 1, section 3.1 and appendix A.
PAPER = {
    "imagenet1k_32": ("3.931", 200, 64, 6, 256, 4, 32),
    "imagenet1k_64": ("3.656", 200, 64, 5, 512, 8, 64),
    "imagenet21k_32": ("3.53", 50, 64, 6, 768, 12, 32),
    "imagenet21k_64": ("3.13", 50, 64, 6, 1024, 16, 64),
    "imagenet1k_32_from_21k": ("3.857", 30, 64, 6, 768, 12, 32),
    "imagenet1k_64_from_21k": ("3.580", 30, 64, 6, 1024, 16, 64),
    "cifar10_from_21k": ("3.018", 100, 64, 6, 768, 12, 32),
}
LARGE = (*PAPER, "cifar10")
NAMES = (*LARGE, *SMALL)
# Fields of every recipe, so that it can be read alone, and those of every new model.
MODEL_FIELDS = """
    image_size num_channels patch_size num_coupling_layers coupling_kinds spatial_couplings hidden_size
    num_hidden_layers num_attention_heads
"""
FIELDS = """
    train_split eval_split max_undecodable_share train_batch_size gradient_accumulation_steps learning_rate
    weight_decay warmup_ratio max_grad_norm use_ema gradient_checkpointing torch_compile seed output_dir save_steps
    save_total_limit logging_steps eval_steps eval_batch_size sample_steps num_samples
"""


def table(name: str) -> dict:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


def read(name: str) -> TrainArguments:
    return parse_arguments(["--config", str(RECIPES / f"{name}.yaml")])


def header(name: str) -> str:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in lines[: lines.index("")])


def found(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match, pattern
    return float(match[1].replace(",", ""))


def origin_of(name: str) -> str:
    """Return the recipe that has the configuration of the model; fine-tuning takes it from where it starts."""
    start = read(name).model_name_or_path
    if start is None:
        return name
    (origin,) = [other for other in NAMES if table(other)["output_dir"] == start]
    return origin


def config_of(name: str) -> JetConfig:
    return JetConfig(**read(origin_of(name)).config_fields())


def launcher_of(name: str) -> str:
    return re.search(r"--config_file recipes/accelerate/(\w+)\.yaml", header(name))[1]


def estimate_of(name: str) -> CostEstimate:
    arguments = read(name)
    launcher = yaml.safe_load((RECIPES / "accelerate" / f"{launcher_of(name)}.yaml").read_text())
    num_processes = launcher["num_processes"]
    estimate = estimate_step(
        origin_of(name),
        batch_size=arguments.train_batch_size,
        micro_batch_size=arguments.train_batch_size // arguments.gradient_accumulation_steps // num_processes,
        mixed_precision=launcher["mixed_precision"],
        gradient_checkpointing=arguments.gradient_checkpointing,
        use_ema=arguments.use_ema,
        num_shards=num_processes if launcher["distributed_type"] == "FSDP" else 1,
    )
    num_images = RELEASES[arguments.dataset_release].num_train_images
    return dataclasses.replace(estimate, num_steps=count_steps(arguments, num_images))


@lru_cache
def estimate_step(name: str, **sizes) -> CostEstimate:
    """Estimate the cost of one step, which several recipes of fine-tuning have in common."""
    return estimate_cost(config_of(name), num_steps=1, **sizes)


def test_these_are_all_recipes():
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == sorted(NAMES)
    assert all(f"({name}.yaml)" in (RECIPES / "README.md").read_text() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_complete_and_says_how_it_is_run(name):
    recipe = table(name)
    assert set(recipe) >= set(FIELDS.split())
    assert "model_name_or_path" in recipe or set(recipe) >= set(MODEL_FIELDS.split())
    assert ("num_train_epochs" in recipe) != ("max_steps" in recipe)
    assert ("dataset_name" in recipe) != ("dataset_path" in recipe)
    # The precision is that of accelerate's configuration: on a TPU, bf16 would narrow the flow's state.
    assert "mixed_precision" not in recipe
    assert recipe["output_dir"] == f"runs/{name}"
    assert f"--config recipes/{name}.yaml" in header(name)
    assert (RECIPES / "accelerate" / f"{launcher_of(name)}.yaml").exists()
    assert {field.name for field in dataclasses.fields(read(name))} >= set(recipe)


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_is_the_papers(name):
    figure, epochs, *sizes = PAPER[name]
    arguments, config = read(name), config_of(name)
    assert re.search(rf"^Aim\s+{figure} bits per dimension", header(name), re.MULTILINE)
    assert arguments.num_train_epochs == epochs
    assert sizes == [
        config.num_coupling_layers,
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.image_size,
    ]
    assert config.num_patches == 256
    defaults = JetConfig()
    for field in ("coupling_kinds", "spatial_couplings", "num_channels", "hidden_act", "scale_factor"):
        assert getattr(config, field) == getattr(defaults, field), field
    assert (arguments.train_batch_size, arguments.weight_decay, arguments.warmup_ratio) == (1024, 1e-5, 0.1)
    assert arguments.max_grad_norm == 1.0 and not arguments.use_ema
    if "from_21k" in name:
        # The paper's text has lost the digits of these rates.
        text = (RECIPES / f"{name}.yaml").read_text()
        assert arguments.learning_rate < 3e-4 and re.search(r"^learning_rate: .* # ours", text, re.MULTILINE)
    else:
        assert arguments.learning_rate == 3e-4


@pytest.mark.parametrize("name", LARGE)
def test_a_header_states_the_release_and_the_costs_that_the_code_computes(name):
    estimate, text, release = estimate_of(name), header(name), read(name).dataset_release
    assert re.search(rf"^Data\s+{release}: ", text, re.MULTILINE) and release.split("_")[0] == name.split("_")[0]
    if release.startswith("imagenet1k"):
        assert release == "imagenet1k_vandenoord" and "Chrabaszcz" in text
        assert "49,999" in text and RELEASES[release].num_validation_images == 49_999

    assert found(r"Model\s+([\d,.]+) M parameters", text) == round(estimate.num_parameters / 1e6, 1)
    assert found(r"Cost\s+([\d,]+) steps", text) == estimate.num_steps
    assert found(r"steps of ([\d,.]+) TFLOP", text) == round(estimate.flops_per_step / 1e12, 1)
    hours = estimate.hours(peak_flops("H100"), 0.4)
    assert found(r"([\d,.]+) hours of one H100 at 40 % of its peak", text) == round(hours, 0 if hours >= 10 else 1)
    num_processes = found(r"on each of (\d+) GPUs", text) if "on each of" in text else 1
    assert num_processes * estimate.micro_batch_size * read(name).gradient_accumulation_steps == 1024
    assert found(r"(\d+) images at a time", text) == estimate.micro_batch_size
    gib = estimate.total_bytes / 2**30
    assert found(r"Memory\s+(\d+) GiB", text) == pytest.approx(gib, rel=0.03)
    assert gib < 0.85 * 79  # of a GPU that is sold with 80 GB, with a margin for what the estimate omits

    # The table of the README repeats the header.
    (row,) = [line for line in (RECIPES / "README.md").read_text().splitlines() if f"({name}.yaml) |" in line]
    figure, *cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert figure == (PAPER[name][0] if name in PAPER else "none")
    patterns = r"([\d,.]+ M) parameters", r"([\d,]+) steps", r"of ([\d,.]+) TFLOP", r"([\d,.]+) hours"
    for cell, pattern in zip(cells, patterns, strict=True):
        assert re.search(pattern, text)[1] == cell, pattern


def test_the_debug_recipe_runs(tmp_path):
    photographs, folder = write_photographs(tmp_path / "photographs"), tmp_path / "run"
    with like_a_process(tmp_path / "cache"):
        flags = ["--dataset_path", str(photographs), "--output_dir", str(folder)]
        train(parse_arguments(["--config", str(RECIPES / "debug.yaml"), *flags]))
    assert (folder / "checkpoint-6").is_dir() and (folder / "model.safetensors").is_file()


def test_scripts_have_the_function_that_the_tpu_launcher_calls():
    function = yaml.safe_load((RECIPES / "accelerate" / "tpu.yaml").read_text())["main_training_function"]
    for script in ("train", "evaluate"):
        assert re.search(rf"^def {function}\(\)", (ROOT / "scripts" / f"{script}.py").read_text(), re.MULTILINE)


def launch_arguments(config: str) -> argparse.Namespace:
    """Return the arguments that accelerate's launcher makes of a configuration."""
    config_file = str(RECIPES / "accelerate" / f"{config}.yaml")
    parser = launch.launch_command_parser()
    return parser.parse_args(["--config_file", config_file, "--main_process_port", "0", "script.py"])


def launch_environment(config: str) -> tuple[argparse.Namespace, dict[str, str]]:
    """Return the validated arguments of accelerate's launcher, and the variables that its processes get."""
    arguments, _, _ = launch._validate_launch_command(launch_arguments(config))
    return arguments, prepare_multi_gpu_env(arguments)


def test_tpu_gets_as_far_as_the_missing_library():
    with pytest.raises(ModuleNotFoundError, match="torch_xla"):
        launch.launch_command(launch_arguments("tpu"))


def test_fsdp2_shards_coupling_layers_and_saves_in_shards(monkeypatch):
    arguments, environment = launch_environment("fsdp2")
    assert arguments.use_fsdp and arguments.num_processes == 8 and environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    for name, value in environment.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap == ["JetCoupling"]
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing


def test_the_launcher_reads_every_configuration():
    expected = {
        "single_gpu": {"multi_gpu": False, "tpu": False, "use_fsdp": False, "use_cpu": False},
        "ddp": {"multi_gpu": True, "use_fsdp": False, "use_cpu": False, "num_processes": 8},
        "tpu": {"tpu": True, "use_cpu": False, "main_training_function": "main"},
        "cpu": {"multi_gpu": False, "use_cpu": True, "num_processes": 1},
    }
    for config, kind in expected.items():
        arguments, environment = launch_environment(config)
        assert {name: getattr(arguments, name) for name in kind} == kind, config
        precision = "bf16" if config in ("single_gpu", "ddp") else "no"
        assert environment["ACCELERATE_MIXED_PRECISION"] == precision, config
    assert {path.stem for path in (RECIPES / "accelerate").glob("*.yaml")} == {*expected, "fsdp2"}
