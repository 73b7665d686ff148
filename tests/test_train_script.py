"""Runs of scripts/train.py: what they leave in their folder, what they refuse, and how they resume."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate.state import AcceleratorState
from conftest import ROOT
from hub_server import HubServer
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file
from test_files import parse_strictly
from train_process import (
    TINY,
    ForkedScript,
    TrainProcess,
    flags,
    like_a_process,
    rows,
    run_to_end,
    train_here,
    write_images,
)

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.evaluation import evaluate
from jet_hf.data import DataSource, load_pixels
from jet_hf.training import CheckpointError, NonFiniteLossError, TrainArguments, Trainer
from jet_hf.training.checkpoints import Checkpoint, clear_drafts, prune_checkpoints, read_manifest
from jet_hf.training.environment import checkout_commit
from jet_hf.training.setup import count_micro_batches


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    with like_a_process(root):
        yield root


@pytest.fixture(scope="module")
def images(root):
    return write_images(root / "images")


@pytest.fixture(scope="module")
def straight(root, images):
    """An uninterrupted run, with a moving average to make resuming harder."""
    output_dir = root / "straight"
    run_to_end(root, dataset_path=images, output_dir=output_dir, use_ema=True, ema_decay=0.9, report_to="tensorboard")
    return output_dir


def without_speeds(logged: list[dict]) -> list[dict]:
    return [{key: row[key] for key in row if key not in ("images_per_second", "peak_memory_gib")} for row in logged]


def assert_same_run(folder, straight):
    """Compare the finished weights, those of the last checkpoint, and every logged number but speeds."""
    weights = "checkpoint-12/training_weights/model.safetensors"
    for name in ("model.safetensors", "checkpoint-12/model.safetensors", weights):
        if name == weights and not (straight / name).exists():  # without a moving average
            continue
        ours, theirs = load_file(folder / name), load_file(straight / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_speeds(rows(folder, name)) == without_speeds(rows(straight, name)), name


def test_a_run_leaves_a_model_a_log_images_and_checkpoints(straight):
    model = JetForDensityEstimation.from_pretrained(straight)
    assert model.config.num_coupling_layers == 5 and model.config.image_size == 8
    assert JetImageProcessor.from_pretrained(straight).size["height"] == 8
    logged = rows(straight)
    assert [row["step"] for row in logged] == list(range(1, 13))
    assert {"step", "epoch", "loss", "grad_norm", "learning_rate", "images_per_second"} <= logged[0].keys()
    assert logged[3]["epoch"] == pytest.approx(4 * 8 / 21)
    assert logged[0]["learning_rate"] == 0 and logged[-1]["loss"] < logged[0]["loss"] - 0.5
    evaluations = rows(straight, "evaluations.jsonl")
    assert [row["step"] for row in evaluations] == [0, 6, 12]
    assert all(row["num_images"] == 5 and row["standard_error"] > 0 for row in evaluations)
    assert {path.name for path in straight.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-9", "checkpoint-12"}
    for step in (0, 6, 12):
        assert Image.open(straight / "samples" / f"samples-{step:08d}.png").size == (18, 18)
        assert Image.open(straight / "samples" / f"reconstructions-{step:08d}.png").size == (48, 18)
    samples = [np.asarray(Image.open(straight / "samples" / f"samples-{step:08d}.png")) for step in (0, 12)]
    assert not np.array_equal(*samples)
    assert not list(straight.glob(".*"))


def test_a_checkpoint_opens_as_the_model_that_was_evaluated(images, straight):
    """With a moving average that is the average, and the weights themselves lie beside it."""
    checkpoint = straight / "checkpoint-6"
    processor = JetImageProcessor.from_pretrained(checkpoint)
    held_out = load_pixels(DataSource.at(str(images)), "validation", processor).dataset
    average, weights = (
        evaluate(JetForDensityEstimation.from_pretrained(folder).eval(), held_out, batch_size=64, seed=0).mean
        for folder in (checkpoint, checkpoint / "training_weights")
    )
    (row,) = [row for row in rows(straight, "evaluations.jsonl") if row["step"] == 6]
    assert average == row["bits_per_dim"] and abs(weights - average) > 0.01
    last, finished = (path / "model.safetensors" for path in (straight / "checkpoint-12", straight))
    assert last.read_bytes() == finished.read_bytes()


def test_a_checkpoint_with_a_moving_average_of_an_earlier_release_resumes_bit_for_bit(root, images, straight):
    """It has the weights in model.safetensors, and the average in a folder of torch.distributed.checkpoint."""
    folder = shutil.copytree(straight, root / "earlier")
    for step in (9, 12):
        shutil.rmtree(folder / f"checkpoint-{step}")
    checkpoint = folder / "checkpoint-6"
    dcp.save(load_file(checkpoint / "model.safetensors"), checkpoint_id=checkpoint / "ema")
    (checkpoint / "training_weights" / "model.safetensors").replace(checkpoint / "model.safetensors")
    shutil.rmtree(checkpoint / "training_weights")
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    for name in ("micro_batch_size", "guard", "window"):
        del manifest[name]
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "checkpoint.json"]
    digests = {str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (checkpoint / "checkpoint.json").write_text(json.dumps(manifest | {"files": digests}))
    train_here(dataset_path=images, output_dir=folder, use_ema=True, ema_decay=0.9, resume_from_checkpoint="latest")
    assert_same_run(folder, straight)


def test_the_model_with_the_best_evaluation_is_kept(root, images, caplog, capsys):
    """The learning rate becomes too high in the middle of the run, and the checkpoint of the best step is deleted."""
    folder = root / "best"
    fields = {"dataset_path": images, "learning_rate": 0.3, "warmup_ratio": 0.5, "save_best": True, "eval_steps": 1}
    fields |= {"output_dir": folder, "save_steps": 4, "save_total_limit": 1, "sample_steps": 0}
    train_here(**fields)
    evaluations = rows(folder, "evaluations.jsonl")
    best = min(evaluations, key=lambda row: row["bits_per_dim"])
    assert 0 < best["step"] < 12 and best["bits_per_dim"] < evaluations[-1]["bits_per_dim"] - 0.1
    assert json.loads((folder / "best" / "evaluation.json").read_text()) == best
    model = JetForDensityEstimation.from_pretrained(folder / "best").eval()
    processor = JetImageProcessor.from_pretrained(folder / "best")
    held_out = load_pixels(DataSource.at(str(images)), "validation", processor).dataset
    assert evaluate(model, held_out, batch_size=64, seed=0).mean == best["bits_per_dim"]
    assert f"bits per dimension at step {best['step']}, is in {folder}/best" in capsys.readouterr().err
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-12"]
    assert not list(folder.glob(".*"))

    # A run that starts again from scratch does not compare itself with the run before.
    for path in (folder / "checkpoint-12", folder / "config.json", folder / "metrics.jsonl"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    worse = {"learning_rate": 1e-9, "max_steps": 1, "eval_steps": 5}
    train_here(**fields | worse)
    assert json.loads((folder / "best" / "evaluation.json").read_text())["step"] <= 1


def test_trackers_get_numbers_and_images(straight):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (straight / "jet").glob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent)).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([row["loss"] for row in rows(straight)], rel=1e-6)
    assert len(events.Scalars("eval/bits_per_dim")) == 3
    assert {"samples", "reconstructions"} <= set(events.Tags()["images"])


def test_the_recipe_of_a_run_repeats_it(root, straight):
    train_here(**dict.fromkeys(TINY), config=straight / "recipe.yaml", output_dir=root / "repeated")
    assert_same_run(root / "repeated", straight)


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(root, images, straight, caplog):
    folder = shutil.copytree(straight, root / "damaged")
    path = folder / "checkpoint-12" / "optimizer.bin"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    (folder / "checkpoint-9" / "model.safetensors").unlink()
    with caplog.at_level("INFO", "jet_hf"):
        train_here(
            dataset_path=images, output_dir=folder, use_ema=True, ema_decay=0.9, resume_from_checkpoint="latest"
        )
    assert "the checksum of optimizer.bin does not match" in caplog.text
    assert "checkpoint-9 is not a complete checkpoint" in caplog.text
    assert f"resuming from {folder}/checkpoint-6, after 6 of 12 steps" in caplog.text
    assert_same_run(folder, straight)


def test_a_full_disk_stops_the_run_and_leaves_older_checkpoints_whole(root, images, straight):
    """On a real file system that is too small for a second checkpoint; where none may be mounted, under a limit."""
    small, log = root / "small", root / "full.txt"
    small.mkdir()
    size = sum(file.stat().st_size for file in (straight / "checkpoint-9").rglob("*") if file.is_file())
    fields = {"dataset_path": images, "use_ema": True, "sample_steps": 0, "eval_steps": 0}
    # The file system is there as long as this process, and other processes see it through /proc.
    script = f"mount -t tmpfs -o size={int(1.6 * size)} tmpfs {small} && echo mounted && read"
    mount = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user", "--user"]), "bash", "-c", script]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(mount, text=True, **streams) as holder:
        can_mount = holder.stdout.readline() == "mounted\n"
        result = Path(f"/proc/{holder.pid}/root{small}" if can_mount else small, "run")
        arguments = [str(ROOT / "scripts" / "train.py"), *flags(**fields, output_dir=result)]
        process = ForkedScript(arguments, root, log, log, {"ACCELERATE_USE_CPU": "true"})
        if not can_mount:
            psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (size // 4, size // 4))
        code, output = process.wait(timeout=300), log.read_text()
        if can_mount:
            assert "checkpoint-6 could not be written" in output and "untouched: checkpoint-3" in output
            (checkpoint,) = result.glob("checkpoint-*")
            assert read_manifest(checkpoint)["step"] == 3
            JetForDensityEstimation.from_pretrained(checkpoint)
        else:
            assert "checkpoint-3 could not be written" in output
        assert code == 1 and output.count("\nerror: ") == 1, output
        assert "Traceback" not in output and not list(result.glob(".checkpoint-*"))


def test_a_run_that_turns_non_finite_names_the_step_and_keeps_the_last_checkpoint(root, images):
    folder = root / "diverged"
    fields = {"learning_rate": 1e37, "warmup_ratio": 0.5, "save_steps": 1, "eval_steps": 0, "sample_steps": 0}
    with pytest.raises(NonFiniteLossError) as error:
        train_here(dataset_path=images, output_dir=folder, **fields)
    step, checkpoint = max((int(path.name.split("-")[1]), path) for path in folder.glob("checkpoint-*"))
    assert str(error.value).startswith(f"step {step + 1} has the loss")
    assert str(error.value).endswith(f"Last checkpoint: {checkpoint}.")
    assert not (folder / "config.json").exists() and not list(folder.glob(".*"))
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())


@pytest.fixture(scope="module")
def plain(root, images):
    """One process, no accumulation, no average."""
    train_here(dataset_path=images, output_dir=root / "plain", save_steps=6)
    return root / "plain"


@pytest.mark.parametrize("num_processes", [1, 2])
def test_processes_and_accumulation_do_not_change_the_losses(root, images, plain, num_processes, caplog):
    folder = root / f"processes-{num_processes}"
    fields = {"dataset_path": images, "output_dir": folder, "save_steps": 6}
    if num_processes == 1:
        train_here(**fields, gradient_accumulation_steps=4)
    else:
        fields |= {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "dataloader_num_workers": 1}
        run_to_end(root, num_processes=2, **fields)
    for name, keys in (("metrics.jsonl", ("loss", "grad_norm")), ("evaluations.jsonl", ("bits_per_dim",))):
        for ours, theirs in zip(rows(folder, name), rows(plain, name), strict=True):
            for key in keys:
                assert ours[key] == pytest.approx(theirs[key], rel=2e-5), (name, theirs["step"])
    # Checkpoints do not depend on the number of processes either.
    (folder / "checkpoint-12").rename(folder / "unused")
    with caplog.at_level("INFO", "jet_hf"):
        train_here(dataset_path=images, output_dir=folder, resume_from_checkpoint="latest")
    assert "checkpoint-6, after 6 of 12 steps" in caplog.text
    assert rows(folder)[-1]["loss"] == pytest.approx(rows(plain)[-1]["loss"], rel=2e-5)
    # Micro-batches stay as small as they were, on fewer processes too.
    assert "`gradient_accumulation_steps` is 4 on 1 process(es), so that micro-batches have 2 images" in caplog.text
    assert json.loads((folder / "checkpoint-12" / "checkpoint.json").read_text())["micro_batch_size"] == 2


@pytest.mark.parametrize(
    ("given", "checkpoint", "num_processes", "expected", "logged"),
    [
        (None, None, 4, 1, ""),  # a new run
        (None, 8, 8, 1, ""),
        (None, 8, 2, 4, "`gradient_accumulation_steps` is 4 on 2 process(es)"),
        (None, 7, 2, 8, "4 images, no more than the 7"),
        (None, 8, 16, 1, ""),  # more processes need less memory
        (None, "unknown", 2, 1, ""),  # a checkpoint of an earlier release
        (2, 8, 2, 2, "micro-batches have 16 images, but had 8"),
        (8, 8, 2, 8, ""),
    ],
)
def test_micro_batches_do_not_grow_on_fewer_processes_unless_the_user_says_so(
    given, checkpoint, num_processes, expected, logged, caplog
):
    arguments = TrainArguments(train_batch_size=64, gradient_accumulation_steps=given)
    size = None if checkpoint == "unknown" else checkpoint
    start = None if checkpoint is None else Checkpoint(Path("checkpoint-6"), 6, {}, size, {}, {})
    with caplog.at_level("INFO", "jet_hf"):
        assert count_micro_batches(arguments, start, num_processes) == expected
    assert logged in caplog.text if logged else not caplog.text


def test_a_row_of_the_log_describes_all_steps_since_the_last_one(root, images, plain, monkeypatch):
    """The checkpoint of step 9 cuts the second window."""
    folder, steps = root / "windows", rows(plain)
    fields = {"dataset_path": images, "output_dir": folder, "logging_steps": 5}
    train_here(**fields)
    logged = rows(folder)
    assert [row["step"] for row in logged] == [5, 10, 12]
    for row, window in zip(logged, (steps[:5], steps[5:10], steps[10:]), strict=True):
        for name in ("loss", "grad_norm", "loss_prior", "loss_log_det"):
            assert row[name] == pytest.approx(np.mean([step[name] for step in window]))
        assert row["largest_grad_norm"] == max(step["grad_norm"] for step in window)
        assert row["clipped_share"] == np.mean([step["grad_norm"] > 1 for step in window])
        assert row["learning_rate"] == window[-1]["learning_rate"] and row["skipped_steps"] == 0
    assert logged[1]["largest_grad_norm"] > logged[1]["grad_norm"]
    shutil.rmtree(folder / "checkpoint-12")
    monkeypatch.setattr("jet_hf.training.environment.__version__", "0.0.1")
    train_here(**fields, resume_from_checkpoint="latest")
    assert without_speeds(rows(folder)) == without_speeds(logged)
    # The versions are logged once, and again where a resumed run goes on with others.
    environments = rows(folder, "environments.jsonl")
    assert [(row["step"], row["jet_hf"] == "0.0.1") for row in environments] == [(0, False), (9, True)]
    assert {"python", "torch", "transformers", "accelerate", "commit", "device"} < environments[0].keys()


def test_only_a_checkout_of_jet_hf_has_a_commit(tmp_path):
    """The package may also be installed below the checkout of another project."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "lib").mkdir()
    assert checkout_commit(tmp_path / "lib") is None
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", tmp_path, *identity, "commit", "-qm", "A", "--allow-empty"], check=True)
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert checkout_commit(tmp_path) == head


