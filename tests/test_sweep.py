"""scripts/sweep.py: grids and the paper's tables as runs, a sweep through a kill, results, verdicts and the report."""

import itertools
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pandas as pd
import psutil
import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file
from train_process import TINY, ForkedScript, slow_saves, write_images

from jet_hf import JetConfig
from jet_hf.analysis.cost import training_flops
from jet_hf.training import parse_arguments, train
from reproduction import sweep as sweep_module
from reproduction.arguments import SweepArguments
from reproduction.report import compare, differences, judge, pareto_front, write_report
from reproduction.sweep import collect_rows, make_runs, parse_assignments, run_all, run_sweep
from reproduction.tables import TABLES, read_table


PHOTOGRAPHS = str(ROOT / "recipes" / "sweeps" / "photographs.yaml")
ABLATIONS = str(ROOT / "recipes" / "sweeps" / "imagenet1k_64.yaml")
GRIDS = [name for name in TABLES if name.startswith("imagenet")]


def runs_of(table: str, seeds=(0,), axes=None, overrides=(), recipe=PHOTOGRAPHS, folder=Path("runs")):
    assignments = parse_assignments(list(overrides), "override")
    return make_runs(read_table(table, axes).cells, recipe, assignments, list(seeds), folder)


# Tables


def test_the_tables_are_the_grids_of_the_paper():
    numbers = {"coupling_layouts": 25, "masking_vs_pairing": 12, "glow_parts": 4, "cnn": 7 * 14 + 54}
    numbers |= {"dequantization": 2, **dict.fromkeys(GRIDS, 54)}
    cells = {name: {cell.name: cell for cell in read_table(name).cells} for name in TABLES}
    assert {name: len(members) for name, members in cells.items()} == numbers

    ratios, patterns = ("all_spatial", *(f"{k}to1" for k in range(1, 6))), ("rows", "columns", "checkerboard", "mix")
    layouts = {name: JetConfig(**cell.fields) for name, cell in cells["coupling_layouts"].items()}
    assert set(layouts) == {"all_channel", *("-".join(pair) for pair in itertools.product(ratios, patterns))}
    assert set(layouts["all_channel"].layer_splits) == {"channels"}
    splits = layouts["2to1-rows"].layer_splits
    assert splits[:6] == ["channels", "channels", "hstripes", "channels", "channels", "hstripes-inv"]
    assert set(layouts["all_spatial-columns"].layer_splits) == {"vstripes", "vstripes-inv"}
    # The default of the model is the layout that the paper found best.
    assert layouts["4to1-mix"].layer_splits == JetConfig().layer_splits
    assert len({str(config.layer_splits) for config in layouts.values()}) == 25

    assert cells["masking_vs_pairing"]["1to1-masking"].fields["coupling_mode"] == "masking"
    assert cells["glow_parts"]["actnorm"].fields == {"use_actnorm": True, "use_invertible_dense": False}
    flow, uniform = (JetConfig(**cell.fields) for cell in cells["dequantization"].values())
    assert (flow.num_coupling_layers, flow.dequantization_num_coupling_layers) == (64, 16)
    assert (uniform.num_coupling_layers, uniform.dequantization) == (80, "uniform")
    fields = cells["imagenet21k_64"]["layers64-depth6-width1024"].fields
    assert fields == {"num_coupling_layers": 64, "num_hidden_layers": 6, "hidden_size": 1024} | {
        "num_attention_heads": 16,
        "backbone": "vit",
    }
    assert "cnn-layers64-depth1-width1536" not in cells["cnn"]  # left out by the paper


