"""Training arguments: fields, bounds, recipes and flags, precisions, and the declarations that resuming needs."""

import dataclasses
import inspect
import re
import shutil
from collections.abc import Sequence
from typing import get_args

import datasets
import pytest
import yaml
from accelerate.commands import launch
from conftest import ROOT, tiny_model
from train_process import TINY, ForkedScript, write_images

from jet_hf import JetConfig
from jet_hf.arguments import (
    OWN_VALUE,
    ConvertArguments,
    ModelArguments,
    TrainArguments,
    check_declarations,
    parse_arguments,
)
from jet_hf.model.configuration_jet import COUPLING_KINDS
from jet_hf.training import train
from jet_hf.training.checkpoints import read_manifest
from jet_hf.utils.arguments import BoundedArguments, UsageError, argument, parse, value_type


# Fields


def test_the_model_has_the_fields_of_its_configuration():
    """They are read from the docstring, so that `--help` does not import torch."""
    annotations = inspect.get_annotations(JetConfig)
    fields = {item.name: item for item in dataclasses.fields(ModelArguments)}
    assert fields.keys() == annotations.keys()
    for name, item in fields.items():
        kind, is_list = value_type(item.type)
        accepted = get_args(annotations[name]) or (annotations[name],)
        assert {list[kind], list[kind | int]} & {*accepted} if is_list else kind in accepted, name
        default = getattr(JetConfig, name)
        if isinstance(default, int | float):
            assert item.metadata["help"].endswith(
                f"(default: {str(default).lower() if default is False else default})"
            ) or "e-" in str(default), name
    assert TrainArguments(**dict.fromkeys(fields)).config_fields() == {}
    (kinds,) = (item for item in dataclasses.fields(ConvertArguments) if item.name == "coupling_kinds")
    assert kinds.metadata["choices"] == COUPLING_KINDS