def test_every_json_file_of_a_run_is_strict_and_files_of_earlier_releases_are_read(root, images):
    """The standard error of one image is not a number."""
    folder = root / "one-image"
    fields = {"dataset_path": images, "output_dir": folder, "max_eval_images": 1, "max_steps": 4, "save_steps": 2}
    train_here(**fields)
    evaluations = folder / "evaluations.jsonl"
    assert rows(folder, evaluations.name)[0]["standard_error"] is None
    shutil.rmtree(folder / "checkpoint-4")
    evaluations.write_text(evaluations.read_text().replace("null", "NaN"))
    train_here(**fields, resume_from_checkpoint="latest")
    written = [path for path in folder.rglob("*.json*") if path.is_file()]
    assert {path.name for path in written} >= {"evaluations.jsonl", "metrics.jsonl", "checkpoint.json", "config.json"}
    for path in written:
        texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for text in texts:
            parse_strictly(text)


def test_a_killed_run_on_a_stream_resumes_bit_for_bit(root, images):
    fields = {"dataset_path": images, "streaming": True, "shuffle_buffer_size": 7, "save_steps": 4}
    train_here(**fields, output_dir=root / "stream")
    fields |= {"output_dir": root / "stream-killed", "resume_from_checkpoint": "latest"}
    process = TrainProcess(root, **fields)
    process.when(process.logged(6), signal.SIGKILL).process.wait()
    train_here(**fields)
    assert_same_run(root / "stream-killed", root / "stream")