def test_the_cells_hold_the_results_of_the_paper():
    results = {name: {cell.name: cell.paper for cell in read_table(name).cells} for name in TABLES}
    best = [min(value for value in results[name].values() if value) for name in GRIDS]
    assert best == [3.93, 3.66, 3.53, 3.13]
    for table, cell, result in (
        ("coupling_layouts", "4to1-mix", 3.719),
        ("coupling_layouts", "all_spatial-columns", 3.882),
        ("masking_vs_pairing", "all_spatial-masking", 3.844),
        ("imagenet1k_64", "layers64-depth5-width512", 3.66),
        ("imagenet21k_64", "layers64-depth6-width1024", 3.13),
        ("imagenet21k_32", "layers128-depth6-width1024", None),
        ("cnn", "cnn-layers64-depth6-width768", 6.41),
        ("cnn", "vit-layers16-depth1-width256", 4.02),
    ):
        assert results[table][cell] == result, (table, cell)
    assert results["glow_parts"] == {"none": 3.72, "actnorm": None, "invertible_dense": None, "both": 3.733}
    assert set(results["dequantization"].values()) == {None}  # the paper gives none


@pytest.mark.parametrize("name", TABLES)
def test_the_results_of_the_paper_agree_with_its_claims(name):
    table = read_table(name)
    cells = pd.DataFrame([cell.labels for cell in table.cells], index=[cell.name for cell in table.cells])
    # The product of the sizes stands in for the FLOPs, which grow with each of them.
    sizes = ("num_coupling_layers", "num_hidden_layers", "hidden_size", "hidden_size")
    cells["flops"] = [math.prod(cell.fields.get(size, 1) for size in sizes) for cell in table.cells]
    paper = pd.DataFrame([{cell.name: cell.paper for cell in table.cells}], dtype=float)
    assert table.claims
    for claim in table.claims:
        margins = differences(claim, cells, paper)
        assert margins.size and (margins.min().min() > 0 or name == "dequantization"), claim["text"]


