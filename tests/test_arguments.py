"""Training arguments: their declarations, and the precisions that are refused wherever they come from."""

import dataclasses
import shutil
import subprocess
import sys

import datasets
import pytest
import yaml
from conftest import ROOT, tiny_model
from train_process import TINY, environment, write_images

from jet_hf.training import TrainArguments, parse_arguments, train
from jet_hf.arguments import OWN_VALUE, _field, check_declarations
from jet_hf.training.checkpoints import read_manifest


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture
def run_here(images, tmp_path, monkeypatch):
    """Run scripts/train.py's function in this process."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(**fields):
        fields = TINY | {"dataset_path": images, "output_dir": tmp_path / "run", "sample_steps": 0} | fields
        return train(parse_arguments([f"--{name}={value}" for name, value in fields.items() if value is not None]))

    return run


def declared_entries() -> set[str]:
    """Names of the entries of a checkpoint's trajectory that arguments declare to decide."""
    declared = {item.name: item.metadata["decides"] for item in dataclasses.fields(TrainArguments)}
    return {name if entry == OWN_VALUE else entry for name, entry in declared.items()} - {None}


def test_an_argument_without_a_declaration_is_an_error_at_import():
    with pytest.raises(TypeError, match="decides"):
        _field(1, "A field.")
    for undeclared in (dataclasses.field(default=1, metadata={"help": "A field."}), _field(1, "A.", decides="speed")):
        group = dataclasses.make_dataclass("Group", [("momentum", float, undeclared)])
        with pytest.raises(TypeError, match="the field `momentum` must declare"):
            check_declarations(group)
    check_declarations(TrainArguments)


def test_a_checkpoint_holds_all_that_arguments_declare_to_decide(run_here, tmp_path):
    run_here(max_steps=2, save_steps=1)
    recorded = read_manifest(tmp_path / "run" / "checkpoint-1")["trajectory"]
    assert declared_entries() <= recorded.keys()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match="`max_eval_images` was None and is now 3"):
        run_here(max_steps=2, max_eval_images=3, resume_from_checkpoint="latest")
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["max_eval_images"] is None, "a refused run must not replace the recipe"


def test_fine_tuning_is_resumed_from_the_same_weights_wherever_they_lie(run_here, tmp_path):
    tiny_model().save_pretrained(tmp_path / "first")
    tiny_model(std=0.2).save_pretrained(tmp_path / "second")
    fields = dict.fromkeys(tiny_model().config.to_dict().keys() & TINY.keys()) | {"max_steps": 2, "save_steps": 1}
    run_here(**fields, model_name_or_path=tmp_path / "first")
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match="`initial_weights` was"):
        run_here(**fields, model_name_or_path=tmp_path / "second", resume_from_checkpoint="latest")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert run_here(**fields, model_name_or_path=tmp_path / "moved", resume_from_checkpoint="latest").step == 2


@pytest.mark.parametrize("precision", ["fp16", "fp8", "half"])
@pytest.mark.parametrize("origin", ["argument", "flag", "recipe", "environment"])
def test_other_precisions_are_refused_by_one_sentence(precision, origin, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(f"mixed_precision: {precision}\n")
    if origin == "environment":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    ways = {
        "argument": lambda: TrainArguments(mixed_precision=precision),
        "flag": lambda: parse_arguments(["--mixed_precision", precision]),
        "recipe": lambda: parse_arguments(["--config", str(tmp_path / "recipe.yaml")]),
        "environment": lambda: parse_arguments([]),
    }
    with pytest.raises(ValueError, match=f"the mixed precision must be 'no' or 'bf16', got '{precision}' from"):
        ways[origin]()


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_the_scripts_refuse_float16_of_a_configuration_file_or_flag(script, images, tmp_path):
    settings = yaml.safe_load((ROOT / "recipes" / "accelerate" / "cpu.yaml").read_text())
    (tmp_path / "fp16.yaml").write_text(yaml.safe_dump(settings | {"mixed_precision": "fp16"}))
    flags = {
        "train": ["--dataset_path", str(images), "--output_dir", str(tmp_path / "run")],
        "evaluate": ["--dataset", str(images), "--model", "unused", "--mixed_precision", "fp16"],
    }[script]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    run = subprocess.run(
        [*launcher, "--config_file", str(tmp_path / "fp16.yaml"), str(ROOT / "scripts" / f"{script}.py"), *flags],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "error: the mixed precision must be 'no' or 'bf16', got 'fp16' from" in run.stderr
    assert not (tmp_path / "run").exists()