def test_an_extended_run_is_the_longer_one(root, images):
    """With a constant rate the weights are those of a run that was as long from the start."""
    fields = {"dataset_path": images, "lr_scheduler_type": "constant"}
    train_here(**fields, warmup_ratio=1 / 6, output_dir=root / "long")
    short = fields | {"warmup_ratio": 1 / 3, "output_dir": root / "extended"}
    train_here(**short, max_steps=6)
    finished = (root / "extended" / "model.safetensors").read_bytes()
    resumed = short | {"resume_from_checkpoint": "latest"}
    with pytest.raises(ValueError, match=r"`num_steps` was 6 and is now 12\..* add --extend\."):
        train_here(**resumed)
    with pytest.raises(ValueError, match=r"`learning_rate` was 0\.01 and is now 0.1") as error:
        train_here(**resumed, extend=True, learning_rate=0.1)
    assert "--extend" not in str(error.value)
    train_here(**resumed, extend=True)
    assert_same_run(root / "extended", root / "long")
    assert (root / "extended" / "model.safetensors").read_bytes() != finished
    # After an interruption, the run resumes with or without the flag.
    last = root / "extended" / "checkpoint-12"
    expected = (last / "optimizer.bin").read_bytes(), (last / "checkpoint.json").read_bytes()
    for extend in (True, False):
        shutil.rmtree(last)
        train_here(**resumed, extend=extend)
        assert ((last / "optimizer.bin").read_bytes(), (last / "checkpoint.json").read_bytes()) == expected
    assert_same_run(root / "extended", root / "long")