def test_axes_take_other_sizes_and_fewer_choices():
    axes = {"num_coupling_layers": ["6"], "dequantization_num_coupling_layers": ["2"]}
    cells = read_table("dequantization", axes).cells
    assert [cell.fields["num_coupling_layers"] for cell in cells] == [6, 8]
    assert len(read_table("masking_vs_pairing", {"ratio": ["1to1"]}).cells) == 2
    for table, axes, message in (
        ("masking_vs_pairing", {"depth": ["1"]}, "must name one of ratio, mode, got 'depth'"),
        ("masking_vs_pairing", {"ratio": ["9to1"]}, "ratio must be one of all_spatial"),
        ("cnn", {"cnn_depth": ["0"]}, "cnn_depth must be a positive integer, got '0'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_table(table, axes)


# Runs


def test_a_run_is_a_command_of_the_train_script():
    runs = runs_of("glow_parts", seeds=(0, 3), overrides=["max_steps=7", "hidden_size=32"])
    assert [run.seed for run in runs] == 4 * [0] + 4 * [3] and len({run.folder for run in runs}) == 8
    for run in runs:
        words = run.launch_arguments("cpu.yaml")
        assert words[:3] == ["--config_file", "cpu.yaml", "scripts/train.py"]
        assert parse_arguments(words[3:]) == run.arguments
        assert run.arguments.seed == run.seed == run.config.permutation_seed
        assert (run.arguments.max_steps, run.config.hidden_size) == (7, 32)
        assert {name: getattr(run.config, name) for name in run.cell.fields} == run.cell.fields
        assert run.arguments.resume_from_checkpoint == "latest" and run.arguments.output_dir == str(run.folder)
    # Lists, of one value and of several, and sizes of every grid.
    (run,) = runs_of("coupling_layouts", axes={"ratio": ["all_channel"]}, recipe=ABLATIONS)
    assert set(run.config.layer_splits) == {"channels"}
    (row,) = collect_rows("coupling_layouts", [run])
    assert row["num_steps"] == 250_224 and row["training_flops"] > 8e19  # from the size of the release
    (run,) = runs_of("coupling_layouts", axes={"ratio": ["4to1"], "pattern": ["mix"]}, recipe=ABLATIONS)
    for field in ("num_coupling_layers", "num_hidden_layers", "hidden_size", "num_attention_heads", "image_size"):
        assert getattr(run.config, field) == getattr(JetConfig(), field)


def test_arguments_that_do_not_fit_are_refused():
    for overrides, message in (
        (["use_actnorm=true"], "must not set use_actnorm"),
        (["max_steps"], "`override` must be NAME=VALUE, got 'max_steps'"),
        (["seed=1", "seed=2"], "must set seed only once"),
        (["eval_steps=0"], "`eval_steps` must be above 0"),
        (["no_such_field=1"], "no_such_field"),
        (["max_steps=many"], "max_steps.*many"),
    ):
        with pytest.raises(ValueError, match=message):
            runs_of("glow_parts", overrides=overrides)
    model = [f"model_name_or_path={ROOT / 'space' / 'model'}"]
    with pytest.raises(ValueError, match=r"does not fit the recipe: `use_\w+` must be False, as in the model"):
        runs_of("glow_parts", recipe=str(ROOT / "recipes" / "cifar10_from_21k.yaml"), overrides=model)
    # Three by three patches have no halves; only channel couplings fit.
    assert runs_of("coupling_layouts", axes={"ratio": ["all_channel"]}, overrides=["image_size=12"])
    with pytest.raises(ValueError, match=r"(?s)the cell 1to1-mix does not fit the recipe: .*must be even"):
        runs_of("coupling_layouts", axes={"ratio": ["1to1"], "pattern": ["mix"]}, overrides=["image_size=12"])
    for seeds in ([], [-1], [2, 2]):
        with pytest.raises(ValueError, match="`seeds` must be distinct"):
            runs_of("glow_parts", seeds=seeds)


def test_the_recipes_of_sweeps_are_complete():
    full = yaml.safe_load((ROOT / "recipes" / "photographs.yaml").read_text())
    optional = {"dataset_path", "max_steps", "num_train_epochs", "random_crops_per_image"}
    for path in (PHOTOGRAPHS, ABLATIONS):
        assert yaml.safe_load(Path(path).read_text()).keys() >= full.keys() - optional, path
        assert JetConfig(**parse_arguments(["--config", path]).config_fields()).num_coupling_layers == 32


def test_every_kind_of_model_is_counted():
    layers = {"num_coupling_layers": ["2"]}
    for table, axes in (
        ("glow_parts", {"parts": ["both"]}),
        ("dequantization", layers | {"dequantization_num_coupling_layers": ["2"]}),
        ("cnn", layers | {"cnn_depth": ["1"], "cnn_width": ["32"], "vit_depth": ["1"], "vit_width": ["32"]}),
    ):
        for row in collect_rows(table, runs_of(table, axes=axes, overrides=["num_groups=4"])):
            assert row["status"] == "not started" and row["num_parameters"] > 0 and row["training_flops"] > 0, row


# Verdicts


def compared(pairs: str, results: dict, kind: dict | None = None, **columns) -> pd.DataFrame:
    """Compare pairs of cells, given results per cell, `None` for a seed without one."""
    cells = pd.DataFrame(columns, index=list(results))
    return compare(differences({"pairs": pairs} | (kind or {}), cells, pd.DataFrame(results, dtype=float)))


A_ABOVE_B = 'high_name == "a" and low_name == "b"'


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([4.0, 4.1, 4.2], [3.9, 4.0, 4.11], "shown"),  # the seeds differ more than the pairs
        ([3.9, 4.0, 4.11], [4.0, 4.1, 4.2], "contrary"),
        ([4.0, 4.1, 4.2], [4.2, 3.9, 4.1], "within the error"),
        ([4.0, 4.1], [3.9, 3.95], "within the error"),  # 0.125 on average, but of two values
        ([4.0, 4.1, None], [None, 3.9, 3.8], "one seed, no error"),
        ([4.0, 4.1], [None, None], "not run"),
        ([4.0, 4.0], [4.0, 4.0], "within the error"),
    ],
)
def test_a_comparison_is_judged_seed_by_seed(a, b, verdict):
    assert list(compared(A_ABOVE_B, {"a": a, "b": b})["verdict"]) == [verdict]


def test_the_error_is_half_of_students_interval():
    comparison = compared(A_ABOVE_B, {"a": [1.0, 2.0, 3.0], "b": [0, 0, 0]}).loc["a above b"]
    assert comparison["mean"] == 2.0 and comparison["error"] == pytest.approx(4.302653 * 1.0 / 3**0.5, rel=1e-6)


