"""Trackers of a run: one run for all starts, each step once, files in output_dir, logins checked first."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train_process import flags, like_a_process, rows, write_images

from jet_hf.training import parse_arguments, train
from jet_hf.training.setup import make_accelerator


class FakeTracker(ModuleType):
    """The part of wandb's and trackio's interface that a run uses; it keeps what it receives."""

    def __init__(self, name: str):
        super().__init__(name)
        self.starts: list[dict] = []
        self.logged: list[dict] = []
        self.config: dict = {}
        self.Image = lambda pixels: pixels
        self.Error = type("Error", (Exception,), {})

    def login(self) -> bool:
        return True

    def init(self, **options) -> "FakeTracker":
        self.starts.append(options)
        # Like wandb, it draws an id; like trackio, it takes a name of its own for a new run.
        self.id = options.get("id") or f"id-{len(self.starts)}"
        self.name = options["name"] if options["resume"] == "allow" else f"{options['name']}-new-{len(self.starts)}"
        folder = Path(options.get("dir", ".")) / self.__name__
        folder.mkdir(exist_ok=True)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict, step: int | None = None, commit: bool = True) -> None:
        self.logged.append({"step": step} | values)

    def finish(self) -> None:
        pass

    def steps(self, name: str) -> list[int]:
        return [row["step"] for row in self.logged if name in row]


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setattr(
        tracking, "_available_trackers", [LoggerType.TENSORBOARD, LoggerType.WANDB, LoggerType.TRACKIO]
    )
    monkeypatch.setitem(sys.modules, "wandb", module := FakeTracker("wandb"))
    return module


@pytest.fixture
def trackio(monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # restored afterwards
    monkeypatch.delenv("TRACKIO_DIR")
    monkeypatch.setitem(sys.modules, "trackio", module := FakeTracker("trackio"))
    # It writes where the environment says, not to the current folder.
    monkeypatch.setattr(module, "init", lambda **options: FakeTracker.init(module, **options, dir=tmp_path))
    return module


def forget_the_end(folder: Path) -> None:
    """Leave a run as if it had been killed after its last step was logged, before its checkpoint."""
    shutil.rmtree(folder / "checkpoint-6")
    (folder / "config.json").unlink()


def logged_steps(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the steps and values that tensorboard shows."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in ("train/loss", "eval/bits_per_dim")
    }


def test_every_start_of_a_run_goes_on_in_the_same_run_of_each_tracker(tmp_path, wandb, trackio, monkeypatch):
    images, folder, elsewhere = write_images(tmp_path / "images"), tmp_path / "cat", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    fields = {"dataset_path": images, "output_dir": folder, "max_steps": 6, "save_steps": 4, "eval_steps": 3}
    words = [*flags(**fields, resume_from_checkpoint="latest"), "--report_to", "tensorboard", "wandb", "trackio"]
    with like_a_process(tmp_path):
        train(parse_arguments(words))
        num_files = len(list((folder / "jet").rglob("*")))
        forget_the_end(folder)
        train(parse_arguments(words))

        assert [start["id"] for start in wandb.starts] == [None, "id-1"]
        assert [(start["name"], start["resume"]) for start in trackio.starts] == [
            ("cat", "never"),
            ("cat-new-1", "allow"),
        ]
        for module in (wandb, trackio):
            assert {start["project"] for start in module.starts} == {"jet"} and module.config["max_steps"] == 6
            assert module.steps("train/loss") == [1, 2, 3, 4, 5, 6]
            assert module.steps("eval/bits_per_dim") == [0, 3, 6]
        logged = next(row for row in wandb.logged if row["step"] == 6 and "train/loss" in row)
        assert {f"train/{name}": value for name, value in rows(folder)[0].items()}.keys() == logged.keys() - {"step"}
        assert wandb.starts[0]["dir"] == str(folder / "trackers")

        shown = logged_steps(folder / "jet")
        assert [step for step, _ in shown["train/loss"]] == [1, 2, 3, 4, 5, 6]
        assert [step for step, _ in shown["eval/bits_per_dim"]] == [0, 3, 6]
        assert len(list((folder / "jet").rglob("*"))) == num_files + 1

        # Steps that are not the same as before are logged again.
        forget_the_end(folder)
        train(parse_arguments([*words, "--extend", "--lr_scheduler_type", "constant"]))
        assert wandb.steps("train/loss") == trackio.steps("train/loss") == [1, 2, 3, 4, 5, 6, 5, 6]
        losses = [(row["step"], pytest.approx(row["loss"])) for row in rows(folder)]
        assert logged_steps(folder / "jet")["train/loss"] == losses

        # Another name is another run, which gets the rows of its own.
        again = [*words, "--extend", "--lr_scheduler_type", "constant", "--run_name", "dog", "--project", "pets"]
        train(parse_arguments(again))
    assert (wandb.starts[3]["id"], wandb.starts[3]["name"], wandb.starts[3]["project"]) == (None, "dog", "pets")
    assert (trackio.starts[3]["name"], trackio.starts[3]["resume"]) == ("dog", "never")
    assert json.loads((folder / "trackers" / "runs.json").read_text())["runs"] == {
        "tensorboard": "pets",
        "trackio": "dog-new-4",
        "wandb": "id-4",
    }
    assert not list(elsewhere.iterdir())


def test_a_missing_login_is_said_before_the_data_are_opened(tmp_path, wandb, monkeypatch):
    def login():
        raise wandb.Error("no API key configured")

    monkeypatch.setattr(wandb, "login", login)
    words = flags(dataset_path="/nowhere", output_dir=tmp_path / "run", report_to="wandb")
    with pytest.raises(ValueError, match=r"wandb needs a login \(no API key .* `wandb login`.*WANDB_MODE=offline"):
        train(parse_arguments(words))
    assert not (tmp_path / "run").exists()


def test_a_run_without_trackers(tmp_path, recwarn):
    assert make_accelerator(parse_arguments(["--report_to", "none"])).log_with == []
    assert not [warning for warning in recwarn if "log_with" in str(warning.message)]
    for words, message in (
        (["--report_to", "none", "wandb"], "`report_to` must be none alone or name trackers, got none wandb"),
        (["--project", "../pets"], r"`project` must consist of letters, digits, .* got '\.\./pets'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_arguments(words)