def test_a_schedule_changes_from_a_checkpoint_on(root, images, plain, caplog):
    fields = {"dataset_path": images, "output_dir": root / "cooled", "extend": True}
    with pytest.raises(ValueError, match=r"`extend` needs a checkpoint .*/cooled has no complete one"):
        train_here(**fields, resume_from_checkpoint="latest")
    fields |= {"resume_from_checkpoint": plain / "checkpoint-6", "lr_scheduler_type": "wsd", "cooldown_ratio": 0.5}
    with pytest.raises(ValueError, match=r"`max_steps` must be above the 6 steps of .*checkpoint-6 .* got 6"):
        train_here(**fields, max_steps=6)
    with pytest.raises(ValueError, match=r"later checkpoints .* move checkpoint-12 away"):
        train_here(**fields | {"output_dir": plain}, max_steps=8)
    with caplog.at_level("INFO", "jet_hf"):
        train_here(**fields, max_steps=10)
    logged = rows(root / "cooled")
    assert [row["step"] for row in logged] == [7, 8, 9, 10]
    cooled = [0.01 * (1 - (step / 5) ** 0.5) for step in (1, 2, 3, 4)]
    assert [row["learning_rate"] for row in logged] == pytest.approx(cooled)
    before = rows(plain)[6]["learning_rate"]
    assert (
        f"extended to 10 steps of the schedule wsd: the learning rate of the next step is {cooled[0]:.4g}"
        in caplog.text
    )
    assert f"in place of {before:.4g}" in caplog.text
    assert logged[0]["loss"] == rows(plain)[6]["loss"]  # the data go on
    trajectory = read_manifest(root / "cooled" / "checkpoint-10")["trajectory"]
    assert trajectory["extended"] == {"at_steps": [6], "warmup_steps": 1, "noise_curriculum_steps": 12}

    # After an interruption before its first own checkpoint, it does not start from scratch.
    for step in (9, 10):
        shutil.rmtree(root / "cooled" / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=r"must be .*/plain/checkpoint-6, from which the run in .*/cooled started"):
        train_here(**fields | {"resume_from_checkpoint": "latest", "extend": False}, max_steps=10)
    (root / "cooled" / "config.json").unlink()
    train_here(**fields, max_steps=10)
    assert rows(root / "cooled")[0]["loss"] == logged[0]["loss"]
    # The first command neither discards its checkpoints nor writes over another run.
    with pytest.raises(ValueError, match=r"/cooled already holds a run \(config.json, checkpoint-9, checkpoint-10\)"):
        train_here(**fields, max_steps=10)