def test_a_claim_holds_if_all_of_its_comparisons_do():
    results = {"a": [4.0, 4.1, 4.2], "b": [3.9, 4.0, 4.11], "c": [4.2, 3.9, 4.1], "d": [None, None, None]}
    for pairs, verdict in (
        (["ab"], "shown"),
        (["ab", "ac"], "within the error"),
        (["ab", "ac", "ad"], "not run"),
        (["ab", "ad", "ba"], "contrary"),
        ([], "not run"),
    ):
        comparisons = compared(f"high_name + low_name in {pairs}", results)
        assert judge(comparisons) == verdict and len(comparisons) == len(pairs)


def test_kinds_are_compared_at_like_compute():
    results = {"cnn": [4.0, 4.1], "worse": [5.0, 5.1], "small": [4.3, 4.4], "fit": [3.9, 4.0], "big": [3.0, 3.1]}
    flops, kind = [2.0, 1.0, 1.0, 2.0, 3.0], {"like_compute": True}
    pairs = 'high_name in ["worse", "cnn"] and low_name in ["small", "fit", "big"]'
    comparisons = compared(pairs, results, kind, flops=flops)
    assert list(comparisons.index) == ["cnn above fit"] and judge(comparisons) == "shown"
    assert compared('high_name == "cnn" and low_name == "big"', results, kind, flops=flops).empty


def test_nothing_undercuts_the_front():
    points = [(3.0, 4.0), (1.0, 5.0), (2.0, 4.5), (2.0, 4.4), (4.0, 4.2), (5.0, 4.0)]
    front = pareto_front(pd.DataFrame(points, columns=["flops", "mean"]))
    assert list(front.itertuples(index=False, name=None)) == [(1.0, 5.0), (2.0, 4.4), (3.0, 4.0)]


# Report