def test_a_noise_level_is_one_number_or_a_range(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("noise_std: [0.05, 0.4]")
    for words, expected in (
        (["--noise_std", "0.1"], 0.1),
        (["--noise_std=0.1"], 0.1),
        (["--noise_std", "0.05", "0.4"], [0.05, 0.4]),
        (["--config", str(recipe)], [0.05, 0.4]),
        (["--config", str(recipe), "--noise_std", "0.1"], 0.1),
    ):
        arguments = parse_arguments(words)
        assert arguments.noise_std == expected and JetConfig(**arguments.config_fields()).noise_std == expected


def test_every_bound_holds():
    bounded = {"at_least": -1, "above": 0, "at_most": 1, "below": 0}  # bound and the step to a value that breaks it
    checked = 0
    for item in dataclasses.fields(TrainArguments):
        whole = value_type(item.type)[0] is int
        for bound in bounded.keys() & item.metadata.keys():
            wrong, words = item.metadata[bound] + bounded[bound], bound.replace("_", " ")
            with pytest.raises(ValueError, match=rf"`{item.name}` must be .*{words} .*, got {wrong}\."):
                TrainArguments(**{item.name: wrong})
            checked += 1
        if whole and item.name not in inspect.get_annotations(JetConfig):
            assert "at_least" in item.metadata, f"{item.name} accepts any number"
            with pytest.raises(ValueError, match=f"`{item.name}` must be a whole number"):
                TrainArguments(**{item.name: 1.5})
    assert checked > 20
    with pytest.raises(ValueError, match="`learning_rate` must be above 0, got nan"):
        TrainArguments(learning_rate=float("nan"))


def test_a_sequence_has_a_default_and_a_bound_of_each_number(capsys):
    fields = [("sizes", Sequence[int], argument("Sizes.", (4, 2), at_least=1))]
    kind = dataclasses.make_dataclass("Sizes", fields, bases=(BoundedArguments,))
    assert parse(kind, [], "sizes").sizes == (4, 2) and parse(kind, ["--sizes", "3", "1"], "sizes").sizes == [3, 1]
    with pytest.raises(ValueError, match="`sizes` must be a whole number of at least 1, got 0"):
        parse(kind, ["--sizes", "3", "0"], "sizes")
    with pytest.raises(SystemExit):
        parse(kind, ["--help"], "sizes")
    assert "Sizes. (default: 4 2)" in capsys.readouterr().out


# Recipes and flags


def test_flags_override_the_recipe_and_the_recipe_overrides_defaults(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "learning_rate: 1.0e-3\nseed: 3\ncoupling_kinds: [channels, spatial]\nuse_ema: true\nmax_steps: null\n"
    )
    arguments = parse_arguments(["--seed", "4", "--config", str(tmp_path / "recipe.yaml")])
    assert (arguments.learning_rate, arguments.seed, arguments.use_ema) == (1e-3, 4, True)
    assert arguments.config_fields() == {"coupling_kinds": ["channels", "spatial"]} and arguments.max_steps is None
    assert arguments.weight_decay == 1e-5
    arguments = parse_arguments(["--no-center-crop", "--use_ema", "--streaming", "no", "--push-to-hub=true"])
    assert (arguments.center_crop, arguments.use_ema, arguments.streaming, arguments.push_to_hub) == (0, 1, 0, 1)


def test_a_wrong_recipe_is_refused_by_name(tmp_path):
    path = tmp_path / "recipe.yaml"
    for recipe, message in (
        ("learning_rat: 1", "has the unknown field `learning_rat`, did you mean `learning_rate`?"),
        ("- a\n- b", "must hold `field: value` lines, got a list"),
        ("a: [", "must be a YAML file"),
        ("ema_decay: 2", "`ema_decay` must be below 1, got 2.0"),
        ("max_steps: 0", "`max_steps` must be a whole number of at least 1, got 0"),
        ("random_crops_per_image: 2\nstreaming: true", "cannot be combined"),
    ):
        path.write_text(recipe)
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_arguments(["--config", str(path)])


def test_flags_that_need_another_one_name_it():
    with pytest.raises(ValueError, match="`extend` must be given with `resume_from_checkpoint`"):
        parse_arguments(["--extend", "--max_steps", "3"])
    with pytest.raises(ValueError, match="`spike_factor` must be given with `max_skipped_steps`"):
        parse_arguments(["--spike_factor", "3"])
    with pytest.raises(UsageError, match="--lr_scheduler_type: invalid choice: 'linear'"):
        parse_arguments(["--lr_scheduler_type", "linear"])


def test_a_flag_that_is_unknown_or_of_the_wrong_type_is_refused_by_name():
    for flags in (["--max_steps", "1.5"], ["--use_ema", "perhaps"], ["--max_step", "3"]):  # no guessing
        with pytest.raises(UsageError, match=flags[0]):
            parse_arguments(flags)


# Precisions


def test_other_precisions_are_refused_by_one_sentence(tmp_path, monkeypatch):
    for precision in ("fp16", "fp8", "half"):
        (tmp_path / "recipe.yaml").write_text(f"mixed_precision: {precision}\n")
        expected = f"the mixed precision must be 'no' or 'bf16', got '{precision}' from"
        for make in (
            lambda precision=precision: TrainArguments(mixed_precision=precision),
            lambda precision=precision: parse_arguments(["--mixed_precision", precision]),
            lambda: parse_arguments(["--config", str(tmp_path / "recipe.yaml")]),
        ):
            with pytest.raises(ValueError, match=expected):
                make()
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        with pytest.raises(ValueError, match=expected):
            parse_arguments([])
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")


def test_launched_processes_refuse_float16_of_a_configuration_file_in_a_line_each(tmp_path):
    settings = yaml.safe_load((ROOT / "recipes" / "accelerate" / "cpu.yaml").read_text())
    settings |= {"mixed_precision": "fp16", "num_processes": 2}
    (tmp_path / "fp16.yaml").write_text(yaml.safe_dump(settings))
    log = tmp_path / "log.txt"
    words = [launch.__file__, "--quiet", "--config_file", tmp_path / "fp16.yaml"]
    words += ["-m", "jet_hf.train", "--output_dir", tmp_path / "run"]
    assert ForkedScript(list(map(str, words)), tmp_path, log, log, {}).wait(timeout=300) == 1
    output = log.read_text()
    assert output.count("error: the mixed precision must be 'no' or 'bf16', got 'fp16' from the settings")
    assert "jet_hf" not in output.partition("Traceback")[2], "a traceback may only be the launcher's"
    assert not (tmp_path / "run").exists()


# Declarations


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture
def run_here(images, tmp_path, monkeypatch):
    """Run a training in this process."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(**fields):
        fields = TINY | {"dataset_path": images, "output_dir": tmp_path / "run", "sample_steps": 0} | fields
        return train(parse_arguments([f"--{name}={value}" for name, value in fields.items() if value is not None]))

    return run


def test_an_argument_without_a_declaration_is_an_error_at_import():
    for item in (argument("A field.", 1), argument("A field.", 1, decides="speed")):
        group = dataclasses.make_dataclass("Group", [("momentum", float, item)])
        with pytest.raises(TypeError, match="the field `momentum` must declare"):
            check_declarations(group)


def test_a_checkpoint_records_every_entry_that_arguments_declare(run_here, tmp_path):
    run_here(max_steps=2, save_steps=1)
    declared = {item.name: item.metadata["decides"] for item in dataclasses.fields(TrainArguments)}
    entries = {name if entry == OWN_VALUE else entry for name, entry in declared.items()} - {None}
    assert entries <= read_manifest(tmp_path / "run" / "checkpoint-1")["trajectory"].keys()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match="`max_eval_images` was None and is now 3"):
        run_here(max_steps=2, max_eval_images=3, resume_from_checkpoint="latest")
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["max_eval_images"] is None, "a refused run must not replace the recipe"


def test_fine_tuning_resumes_from_the_same_weights_wherever_they_lie(run_here, tmp_path):
    tiny_model().save_pretrained(tmp_path / "first")
    tiny_model(std=0.2).save_pretrained(tmp_path / "second")
    fields = dict.fromkeys(tiny_model().config.to_dict().keys() & TINY.keys())
    fields |= {"max_steps": 2, "save_steps": 1, "eval_steps": 0}
    run_here(**fields, model_name_or_path=tmp_path / "first")
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match="`initial_weights` was"):
        run_here(**fields, model_name_or_path=tmp_path / "second", resume_from_checkpoint="latest")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert run_here(**fields, model_name_or_path=tmp_path / "moved", resume_from_checkpoint="latest").step == 2