def test_a_run_extended_from_before_its_end_has_a_best_model_and_samples_of_its_own(root, images):
    fields = {"dataset_path": images, "save_best": True, "warmup_ratio": 0.75, "output_dir": root / "taken-back"}
    train_here(**fields)
    other = (root / "taken-back" / "best" / "evaluation.json").read_text()
    assert json.loads(other)["step"] == 12
    for step in (9, 12):
        shutil.rmtree(root / "taken-back" / f"checkpoint-{step}")
    fields |= {"resume_from_checkpoint": "latest", "extend": True}
    with pytest.raises(ValueError, match=r"`max_steps` must be above the 9 steps of warm-up .*checkpoint-6.* got 8"):
        train_here(**fields, max_steps=8)
    train_here(**fields, max_steps=10)
    assert (root / "taken-back" / "best-12" / "evaluation.json").read_text() == other
    best = json.loads((root / "taken-back" / "best" / "evaluation.json").read_text())
    assert best["step"] == 10 and best in rows(root / "taken-back", "evaluations.jsonl")
    samples = (root / "taken-back" / "samples" / "samples-00000010.png").read_bytes()
    assert (root / "taken-back" / "samples.png").read_bytes() == samples


def test_samples_of_a_model_that_diverged_do_not_end_its_run(root, images, caplog):
    fields = {"max_steps": 1, "learning_rate": 1e30, "warmup_ratio": 0, "max_skipped_steps": 1}
    train_here(**fields, dataset_path=images, output_dir=root / "not-drawn")
    assert "step 1: the images could not be drawn: `latents` must be finite" in caplog.text
    assert rows(root / "not-drawn", "evaluations.jsonl")[-1]["bits_per_dim"] is None
    assert (root / "not-drawn" / "config.json").exists()


