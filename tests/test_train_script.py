"""scripts/train.py: what a run leaves behind, and what it survives. Real processes, real kills."""

import json
import os
import shlex
import shutil
import signal
import subprocess

import datasets
import numpy as np
import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file
from test_files import parse_strictly
from train_process import TINY, TrainProcess, command, environment, run_to_end, write_images

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.training import CheckpointError, TrainArguments, parse_arguments, train
from jet_hf.training.checkpoints import clear_drafts, read_manifest


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def images(root):
    return write_images(root / "images")


@pytest.fixture(scope="module")
def straight(root, images):
    """A run that nothing happened to, with a moving average to make resuming harder."""
    run_to_end(root, dataset_path=images, output_dir=root / "straight", use_ema=True, ema_decay=0.9)
    return root / "straight"


def rows(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def assert_same_run(folder, straight):
    """Weights bit for bit, the finished ones and the last checkpoint's; every logged number but the speeds."""
    for name in ("model.safetensors", "checkpoint-12/model.safetensors"):
        ours, theirs = load_file(folder / name), load_file(straight / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        ours, theirs = rows(folder, name), rows(straight, name)
        for row in (*ours, *theirs):
            for speed in ("images_per_second", "peak_memory_gib"):
                row.pop(speed, None)
        assert ours == theirs, name


def test_a_run_leaves_a_model_a_log_pictures_and_checkpoints(straight):
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
    assert sorted(path.name for path in straight.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-6",
        "checkpoint-9",
    ]
    for step in (0, 6, 12):
        assert Image.open(straight / "samples" / f"samples-{step:08d}.png").size == (18, 18)
        assert Image.open(straight / "samples" / f"reconstructions-{step:08d}.png").size == (48, 18)
    pictures = [np.asarray(Image.open(straight / "samples" / f"samples-{step:08d}.png")) for step in (0, 12)]
    assert not np.array_equal(*pictures)
    assert not [path for path in straight.iterdir() if path.name.startswith(".")]
    # The finished model is the average, a checkpoint holds the weights themselves.
    average, weights = (load_file(path / "model.safetensors") for path in (straight, straight / "checkpoint-12"))
    assert not all(torch.equal(average[key], weights[key]) for key in weights)
    JetForDensityEstimation.from_pretrained(straight / "checkpoint-12")


def test_a_run_is_not_written_into_its_own_data(images):
    options = TINY | {"dataset_path": str(images), "output_dir": str(images / "run")}
    with pytest.raises(ValueError, match=r"`output_dir` .*/run must not lie inside `dataset_path` .*/images"):
        train(TrainArguments(**options))
    assert not (images / "run").exists()


def test_the_recipe_of_a_run_repeats_it(root, straight):
    recipe = yaml.safe_load((straight / "recipe.yaml").read_text())
    assert recipe["ema_decay"] == 0.9 and recipe["train_batch_size"] == 8
    output = run_to_end(root, **dict.fromkeys(TINY), config=straight / "recipe.yaml", output_dir=root / "repeated")
    assert "finished model" in output
    assert_same_run(root / "repeated", straight)


def test_killed_again_and_again_a_run_ends_in_the_same_weights(root, images, straight):
    folder = root / "killed"
    options = {
        "dataset_path": images,
        "output_dir": folder,
        "use_ema": True,
        "ema_decay": 0.9,
        "resume_from_checkpoint": "latest",
    }

    def logged(step):
        path = folder / "metrics.jsonl"
        return lambda: path.exists() and f'"step": {step},' in path.read_text()

    moments = [
        logged(2),  # before there is any checkpoint
        lambda: any(folder.glob(".checkpoint-*")),  # while the first one is written
        logged(5),
        lambda: (folder / "checkpoint-9").exists(),  # as soon as it is seen
        lambda: (folder / ".model.draft").exists(),  # while the finished model is written
    ]
    for moment in moments:
        process = TrainProcess(root, **options).when(moment, signal.SIGKILL)
        assert process.process.wait() == -signal.SIGKILL
        for path in folder.glob("checkpoint-*"):
            assert (path / "checkpoint.json").exists()
    run_to_end(root, **options)
    assert_same_run(folder, straight)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(root, images, straight):
    folder = root / "damaged"
    shutil.copytree(straight, folder)
    path = folder / "checkpoint-12" / "optimizer.bin"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    (folder / "checkpoint-9" / "model.safetensors").unlink()
    output = run_to_end(
        root,
        dataset_path=images,
        output_dir=folder,
        use_ema=True,
        ema_decay=0.9,
        resume_from_checkpoint="latest",
    )
    assert "WARNING skipping a checkpoint" in output and "optimizer.bin is not what was written" in output
    assert "going on from" in output and "checkpoint-6, after 6 of 12 steps" in output
    assert_same_run(folder, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_in_order(root, images, straight, number):
    folder = root / number.name
    options = {"dataset_path": images, "output_dir": folder, "use_ema": True, "ema_decay": 0.9, "save_steps": 0}
    options["dataloader_num_workers"] = 1  # the signal goes to all processes of a job

    def five_steps():
        return (folder / "metrics.jsonl").exists() and '"step": 5,' in (folder / "metrics.jsonl").read_text()

    process = TrainProcess(root, **options).when(five_steps, number)
    output = process.wait(code=0)
    assert f"stopped by {number.name} after step" in output and "Traceback" not in output
    assert not process.running() and not [path for path in folder.iterdir() if path.name.startswith(".")]
    (checkpoint,) = folder.glob("checkpoint-*")
    stopped = int(checkpoint.name.split("-")[1])
    assert 5 <= stopped < 12 and rows(folder)[-1]["step"] == stopped
    assert not (folder / "model.safetensors").exists()
    run_to_end(root, **options, resume_from_checkpoint="latest")
    assert_same_run(folder, straight)


def test_a_full_disk_stops_the_run_and_leaves_older_checkpoints_whole(root, images, straight):
    """On a real file system that is too small for a second checkpoint; where none may be mounted, under a limit."""
    small, result = root / "small", root / "full"
    small.mkdir()
    size = sum(file.stat().st_size for file in (straight / "checkpoint-9").rglob("*") if file.is_file())
    fields = {"dataset_path": images, "output_dir": small / "run", "use_ema": True, "sample_steps": 0, "eval_steps": 0}
    script = (
        f"mount -t tmpfs -o size={int(1.6 * size)} tmpfs {small} || exit 99\n"
        f"{shlex.join(command(**fields))}\ncode=$?\ncp -r {small}/run {result}\nexit $code"
    )
    mount = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user", "--user"]), "bash", "-c", script]
    process = subprocess.run(mount, env=environment(root), capture_output=True, text=True)
    if process.returncode == 99 or "unshare" in process.stderr:  # this machine mounts nothing
        limit = f"ulimit -f {size // 4096}; exec {shlex.join(command(**fields | {'output_dir': result}))}"
        process = subprocess.run(["bash", "-c", limit], env=environment(root), capture_output=True, text=True)
        assert "checkpoint-3 could not be written" in process.stderr
    else:
        assert "checkpoint-6 could not be written" in process.stderr and "untouched: checkpoint-3" in process.stderr
        (checkpoint,) = result.glob("checkpoint-*")
        assert read_manifest(checkpoint)["step"] == 3
        JetForDensityEstimation.from_pretrained(checkpoint)
    assert process.returncode == 1 and process.stderr.count("error: ") == 1, process.stderr
    assert "Traceback" not in process.stderr and not list(result.glob(".checkpoint-*"))


def test_a_run_that_turns_non_finite_names_the_step_and_keeps_the_last_checkpoint(root, images):
    folder = root / "diverged"
    output = run_to_end(
        root, code=1, dataset_path=images, output_dir=folder, learning_rate=1e37, warmup_ratio=0.5, save_steps=1
    )
    (message,) = [line for line in output.splitlines() if "error: " in line]
    checkpoint = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[-1]
    step = int(checkpoint.name.split("-")[1])
    assert f"step {step + 1}: loss" in message and f"Last checkpoint: {checkpoint}" in message
    assert "Traceback" not in output and not (folder / "config.json").exists()
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())


@pytest.fixture(scope="module")
def plain(root, images):
    """One process, no accumulation, no average."""
    run_to_end(root, dataset_path=images, output_dir=root / "plain", save_steps=6)
    return root / "plain"


@pytest.mark.parametrize(
    ("num_processes", "fields"),
    [
        (1, {"gradient_accumulation_steps": 4}),
        (2, {}),
        (2, {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "dataloader_num_workers": 1}),
    ],
)
def test_processes_and_accumulation_do_not_change_the_losses(root, images, plain, num_processes, fields):
    folder = root / f"{num_processes}-{len(fields)}"
    run_to_end(root, num_processes=num_processes, dataset_path=images, output_dir=folder, save_steps=6, **fields)
    for name, keys in (("metrics.jsonl", ("loss", "grad_norm")), ("evaluations.jsonl", ("bits_per_dim",))):
        assert len(rows(folder, name)) == len(rows(plain, name))
        for ours, theirs in zip(rows(folder, name), rows(plain, name), strict=True):
            for key in keys:
                assert ours[key] == pytest.approx(theirs[key], rel=2e-5), (name, theirs["step"])
    # Checkpoints do not depend on the number of processes either.
    (folder / "checkpoint-12").rename(folder / "unused")
    output = run_to_end(root, dataset_path=images, output_dir=folder, resume_from_checkpoint="latest")
    assert "checkpoint-6, after 6 of 12 steps" in output
    assert rows(folder)[-1]["loss"] == pytest.approx(rows(plain)[-1]["loss"], rel=2e-5)


def test_every_json_file_of_a_run_is_strict_and_files_of_earlier_releases_are_read(root, images):
    """The standard error of one image is not a number."""
    folder = root / "one-image"
    fields = {"dataset_path": images, "output_dir": folder, "max_eval_images": 1, "max_steps": 4, "save_steps": 2}
    run_to_end(root, **fields)
    evaluations = folder / "evaluations.jsonl"
    assert rows(folder, evaluations.name)[0]["standard_error"] is None
    shutil.rmtree(folder / "checkpoint-4")
    evaluations.write_text(evaluations.read_text().replace("null", "NaN"))
    run_to_end(root, **fields, resume_from_checkpoint="latest")
    written = [path for path in folder.rglob("*.json*") if path.is_file()]
    assert {path.name for path in written} >= {"evaluations.jsonl", "metrics.jsonl", "checkpoint.json", "config.json"}
    for path in written:
        texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for text in texts:
            parse_strictly(text)


def test_streaming_goes_on_bit_for_bit(root, images):
    options = {"dataset_path": images, "streaming": True, "shuffle_buffer_size": 7, "save_steps": 4}
    run_to_end(root, **options, output_dir=root / "stream")
    folder = root / "stream-killed"

    def six_steps():
        return (folder / "metrics.jsonl").exists() and '"step": 6,' in (folder / "metrics.jsonl").read_text()

    options["resume_from_checkpoint"] = "latest"
    TrainProcess(root, **options, output_dir=folder).when(six_steps, signal.SIGKILL).process.wait()
    assert "after 4 of 12 steps" in run_to_end(root, **options, output_dir=folder)
    assert_same_run(folder, root / "stream")


def test_fine_tuning_starts_from_the_given_weights(root, images, straight):
    folder = root / "tuned"
    model_fields = (
        "image_size", "patch_size", "num_coupling_layers", "hidden_size", "num_hidden_layers", "num_attention_heads",
    )  # fmt: skip
    fields = dict.fromkeys(model_fields) | {"max_steps": 2, "mixed_precision": "bf16", "torch_compile": False}
    run_to_end(root, **fields, model_name_or_path=straight, dataset_path=images, output_dir=folder)
    first, last = rows(folder, "evaluations.jsonl")[0], rows(straight, "evaluations.jsonl")[-1]
    assert first["bits_per_dim"] == pytest.approx(last["bits_per_dim"], abs=0.02)  # bfloat16
    output = run_to_end(
        root, 1, **fields | {"image_size": 8}, model_name_or_path=straight, dataset_path=images, output_dir=folder
    )
    assert "error: `model_name_or_path` brings the model's fields with it, but image_size" in output


def test_a_plan_writes_nothing(root, images):
    output = run_to_end(root, dataset_path=images, output_dir=root / "planned", dry_run=True)
    assert not (root / "planned").exists()
    assert "21 training images, 12 steps of 8 images" in output and "images/s" in output and "FLOPs" in output


def test_another_run_is_not_written_over_and_other_settings_are_refused(root, images, plain):
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    output = run_to_end(root, 1, dataset_path=images, output_dir=plain)
    assert "holds a run already" in output and "Traceback" not in output
    fields = {"train_batch_size": 7, "learning_rate": 0.5, "hidden_size": 32}
    output = run_to_end(root, 1, dataset_path=images, output_dir=plain, resume_from_checkpoint="latest", **fields)
    for change in ("`train_batch_size` was 8", "`learning_rate` was 0.01", "`model.hidden_size` was 16"):
        assert f"{change} and is now {fields[change.split('`')[1].removeprefix('model.')]}" in output
    assert "Traceback" not in output
    after = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    assert {path for path in before | after if after.get(path) != before.get(path)} <= {plain}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset_path": None}, "`dataset_name` and `dataset_path`, got neither"),
        ({"dataset_path": "/nowhere"}, "/nowhere"),
        ({"train_split": "trian"}, "trian"),
        ({"image_column": "picture"}, "picture"),
        ({"train_batch_size": 10, "gradient_accumulation_steps": 4}, "train_batch_size"),
        ({"hidden_size": 15}, "hidden_size"),
        ({"max_steps": None, "num_train_epochs": 0.1}, "num_train_epochs"),
        ({"max_steps": None, "streaming": True}, "max_steps"),
        ({"resume_from_checkpoint": "/nowhere/checkpoint-3"}, "/nowhere/checkpoint-3"),
        ({"report_to": "nothing"}, "nothing"),
        ({"WORLD_SIZE": "2"}, "do not see each other"),
        ({"dataset_release": "imagenet1k_vandenoord"}, "49,?999"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path, images, monkeypatch, fields, message):
    """In this process, for speed; the script prints the message and exits with 1."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    if "WORLD_SIZE" in fields:  # two processes that a launcher for GPUs started where there are none
        monkeypatch.setenv("WORLD_SIZE", fields.pop("WORLD_SIZE"))
    fields = TINY | {"dataset_path": images, "output_dir": tmp_path / "run"} | fields
    flags = [f"--{name}={value}" for name, value in fields.items() if value is not None]
    with pytest.raises((ValueError, OSError, StrictDataclassError, CheckpointError), match=message):
        train(parse_arguments(flags))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resumed", [None, "latest"])
@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", ".git.draft/precious", ".checkpoint-notes/precious"])
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_is(tmp_path, images, monkeypatch, name, resumed):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("cake")
    fields = TINY | {"dataset_path": images, "output_dir": tmp_path / "run", "resume_from_checkpoint": resumed}
    flags = [f"--{key}={value}" for key, value in fields.items() if value is not None]
    with pytest.raises(ValueError, match="holds files that are not those of a run"):
        train(parse_arguments(flags))
    assert file.read_text() == "cake"
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [file]


def test_only_the_drafts_of_a_run_are_cleared(tmp_path):
    drafts = [".checkpoint-3.draft", ".checkpoint-3.old", ".checkpoint-3.draft.old", ".model.draft", ".push.draft"]
    for name in (*drafts, ".git.draft", ".checkpoint-notes", "checkpoint-3"):
        (tmp_path / name).mkdir()
    clear_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".git.draft", ".checkpoint-notes", "checkpoint-3"}


@pytest.mark.parametrize("refused", [False, True])
def test_a_run_pushes_its_model_and_a_failing_hub_does_not_stop_it(root, images, refused):
    folder = root / f"pushed-{refused}"
    with HubServer() as hub:
        if refused:
            hub.fail("commit", times=100, status=403)
        output = run_to_end(
            root,
            dataset_path=images,
            output_dir=folder,
            save_steps=6,
            push_to_hub=True,
            hub_model_id="tiny",
            variables=hub.environment(token="writer"),
        )
        assert "finished model" in output and rows(folder)[-1]["step"] == 12
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        if refused:
            assert "the finished model was not pushed, training is not affected" in output
            return
        files = hub.files("jet/tiny")
    assert {"README.md", "config.json", "model.safetensors", "metrics.jsonl", "samples.png"} <= files.keys()
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not [name for name in files if "checkpoint" in name or name.startswith(".")]
    assert "pushed step 6 to" in output and "pushed the finished model to" in output
    card = files["README.md"].decode()
    assert "train.py" in card and "--max_steps=12" in card and str(root) not in card
    assert 'from_pretrained("jet/tiny"' in card


def test_trackers_get_numbers_and_pictures(root, images):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = root / "tracked"
    run_to_end(root, dataset_path=images, output_dir=folder, max_steps=3, report_to="tensorboard")
    (file,) = (folder / "jet").glob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent)).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([row["loss"] for row in rows(folder)], rel=1e-6)
    assert len(events.Scalars("eval/bits_per_dim")) == 2
    assert {"samples", "reconstructions"} <= set(events.Tags()["images"])
