"""Training with Gaussian noise that falls to zero (JetFormer): the noisy levels, runs, extensions, wrong values."""

import json
import math
import shutil

import pytest
import torch
from conftest import random_bytes, tiny_config, tiny_model
from train_process import TINY, like_a_process, rows, train_here, write_images

from jet_hf import JetForDensityEstimation
from jet_hf.analysis.evaluation import evaluate
from jet_hf.data import Batch
from jet_hf.model.validation_jet import trusted_values
from jet_hf.training import Trainer, parse_arguments
from jet_hf.training.checkpoints import read_manifest
from jet_hf.training.fine_tuning import find_config
from jet_hf.training.setup import find_data, load_data, make_accelerator, make_processor
from jet_hf.utils.arguments import UsageError
from jet_hf.utils.noise import normal_noise


def half_cosine(step: int, num_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def levels_batch(config, size: int = 3) -> Batch:
    pixels = (random_bytes(size, config).int() * (config.num_levels - 1) // 255).to(torch.uint8)
    return Batch(pixels, torch.arange(size) + 5)


@pytest.mark.parametrize("num_levels", [256, 17])
def test_the_model_sees_noisy_levels_and_the_loss_is_theirs(num_levels):
    """The formula of JetFormer, `round(u + s * eps)` without clipping; `s` is a share of the range for any levels."""
    model = tiny_model(num_levels=num_levels)
    batch, seen = levels_batch(model.config), []
    model.register_forward_pre_hook(lambda _, inputs, keywords: seen.append((*inputs, keywords)), with_kwargs=True)
    trainer = Trainer(model, 4, learning_rate=1e-9, weight_decay=0.0, seed=2, noise_curriculum=64)
    noise = normal_noise(2, batch.indices, (3, 8, 8), stream=1)
    for step in range(4):
        metrics = trainer.step([batch])
        assert metrics.noise_scale == pytest.approx(64 * half_cosine(step, 4), rel=1e-6)
        expected = (batch.pixels + metrics.noise_scale / 255 * (num_levels - 1) * noise).round()
        pixel_values, keywords = seen.pop()
        torch.testing.assert_close((pixel_values + 1) * (num_levels - 1) / 2, expected, rtol=0, atol=1e-3)
        with torch.no_grad(), trusted_values():
            bits = model(pixel_values, noise=keywords["noise"]).loss.item()
        seen.clear()
        assert metrics.loss == pytest.approx(bits, abs=1e-5)
        if step == 0:
            assert pixel_values.abs().max() > 1.2
            with pytest.raises(ValueError, match="`pixel_values` must be"):  # of users
                model(pixel_values)
    assert trainer.noise_scale == 0
    # A curriculum that has ended leaves no trace.
    trainer.step_count = 4
    trainer.step([batch])
    torch.testing.assert_close((seen.pop()[0] + 1) * (num_levels - 1) / 2, batch.pixels.float(), rtol=0, atol=1e-4)


def test_a_curriculum_may_end_before_the_schedule():
    for ratio, length in ((1.0, 8), (0.5, 4), (0.01, 1)):
        trainer = Trainer(tiny_model(), 8, noise_curriculum=10, noise_curriculum_ratio=ratio)
        scales = []
        for trainer.step_count in range(9):
            scales.append(trainer.noise_scale)
        expected = [10 * half_cosine(min(step, length), length) for step in range(9)]
        assert scales == pytest.approx(expected, abs=1e-5) and scales[length:] == [0] * (9 - length)


def test_every_kind_of_model_takes_noisy_levels_and_compiles_once():
    fields = {"num_coupling_layers": 2, "dequantization": "flow", "dequantization_num_coupling_layers": 1}
    torch.manual_seed(0)
    model = JetForDensityEstimation(tiny_config(num_classes=2, use_actnorm=True, **fields))
    batch = levels_batch(model.config)._replace(labels=torch.tensor([0, 1, 1]))
    torch._dynamo.reset()
    model.compile_couplings(backend="eager")
    trainer = Trainer(model, 6, learning_rate=1e-3, noise_curriculum=64)
    losses = [trainer.step([batch]).loss for _ in range(2)]
    with torch.compiler.set_stance("fail_on_recompile"):
        losses += [trainer.step([batch]).loss for _ in range(4)]
    torch._dynamo.reset()
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Options of a run with a curriculum, which has ended in `output_dir`."""
    root = tmp_path_factory.mktemp("curriculum")
    fields = {"dataset_path": write_images(root / "data"), "output_dir": root / "run", "noise_curriculum": 64}
    fields |= {
        "noise_curriculum_ratio": 0.84,
        "max_steps": 6,
        "sample_steps": 0,
        "lr_scheduler_type": "constant",
        "use_ema": True,
        "ema_decay": 0.5,
    }
    with like_a_process(root):
        train_here(**fields)
        yield fields


def test_a_run_logs_the_noise_and_evaluates_images_without_it(run):
    logged, evaluated = rows(run["output_dir"]), rows(run["output_dir"], "evaluations.jsonl")
    assert [row["noise_scale"] for row in logged] == pytest.approx(
        [64 * half_cosine(i, 5) for i in range(6)], abs=1e-5
    )
    arguments = parse_arguments([f"--{name}={value}" for name, value in (TINY | run).items()])
    accelerator = make_accelerator(arguments)
    model = JetForDensityEstimation.from_pretrained(run["output_dir"])
    processor = make_processor(model.config, arguments)
    held_out = load_data(arguments, find_data(arguments, accelerator), processor, accelerator).eval.dataset
    assert evaluated[-1]["bits_per_dim"] == pytest.approx(evaluate(model, held_out).mean, rel=1e-6)
    card = (run["output_dir"] / "README.md").read_text()
    assert "noise curriculum | from 64 gray levels" in card and "no bits per dimension" not in card


def test_a_killed_run_resumes_bit_for_bit_and_only_itself(run, capsys):
    folder = run["output_dir"]
    weights, logged = (folder / "model.safetensors").read_bytes(), rows(folder)
    shutil.rmtree(folder / "checkpoint-6")
    for value in (0, 32):
        with pytest.raises(ValueError, match=rf"`noise_curriculum` was 64\.0 and is now {value}"):
            train_here(**run | {"noise_curriculum": value}, resume_from_checkpoint="latest")
    train_here(**run, resume_from_checkpoint="latest")
    assert (folder / "model.safetensors").read_bytes() == weights
    for name in ("loss", "grad_norm", "noise_scale"):
        assert [row[name] for row in rows(folder)] == [row[name] for row in logged]
    text = capsys.readouterr().err
    assert " bpd=" in text and "noisy bpd=" not in text  # at the last step


def test_an_extended_run_keeps_the_curriculum_of_the_first_one(run, tmp_path, capsys):
    start = {"resume_from_checkpoint": run["output_dir"] / "checkpoint-3", "extend": True}
    for length, expected in ((8, [half_cosine(3, 5), half_cosine(4, 5), 0, 0, 0]), (4, [half_cosine(3, 4)])):
        output_dir = tmp_path / str(length)
        train_here(**run | start | {"output_dir": output_dir, "max_steps": length})
        assert [row["noise_scale"] / 64 for row in rows(output_dir)] == pytest.approx(expected, abs=1e-6)
    assert "noisy bpd=" in capsys.readouterr().err  # at the last step of the shorter run
    manifest = read_manifest(tmp_path / "8" / "checkpoint-8")
    assert manifest["trajectory"]["extended"]["noise_curriculum_steps"] == 5
    # A checkpoint of an earlier release had no curriculum.
    path = run["output_dir"] / "checkpoint-3" / "checkpoint.json"
    text = path.read_text()
    manifest = json.loads(text)
    del manifest["trajectory"]["noise_curriculum"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"`noise_curriculum` was 0\.0 and is now 64"):
        train_here(**run | start | {"output_dir": tmp_path / "earlier"})
    path.write_text(text)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "64"])
def test_a_wrong_curriculum_is_refused_by_name(value):
    with pytest.raises(ValueError, match=f"`noise_curriculum` must be zero or a positive number, got {value!r}"):
        Trainer(tiny_model(), 4, noise_curriculum=value)
    with pytest.raises(ValueError, match=r"`noise_curriculum_ratio` must lie in \(0, 1\], got 0"):
        Trainer(tiny_model(), 4, noise_curriculum=64, noise_curriculum_ratio=0)


def test_a_wrong_curriculum_of_a_run_is_refused_by_name(tmp_path):
    for value, limit in (("-1", "at least 0"), ("nan", "at least 0"), ("256", "at most 255"), ("inf", "at most 255")):
        with pytest.raises(ValueError, match=f"`noise_curriculum` must be {limit}, got {value}"):
            parse_arguments([f"--noise_curriculum={value}"])
    with pytest.raises(ValueError, match=r"`noise_curriculum_ratio` must be above 0, got 0.0"):
        parse_arguments(["--noise_curriculum_ratio=0"])
    with pytest.raises(UsageError, match="--noise_curriculum: invalid float value: 'true'"):
        parse_arguments(["--noise_curriculum=true"])
    tiny_model(noise_std=0.2).save_pretrained(tmp_path)
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    for model in (["--noise_std=0.2", *flags], [f"--model_name_or_path={tmp_path}"]):
        with pytest.raises(ValueError, match=r"`noise_curriculum` must be 0 for a model with `noise_std` \(0.2\)"):
            find_config(parse_arguments([*model, "--noise_curriculum=64"]))
    with pytest.raises(ValueError, match=r"`noise_curriculum` must be 0 .* \(\[0.05, 0.4\]\)"):
        find_config(parse_arguments(["--noise_std", "0.05", "0.4", *flags, "--noise_curriculum=64"]))
    for num_levels, least in ((256, "0.1"), (17, "1.59375")):  # as if on the scale [-1, 1], or of a tenth of a level
        with pytest.raises(
            ValueError, match=f"must be 0 or at least {least} gray levels .* `num_levels` {num_levels}"
        ):
            find_config(parse_arguments([*flags, f"--num_levels={num_levels}", "--noise_curriculum=0.09"]))