def test_a_run_goes_on_after_steps_that_are_not_finite(root, images, monkeypatch):
    def draw_noise(self, batch):
        """Spoil the fifth and the sixth step."""
        noise = draw(self, batch)
        noise[(batch.indices >= 4 * 8) & (batch.indices < 6 * 8)] = float("inf")
        return noise

    draw = Trainer._draw_noise
    monkeypatch.setattr(Trainer, "_draw_noise", draw_noise)
    fields = {"dataset_path": images, "save_steps": 5, "sample_steps": 0, "use_ema": True}
    train_here(**fields, max_skipped_steps=2, output_dir=root / "skipped")
    logged = rows(root / "skipped")
    assert [row["skipped_steps"] for row in logged] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert logged[4]["loss"] is None and logged[6]["loss"] < logged[0]["loss"]

    fields |= {"output_dir": root / "stopped", "resume_from_checkpoint": "latest"}
    for _ in range(2):
        with pytest.raises(NonFiniteLossError, match=r"^step 5 .* those of step 4"):
            train_here(**fields)
    # The checkpoint after the first skipped step counts it.
    with pytest.raises(NonFiniteLossError, match=r"^step 6 .* those of step 4"):
        train_here(**fields, max_skipped_steps=1)
    assert (root / "stopped" / "checkpoint-5").exists()
    with pytest.raises(NonFiniteLossError, match=r"^step 6 .* those of step 4"):
        train_here(**fields, max_skipped_steps=1)
    train_here(**fields, max_skipped_steps=2)
    assert_same_run(root / "stopped", root / "skipped")