def test_the_report_has_the_results_of_the_paper_beside_ours(tmp_path):
    # Masking and pairing at two ratios with three seeds, one run of which diverged.
    axes = {"ratio": ["all_spatial", "4to1"]}
    table = read_table("masking_vs_pairing", axes)
    runs = runs_of("masking_vs_pairing", (0, 1, 2), axes, ["max_steps=600"], folder=tmp_path)
    level = {"all_spatial-masking": 5.0, "all_spatial-pairing": 4.8, "4to1-masking": 4.52, "4to1-pairing": 4.5}
    for run in runs:
        bits = level[run.cell.name] + 0.1 * run.seed + 0.001 * (run.seed == 1) * ("masking" in run.cell.name)
        evaluation = {"step": 600, "bits_per_dim": bits, "standard_error": 0.05, "num_images": 1000}
        if (run.cell.name, run.seed) == ("4to1-masking", 2):
            evaluation["bits_per_dim"] = None
        run.folder.mkdir(parents=True)
        (run.folder / "config.json").touch()
        (run.folder / "evaluations.jsonl").write_text(json.dumps(evaluation) + "\n")
    rows = collect_rows("masking_vs_pairing", runs)
    assert rows[1]["training_flops"] == training_flops(runs[1].config) * 16 * 600
    assert rows[1]["num_parameters"] > 1e5 and rows[1]["paper_bits_per_dim"] == 3.787
    write_report(tmp_path / "m.md", "python sweep.py", table, rows, runs[0].arguments)
    text = (tmp_path / "m.md").read_text()
    assert text.splitlines()[0] == "`python sweep.py`" and (tmp_path / "m.png").stat().st_size > 10_000
    lines = [[cell.strip(" `*") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    lines = {first: rest for first, *rest in lines}
    spatial, reference = lines["all_spatial-masking"], lines["4to1-pairing"]
    error = statistics.stdev([5.0, 5.101, 5.2]) / 3**0.5
    assert spatial[:2] == ["3.844", f"{statistics.fmean([5.0, 5.101, 5.2]):.4f} ± {error:.4f}"]
    assert spatial[2:5] == ["+0.125", "+0.5003 ± 0.0014", "3 of 3"]
    assert reference[2:4] == ["n/a", "n/a"] and lines["4to1-masking"][4] == "2 of 3"
    assert "- `4to1-masking`, seed 2: diverged: None bits per dimension at the end" in text
    claims = {claim["text"]: lines[claim["text"]] for claim in table.claims}
    assert [line[0] for line in claims.values()] == ["shown", "shown", "shown"]
    assert [line[3] for line in claims.values()] == ["+0.057", "+0.003", "+0.054"]
    assert next(iter(claims.values()))[1:3] == ["1 shown; 1 of 1 on the claimed side", "+0.2003 ± 0.0014"]
    assert "![Bits per dimension against training compute](m.png)" in text
    assert "32 x 32 images" in text and "600 steps with a batch size of 16" in text


def test_a_report_without_results(tmp_path):
    path = tmp_path / "report.md"
    options = {"config": PHOTOGRAPHS, "output_dir": str(tmp_path), "report": str(path), "report_only": True}
    axis, override = ["ratio=4to1"], ["num_coupling_layers=10"]
    assert run_sweep(SweepArguments(table="coupling_layouts", axis=axis, override=override, **options), "x") == 1
    assert "| **not run** |" in path.read_text() and "- `4to1-mix`, seed 0: not started" in path.read_text()
    # The setting is that of the recipe where the table sets sizes.
    axis = ["num_coupling_layers=2", "dequantization_num_coupling_layers=1"]
    run_sweep(SweepArguments(table="dequantization", axis=axis, **options), "x")
    assert "; 32 coupling layers of depth 1 and width 32 unless the table sets them; 200 steps" in path.read_text()


# Sweeps


class TinySweep:
    """Sweeps over two layouts; each output folder is one of `root`."""

    def __init__(self, root: Path):
        self.root, self.recipe = root, root / "recipe.yaml"
        fields = {**TINY, "dataset_path": str(write_images(root / "images")), "sample_steps": 0, "save_steps": 6}
        self.recipe.write_text(yaml.safe_dump(fields))
        self.launched: list[list[str]] = []

    def arguments(self, name: str, **changes) -> SweepArguments:
        axis = ["ratio=4to1,all_channel", "pattern=mix"]
        options = {"config": str(self.recipe), "output_dir": str(self.root / name)}
        return SweepArguments(table="coupling_layouts", axis=axis, **options, **changes)

    def launch(self, arguments: list[str]) -> int:
        """Stand in for the launcher: train in this process."""
        self.launched.append(arguments)
        train(parse_arguments(arguments[arguments.index("--config") :]))
        return 0

    def folders(self, name: str) -> list[Path]:
        cells = ("4to1-mix", "all_channel")
        return [self.root / name / "coupling_layouts" / cell / "seed_0" for cell in cells]

    def rows(self, name: str) -> list[dict]:
        path = self.root / name / "coupling_layouts" / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A finished sweep, in the folder `whole`."""
    tiny = TinySweep(tmp_path_factory.mktemp("sweep"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes of the killed sweep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "launch", tiny.launch)
        assert run_sweep(tiny.arguments("whole"), "") == 0 and len(tiny.launched) == 2
        yield tiny
    torch.set_num_threads(threads)


def test_the_results_of_a_sweep_are_a_dataset(sweep):
    path = str(sweep.root / "whole" / "coupling_layouts" / "results.jsonl")
    table = datasets.load_dataset("json", data_files=path, cache_dir=str(sweep.root / "cache"))["train"]
    assert table["cell"] == ["4to1-mix", "all_channel"] and set(table["status"]) == {"finished"}
    for row, run in zip(table, sweep.folders("whole"), strict=True):
        last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
        assert (row["bits_per_dim"], row["standard_error"]) == (last["bits_per_dim"], last["standard_error"])
        assert (row["num_steps"], row["num_eval_images"], row["hidden_size"]) == (12, 5, 16)


def test_a_finished_run_is_not_started_again_and_other_settings_are_refused(sweep, capsys):
    num_launched = len(sweep.launched)
    # Settings on which no number depends may differ, and a default may be given.
    harmless = ["save_steps=5", "num_channels=3", "eval_batch_size=3"]
    assert run_sweep(sweep.arguments("whole", override=harmless), "") == 0
    with pytest.raises(ValueError, match=r"4to1-mix.*`learning_rate` was 0\.01 and is now 0\.5\. Give another"):
        run_sweep(sweep.arguments("whole", override=["learning_rate=0.5"]), "")
    capsys.readouterr()
    assert run_sweep(sweep.arguments("whole", seeds=[0, 1], print_commands=True), "") == 0
    for run, line in zip(sweep.folders("whole"), capsys.readouterr().out.splitlines(), strict=True):
        words = shlex.split(line)
        assert words[:2] == ["python", "scripts/launch.py"] and f"--output_dir={run.with_name('seed_1')}" in words
    assert run_sweep(sweep.arguments("whole", seeds=[0, 1], dry_run=True), "") == 0
    plan = capsys.readouterr().out
    assert re.search(r"4to1-mix +0 .* finished$", plan, re.MULTILINE) and "2 of 4 runs have no result" in plan
    assert len(sweep.launched) == num_launched


def test_a_killed_sweep_ends_with_the_results_of_one_that_was_not(sweep):
    killed, whole = sweep.folders("killed"), sweep.folders("whole")
    command = [str(ROOT / "scripts" / "sweep.py"), "--table", "coupling_layouts"]
    command += ["--config", sweep.recipe, "--output_dir", sweep.root / "killed"]
    command += ["--axis", "ratio=4to1,all_channel", "pattern=mix"]
    command += ["--accelerate_config", ROOT / "recipes" / "accelerate" / "cpu.yaml"]
    variables, log = slow_saves(sweep.root / "site", seconds=0.5), sweep.root / "log"
    process = ForkedScript([str(word) for word in command], sweep.root / "cache", log, log, variables)
    deadline = time.monotonic() + 300
    while not (killed[0] / "checkpoint-6").exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    # The machine goes down: the sweep and all that it started.
    sweeping = psutil.Process(process.pid)
    for member in [*sweeping.children(recursive=True), sweeping]:
        member.kill()
    process.wait()
    assert not (killed[0] / "config.json").exists()
    checkpoint = (killed[0] / "checkpoint-6").stat().st_ino

    num_launched = len(sweep.launched)
    assert run_sweep(sweep.arguments("killed", report_only=True), "") == 1 and len(sweep.launched) == num_launched
    statuses = [row["status"] for row in sweep.rows("killed")]
    assert statuses == ["unfinished; last checkpoint: checkpoint-6", "not started"]
    report = sweep.root / "report.md"
    assert run_sweep(sweep.arguments("killed", report=str(report)), "python scripts/sweep.py") == 0
    assert report.read_text().startswith("`python scripts/sweep.py`\n") and "one seed, no error" in report.read_text()
    assert (killed[0] / "checkpoint-6").stat().st_ino == checkpoint  # resumed, not run anew
    assert sweep.rows("killed") == sweep.rows("whole")
    for run, other in zip(killed, whole, strict=True):
        ours, theirs = (load_file(path / "model.safetensors") for path in (run, other))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_failure_is_passed_over_and_a_signal_ends_the_sweep(tmp_path, monkeypatch, caplog):
    codes, started = [1, 0], []
    monkeypatch.setattr(sweep_module, "launch", lambda arguments: started.append(arguments) or codes[len(started) - 1])
    runs = runs_of("glow_parts", folder=tmp_path)
    run_all(runs, accelerate_config=None)
    assert [words[1:] for words in started] == [run.flags for run in runs[:2]]
    assert f"{runs[0].folder} failed with exit code 1." in caplog.text
    assert f"{runs[1].folder} was stopped by a signal." in caplog.text


def test_help_answers_without_torch():
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "sweep.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--print_commands" in result.stdout and "(default: None)" not in result.stdout
    assert re.search(r"\| +yaml$", result.stderr, re.MULTILINE)
    assert not re.search(r"\| +torch$", result.stderr, re.MULTILINE)


# Grids


def write_grid(path: Path, **changes) -> str:
    grid = {"config": PHOTOGRAPHS, "seeds": [0, 1], "grid": {"learning_rate": [0.001, 0.002], "hidden_size": [16]}}
    entries = {key: value for key, value in (grid | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    return str(path)


def test_a_grid_of_any_fields_and_seeds_gives_a_table_of_means(sweep, capsys):
    grid = {"weight_decay": [0.0, 0.1], "coupling_kinds": [["channels", "spatial"]], "max_steps": [2]}
    path = write_grid(sweep.root / "decay.yaml", config=str(sweep.recipe), seeds=[3, 4], grid=grid)
    report = sweep.root / "decay.md"
    arguments = SweepArguments(grid=path, output_dir=str(sweep.root / "grid"), report=str(report))
    assert run_sweep(arguments, "python scripts/sweep.py") == 0
    folder = sweep.root / "grid" / "decay"
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert (
        len(rows) == 4 and {row["seed"] for row in rows} == {3, 4} and {row["status"] for row in rows} == {"finished"}
    )
    cell = "weight_decay=0.1,coupling_kinds=channels+spatial,max_steps=2"
    bits = []
    for seed in (3, 4):
        recipe = yaml.safe_load((folder / cell / f"seed_{seed}" / "recipe.yaml").read_text())
        assert (recipe["weight_decay"], recipe["coupling_kinds"]) == (0.1, ["channels", "spatial"])
        assert (recipe["seed"], recipe["permutation_seed"], recipe["max_steps"]) == (seed, seed, 2)
        bits += [row["bits_per_dim"] for row in rows if (row["cell"], row["seed"]) == (cell, seed)]
        evaluations = (folder / cell / f"seed_{seed}" / "evaluations.jsonl").read_text().splitlines()
        assert json.loads(evaluations[-1])["bits_per_dim"] == bits[-1]
    numbers = [statistics.fmean(bits), statistics.stdev(bits), min(bits), max(bits)]
    line = f"| {cell} | {' | '.join(f'{number:.4f}' for number in numbers)} | 2 |"
    assert line in capsys.readouterr().out.splitlines()
    text = report.read_text()
    assert f"| `{cell}` | {numbers[0]:.4f} ± {numbers[1] / 2**0.5:.4f} | 2 of 2 |" in text
    assert "paper" not in text


def test_grids_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    for changes, message in (
        ({"config": None}, r"grid\.yaml must have the entries config and grid, and may have seeds, got seeds, grid"),
        ({"steps": 3}, "got config, seeds, grid, steps"),
        ({"grid": {"hidden_size": 32}}, r"`grid` in .* must list values for each field, got {'hidden_size': 32}"),
        ({"grid": {"num_classes": [None, 3]}}, "must list values for each field"),
        ({"grid": {"hiden_size": [32]}}, "hiden_size=32 does not fit the recipe: .*did you mean --hidden_size"),
        ({"grid": {"hidden_size": [32, 0]}}, "hidden_size=0 does not fit the recipe"),
        ({"grid": {"noise_std": [0.1]}}, "noise_std=0.1 does not fit the recipe: .* no bits per dimension of images"),
        ({"grid": {"seed": [0, 1]}}, "the sweep itself sets seed: use its arguments `seeds`"),
        ({"seeds": [0, 0]}, "`seeds` must be distinct"),
        ({"seeds": 3}, "`seeds` must be distinct integers of at least 0, got 3"),
    ):
        arguments = SweepArguments(grid=write_grid(path, **changes), output_dir=str(tmp_path), dry_run=True)
        with pytest.raises(ValueError, match=message):
            run_sweep(arguments, "")
    for options, message in (
        ({}, "one of `grid` and `table` must be given, got neither"),
        ({"grid": "a.yaml", "table": "cnn"}, "got both"),
        ({"table": "cnn"}, "`config` must be given with `table`"),
        ({"grid": "a.yaml", "axis": ["a=1"]}, "`axis` is for a table of the paper"),
    ):
        with pytest.raises(ValueError, match=message):
            SweepArguments(**options)