def test_fine_tuning_starts_from_the_given_weights(root, images, straight):
    model_fields = [name for name in TINY if name in JetForDensityEstimation.config_class.__annotations__]
    fields = dict.fromkeys(model_fields) | {"model_name_or_path": straight, "dataset_path": images, "max_steps": 2}
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision is a setting of the process
    train_here(**fields, mixed_precision="bf16", output_dir=root / "tuned")
    AcceleratorState._reset_state(reset_partial_state=True)
    first, last = rows(root / "tuned", "evaluations.jsonl")[0], rows(straight, "evaluations.jsonl")[-1]
    assert first["bits_per_dim"] == pytest.approx(last["bits_per_dim"], abs=0.02)  # bfloat16


def test_another_run_is_not_written_over_and_other_settings_are_refused(images, plain):
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    with pytest.raises(ValueError, match="already holds a run"):
        train_here(dataset_path=images, output_dir=plain)
    fields = {"train_batch_size": 7, "learning_rate": 0.5, "hidden_size": 32}
    with pytest.raises(ValueError, match=r"cannot resume from .*/checkpoint-12") as error:
        train_here(dataset_path=images, output_dir=plain, resume_from_checkpoint="latest", **fields)
    for change in ("`train_batch_size` was 8", "`learning_rate` was 0.01", "`model.hidden_size` was 16"):
        assert f"{change} and is now {fields[change.split('`')[1].removeprefix('model.')]}" in str(error.value)
    after = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    assert {path for path in before | after if after.get(path) != before.get(path)} <= {plain}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset_path": None}, "`dataset_name` and `dataset_path`, got neither"),
        ({"dataset_path": "typo/", "hidden_size": 15}, "typo does not exist"),  # before a model is built
        ({"dataset_path": ROOT / "README.md"}, r"README\.md must be a folder or a parquet, tar or npz file"),
        ({"train_split": "trian"}, "trian"),
        ({"image_column": "picture"}, "picture"),
        ({"train_batch_size": 10, "gradient_accumulation_steps": 4}, "train_batch_size"),
        ({"hidden_size": 15}, "hidden_size"),
        ({"context_size": 4}, "`context_size` must be None"),
        ({"max_steps": None, "num_train_epochs": 0.1}, "num_train_epochs"),
        ({"max_steps": None, "streaming": True}, "`max_steps` must be given with `streaming`"),
        ({"resume_from_checkpoint": "/nowhere/checkpoint-3"}, "/nowhere/checkpoint-3 does not exist"),
        ({"resume_from_checkpoint": ROOT}, "not a complete checkpoint"),
        ({"report_to": "nothing"}, "`report_to` must name installed trackers .* got nothing"),
        ({"WORLD_SIZE": "2"}, "do not see each other"),
        ({"dataset_release": "imagenet1k_vandenoord"}, "49,?999"),
        ({"save_best": True, "eval_steps": 0}, "`save_best` needs evaluations"),
        ({"push_to_hub": True, "hub_model_id": "me/my run"}, "`hub_model_id`, by default .* cannot be used: .*my run"),
        ({"output_dir": None}, "`output_dir` .*/run must not lie inside `dataset_path` .*/images"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(tmp_path, images, monkeypatch, fields, message):
    if "WORLD_SIZE" in fields:  # two processes that a launcher for GPUs started where there are none
        monkeypatch.setenv("WORLD_SIZE", fields.pop("WORLD_SIZE"))
    fields = {"dataset_path": images, "output_dir": tmp_path / "run"} | fields
    fields["output_dir"] = folder = fields["output_dir"] or images / "run"
    with pytest.raises((ValueError, OSError, StrictDataclassError, CheckpointError), match=message):
        train_here(**fields)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", ".git.draft/precious", ".checkpoint-notes/precious"])
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_is(tmp_path, images, name):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("cake")
    for resumed in (None, "latest"):
        with pytest.raises(ValueError, match="must be empty or the folder of a run"):
            train_here(dataset_path=images, output_dir=tmp_path / "run", resume_from_checkpoint=resumed)
        assert file.read_text() == "cake"
        assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [file]


def test_only_the_drafts_of_a_run_are_cleared_and_a_folder_that_was_not_replaced_comes_back(tmp_path):
    drafts = [".checkpoint-3.draft", ".checkpoint-3.old", ".checkpoint-3.draft.old", ".model.draft", ".push.draft"]
    drafts += [".best.draft", ".best.old", ".best.draft.old"]
    for name in (*drafts, ".git.draft", ".checkpoint-notes", "checkpoint-3"):
        (tmp_path / name).mkdir()
    (tmp_path / ".best.draft.old" / "config.json").touch()
    clear_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".git.draft", ".checkpoint-notes", "checkpoint-3", "best"}
    assert (tmp_path / "best" / "config.json").exists()


def test_incomplete_checkpoints_do_not_displace_complete_ones(tmp_path):
    for step in (3, 6, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 9:
            (tmp_path / f"checkpoint-{step}" / "checkpoint.json").write_text("{}")
    prune_checkpoints(tmp_path, limit=2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-6", "checkpoint-9", "checkpoint-12"}


def test_a_run_pushes_its_model_and_a_failing_push_does_not_stop_it(root, images):
    folder = root / "pushed"
    fields = {"dataset_path": images, "save_steps": 6, "push_to_hub": True, "hub_model_id": "tiny"}
    with HubServer() as hub:
        hub.fail("commit", times=1, status=403)
        output = run_to_end(root, output_dir=folder, variables=hub.environment(token="writer"), **fields)
        files = hub.files("jet/tiny")
    assert "step 6 was not pushed, training is not affected" in output
    assert "pushed the finished model to" in output
    assert rows(folder)[-1]["step"] == 12 and not list(folder.glob(".*"))
    assert {"README.md", "config.json", "model.safetensors", "metrics.jsonl", "samples.png"} <= files.keys()
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not [name for name in files if "checkpoint" in name or name.startswith(".")]
    card = files["README.md"].decode()
    assert "train.py" in card and "--max_steps=12" in card and str(root) not in card
    assert 'from_pretrained("jet/tiny"' in card
