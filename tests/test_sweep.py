"""scripts/sweep.py: the paper's tables as runs, running them through kills and failures, results, report."""

import dataclasses
import inspect
import itertools
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import datasets
import psutil
import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file
from train_process import TINY, environment, write_images

from jet_hf import JetConfig
from jet_hf.analysis.cost import training_flops
from reproduction import TABLES, SweepArguments, SweepError, run_sweep
from reproduction.claims import CONTRARY, NOT_RUN, ONE_SEED, SHOWN, WITHIN, Claim, FrontClaim, above, judge
from reproduction.plan import FAILED, FINISHED, NOT_STARTED, Run, State, base_arguments, make_runs, read_state
from reproduction.report import judge_all, report_text
from reproduction.results import by_cell, pareto_front, result_row
from reproduction.runner import START_LINE, LocalRunner, failure_reason, is_at_work, open_log
from reproduction.sweep import is_pending


TRAIN_SCRIPT = ROOT / "scripts" / "train.py"
ABLATIONS = ROOT / "recipes" / "sweeps" / "imagenet1k_64.yaml"
PHOTOGRAPHS = ROOT / "recipes" / "sweeps" / "photographs.yaml"
ORIGINALS = {name: ROOT / "recipes" / f"{name}.yaml" for name in TABLES if name.startswith("imagenet")}
CPU = str(ROOT / "recipes" / "accelerate" / "cpu.yaml")


def base_of(table: str):
    return base_arguments(str(ORIGINALS.get(table, ABLATIONS)), [])


def runs_of(table: str, seeds=(0,), axes=None, overrides=(), recipe=None, folder=Path("runs/sweep")) -> list[Run]:
    base = base_arguments(str(recipe), list(overrides)) if recipe else base_of(table)
    names = {text.partition("=")[0] for text in overrides}
    return make_runs(TABLES[table], TABLES[table].cells(axes), base, names, list(seeds), folder)


# Tables


@pytest.mark.parametrize(
    ("table", "number"),
    [
        ("coupling_layouts", 25),
        ("masking_vs_pairing", 12),
        ("glow_parts", 4),
        ("cnn", 7 * 14 + 54),
        ("dequantization", 2),
        *((name, 54) for name in ORIGINALS),
    ],
)
def test_a_table_becomes_models(table, number):
    runs = runs_of(table)
    assert len(runs) == number and {run.problem for run in runs} == {""}
    assert len({run.folder for run in runs}) == number
    fields = inspect.get_annotations(JetConfig)
    configs = [{name: getattr(run.config, name) for name in fields} for run in runs]
    assert len({json.dumps(config) for config in configs}) == number
    for run, config in zip(runs, configs, strict=True):
        assert all(config[name] == value for name, value in run.cell.fields.items()), run.name
        assert run.arguments.resume_from_checkpoint == "latest" and run.arguments.output_dir == str(run.folder)


def test_the_25_layouts_are_those_of_the_paper():
    runs = {run.cell.name: run for run in runs_of("coupling_layouts")}
    ratios = ("all_spatial", *(f"{k}to1" for k in range(1, 6)))
    patterns = ("rows", "columns", "checkerboard", "mix")
    assert set(runs) == {"all_channel", *("-".join(pair) for pair in itertools.product(ratios, patterns))}
    assert set(runs["all_channel"].config.layer_splits) == {"channels"}
    splits = runs["2to1-rows"].config.layer_splits
    assert splits[:6] == ["channels", "channels", "hstripes", "channels", "channels", "hstripes-inv"]
    assert set(runs["all_spatial-columns"].config.layer_splits) == {"vstripes", "vstripes-inv"}
    # The default of the model is the layout that the paper found best, and its sizes are those of the ablations.
    best = runs["4to1-mix"].config
    assert best.layer_splits == JetConfig().layer_splits
    for field in ("num_coupling_layers", "num_hidden_layers", "hidden_size", "num_attention_heads", "image_size"):
        assert getattr(best, field) == getattr(JetConfig(), field)
    assert runs["4to1-mix"].cell.paper == 3.719 and runs["all_spatial-columns"].cell.paper == 3.882


def test_the_grids_hold_the_papers_figures():
    figures = {name: {cell.name: cell.paper for cell in TABLES[name].cells()} for name in TABLES}
    best = {name: min(value for value in figures[name].values() if value) for name in ORIGINALS}
    assert best == {"imagenet1k_32": 3.93, "imagenet1k_64": 3.66, "imagenet21k_32": 3.53, "imagenet21k_64": 3.13}
    assert figures["imagenet1k_64"]["layers64-depth5-width512"] == 3.66
    assert figures["imagenet21k_64"]["layers64-depth6-width1024"] == 3.13
    assert figures["cnn"]["cnn-layers64-depth6-width768"] == 6.41
    assert figures["cnn"]["vit-layers16-depth1-width256"] == 4.02
    assert figures["imagenet21k_32"]["layers128-depth6-width1024"] is None
    assert "cnn-layers64-depth1-width1536" not in figures["cnn"]
    assert set(figures["dequantization"].values()) == {None}  # the paper gives none
    assert figures["glow_parts"] == {"none": 3.72, "actnorm": None, "invertible_dense": None, "both": 3.733}


def test_the_sizes_of_the_grids_follow_the_paper():
    runs = {run.cell.name: run.config for run in runs_of("imagenet21k_64")}
    assert runs["layers64-depth6-width1024"].num_attention_heads == 16
    flow, uniform = (run.config for run in runs_of("dequantization"))
    assert (flow.num_coupling_layers, flow.dequantization_num_coupling_layers) == (64, 16)
    assert (uniform.num_coupling_layers, uniform.dequantization) == (80, "uniform")


@pytest.mark.parametrize("table", TABLES)
def test_the_papers_own_figures_agree_with_what_it_claims(table):
    cells = TABLES[table].cells()
    known = {cell.name: cell.paper for cell in cells if cell.paper is not None}
    claims = TABLES[table].claims(cells)
    assert claims
    # Operations stand in for those counted, for the one claim that asks for them; they grow with each of these sizes.
    sizes = ("num_coupling_layers", "num_hidden_layers", "hidden_size", "hidden_size")
    flops = {cell.name: math.prod(cell.fields.get(size, 1) for size in sizes) for cell in cells}
    for claim in claims:
        verdict = judge(claim, {}, flops, known)
        assert verdict.verdict == NOT_RUN
        assert verdict.paper is None or verdict.paper > 0, claim.text
        assert table in ("dequantization",) or verdict.paper is not None, claim.text


def test_axes_take_other_sizes_and_fewer_choices():
    cells = TABLES["dequantization"].cells({"num_coupling_layers": ["6"], "dequantization_num_coupling_layers": ["2"]})
    assert [cell.fields["num_coupling_layers"] for cell in cells] == [6, 8]
    assert len(TABLES["masking_vs_pairing"].cells({"ratio": ["1to1"]})) == 2
    for axes, message in (
        ({"depth": ["1"]}, "no axis 'depth'"),
        ({"ratio": ["9to1"]}, "ratio takes all_spatial"),
    ):
        with pytest.raises(ValueError, match=message):
            TABLES["masking_vs_pairing"].cells(axes)
    with pytest.raises(ValueError, match="positive whole numbers, got '0'"):
        TABLES["cnn"].cells({"cnn_depth": ["0"]})


def test_a_seed_draws_everything_and_overrides_are_checked(tmp_path):
    runs = runs_of("glow_parts", seeds=(0, 3), overrides=["max_steps=7", "hidden_size=32"], recipe=PHOTOGRAPHS)
    assert [run.seed for run in runs] == 4 * [0] + 4 * [3]
    assert all(run.arguments.seed == run.seed == run.config.permutation_seed for run in runs)
    assert {(run.arguments.max_steps, run.config.hidden_size) for run in runs} == {(7, 32)}
    with pytest.raises(ValueError, match="sets use_actnorm itself"):
        runs_of("glow_parts", overrides=["use_actnorm=true"], recipe=PHOTOGRAPHS)
    with pytest.raises(ValueError, match="expected NAME=VALUE"):
        base_arguments(str(PHOTOGRAPHS), ["max_steps"])
    with pytest.raises(ValueError, match="needs evaluations"):
        base_arguments(str(PHOTOGRAPHS), ["eval_steps=0"])
    with pytest.raises(ValueError, match="no_such_field"):
        base_arguments(str(PHOTOGRAPHS), ["no_such_field=1"])
    with pytest.raises(SystemExit):
        base_arguments(str(PHOTOGRAPHS), ["max_steps=many"])
    with pytest.raises(ValueError, match="cannot change"):
        base_arguments(str(ROOT / "recipes" / "cifar10_from_21k.yaml"), [])


def test_a_cell_that_cannot_be_is_skipped_with_the_reason():
    # Three by three patches have no halves; only channel couplings work.
    overrides = ["image_size=12", "patch_size=4"]
    runs = {run.cell.name: run for run in runs_of("coupling_layouts", overrides=overrides, recipe=PHOTOGRAPHS)}
    assert read_state(runs["all_channel"]).status == NOT_STARTED
    state = read_state(runs["1to1-mix"])
    assert state.status == FAILED and "must be even" in state.reason
    row = result_row("coupling_layouts", runs["1to1-mix"], state)
    assert row["bits_per_dim"] is None and row["image_size"] is None and "must be even" in row["reason"]
    with pytest.raises(ValueError, match="no cell of masking_vs_pairing goes with the recipe"):
        runs_of("masking_vs_pairing", overrides=overrides, recipe=PHOTOGRAPHS)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_base_recipe_is_complete(path):
    full = yaml.safe_load((ROOT / "recipes" / "photographs.yaml").read_text())
    size = {"dataset_path", "max_steps", "num_train_epochs", "random_crops_per_image"}
    assert set(yaml.safe_load(path.read_text())) >= set(full) - size
    assert JetConfig(**base_arguments(str(path), []).config_fields()).num_coupling_layers == 32


# Verdicts


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ({"a": seeds(4.0, 4.1, 4.2), "b": seeds(3.9, 4.0, 4.11)}, SHOWN),  # paired: seeds differ, differences do not
        ({"a": seeds(3.9, 4.0, 4.11), "b": seeds(4.0, 4.1, 4.2)}, CONTRARY),
        ({"a": seeds(4.0, 4.1, 4.2), "b": seeds(4.2, 3.9, 4.1)}, WITHIN),
        ({"a": seeds(4.0, 4.1), "b": seeds(3.9, 3.95)}, WITHIN),  # 0.125 on average, but of two values
        ({"a": seeds(4.0, 4.1), "b": {1: 3.9, 2: 3.8}}, ONE_SEED),
        ({"a": seeds(4.0, 4.1)}, NOT_RUN),
        ({"a": seeds(4.0, 4.0), "b": seeds(4.0, 4.0)}, WITHIN),
    ],
)
def test_a_comparison_is_judged_seed_by_seed(results, verdict):
    assert judge(Claim("a is worse", (above("a", "b"),)), results, {}, {}).verdict == verdict


def test_the_error_is_half_of_students_interval():
    outcome = judge(Claim("", (above("a", "b"),)), {"a": seeds(1.0, 2.0, 3.0), "b": seeds(0, 0, 0)}, {}, {}).outcomes[
        0
    ]
    assert outcome.mean == 2.0 and outcome.num_seeds == 3
    assert outcome.error == pytest.approx(4.303 * 1.0 / 3**0.5)


def test_a_claim_holds_if_all_of_its_comparisons_do():
    results = {"a": seeds(4.0, 4.1, 4.2), "b": seeds(3.9, 4.0, 4.11), "c": seeds(4.2, 3.9, 4.1)}
    both = Claim("", (above("a", "b"), above("a", "c")))
    assert judge(both, results, {}, {}).verdict == WITHIN
    verdict = judge(Claim("", (above("a", "b"), above("b", "a"), above("a", "d"))), results, {}, {})
    assert verdict.verdict == CONTRARY and dict(verdict.counts) == {SHOWN: 1, CONTRARY: 1, NOT_RUN: 1}
    assert verdict.num_same_sign == 1 and verdict.weakest.contrast == above("b", "a")
    assert judge(Claim("", (above("a", "b"), above("a", "d"))), results, {}, {}).verdict == NOT_RUN
    assert judge(Claim("", ()), results, {}, {}).verdict == NOT_RUN


def test_kinds_are_compared_at_like_compute():
    results = {
        "cnn": seeds(4.0, 4.1),
        "worse": seeds(5.0, 5.1),
        "small": seeds(4.3, 4.4),
        "fit": seeds(3.9, 4.0),
        "big": seeds(3.0, 3.1),
    }
    flops = {"cnn": 2.0, "worse": 1.0, "small": 1.0, "fit": 2.0, "big": 3.0}
    claim = FrontClaim("", ("small", "fit", "big"), ("worse", "cnn"))
    verdict = judge(claim, results, flops, {"cnn": 4.0, "fit": 3.5, "big": 2.0})
    assert [outcome.contrast for outcome in verdict.outcomes] == [above("cnn", "fit")]
    assert verdict.verdict == SHOWN and verdict.paper == 0.5
    assert judge(FrontClaim("", ("big",), ("cnn",)), results, flops, {}).verdict == NOT_RUN


def test_the_front_is_what_nothing_undercuts():
    points = [(3.0, 4.0), (1.0, 5.0), (2.0, 4.5), (2.0, 4.4), (4.0, 4.2), (5.0, 4.0)]
    assert pareto_front(points) == [(1.0, 5.0), (2.0, 4.4), (3.0, 4.0)]


# Report, from made-up results


@pytest.fixture
def made_up():
    """Masking and pairing at two ratios, three seeds; one run diverged."""
    runs = runs_of("masking_vs_pairing", (0, 1, 2), {"ratio": ["all_spatial", "4to1"]}, recipe=PHOTOGRAPHS)
    level = {"all_spatial-masking": 5.0, "all_spatial-pairing": 4.8, "4to1-masking": 4.52, "4to1-pairing": 4.5}
    rows = []
    for run in runs:
        bits = level[run.cell.name] + 0.1 * run.seed + 0.001 * (run.seed == 1) * ("masking" in run.name)
        evaluation = {"step": 600, "bits_per_dim": bits, "standard_error": 0.05, "num_images": 1000}
        state = State(FINISHED, evaluation=evaluation)
        if run.name == "4to1-masking/seed_2":
            state = State(FAILED, "diverged: step 5: loss nan")
        rows.append(result_row("masking_vs_pairing", run, state))
    return runs, rows


def test_the_report_has_the_papers_figures_beside_ours(made_up):
    runs, rows = made_up
    table = TABLES["masking_vs_pairing"]
    cells = [run.cell for run in runs[:4]]
    base = base_arguments(str(PHOTOGRAPHS), [])
    text = report_text("python scripts/sweep.py --x", table, cells, rows, base, ["max_steps=600"], "m.png")
    assert text.splitlines()[0] == "`python scripts/sweep.py --x`"
    lines = {line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[2:-1]]
             for line in text.splitlines() if line.startswith("| `")}  # fmt: skip
    spatial, reference = lines["all_spatial-masking"], lines["4to1-pairing"]
    error = statistics.stdev([5.0, 5.101, 5.2]) / 3**0.5
    assert spatial[:2] == ["3.844", f"{statistics.fmean([5.0, 5.101, 5.2]):.4f} ± {error:.4f}"]
    assert spatial[2] == "+0.125" and spatial[3].startswith("+0.5003 ± 0.0014")
    assert spatial[4] == "3 of 3" and reference[2:4] == ["n/a", "n/a"]
    assert lines["4to1-masking"][4] == "2 of 3"
    assert "- `4to1-masking`, seed 2: diverged: step 5: loss nan" in text
    verdicts = judge_all(table, cells, by_cell(cells, rows))
    assert [verdict.verdict for verdict in verdicts] == [SHOWN, SHOWN, SHOWN]
    assert [round(verdict.paper, 3) for verdict in verdicts] == [0.057, 0.003, 0.054]
    for verdict in verdicts:
        assert f"| {verdict.text} | **shown** |" in text
    assert "![Bits per dimension against training compute](m.png)" in text
    assert "32 x 32" in text and "600 steps of 16 images" in text and "`max_steps=600`" in text


def test_cells_that_become_the_same_model_are_named(made_up):
    runs = runs_of(
        "coupling_layouts", axes={"ratio": ["4to1"]}, overrides=["num_coupling_layers=10"], recipe=PHOTOGRAPHS
    )
    rows = [result_row("coupling_layouts", run, State(NOT_STARTED)) for run in runs]
    base = base_arguments(str(PHOTOGRAPHS), [])
    text = report_text("x", TABLES["coupling_layouts"], [run.cell for run in runs], rows, base, [], None)
    assert "Here `4to1-checkerboard`, `4to1-mix` are the same model." in text
    assert "not run" in text and "## Compute" not in text


def test_flops_are_counted_from_the_configuration(made_up):
    runs, rows = made_up
    assert rows[1]["training_flops"] == training_flops(runs[1].config) * 16 * 600
    assert rows[1]["num_parameters"] > 1e5 and rows[1]["paper_bits_per_dim"] == 3.787
    (run,) = runs_of("coupling_layouts", axes={"ratio": ["all_channel"]})
    row = result_row("coupling_layouts", run, State(NOT_STARTED))
    assert row["num_steps"] == 250_224 and row["training_flops"] > 8e19  # the release's number of images is known


@pytest.mark.parametrize(
    ("table", "axes", "overrides"),
    [
        ("masking_vs_pairing", {"ratio": ["1to1"]}, []),
        ("glow_parts", {}, []),
        ("dequantization", {"num_coupling_layers": ["4"], "dequantization_num_coupling_layers": ["2"]}, []),
        (
            "cnn",
            {"num_coupling_layers": ["2"]}
            | {"cnn_depth": ["1"], "cnn_width": ["32"], "vit_depth": ["1"], "vit_width": ["32"]},
            ["num_groups=4"],
        ),
    ],
)
def test_every_kind_of_model_is_counted(table, axes, overrides):
    runs = runs_of(table, axes=axes, overrides=overrides, recipe=PHOTOGRAPHS)
    for run in runs:
        row = result_row(table, run, read_state(run))
        assert row["status"] == NOT_STARTED and row["num_parameters"] > 0 and row["training_flops"] > 0, run.name


def test_the_plot_is_written(made_up, tmp_path):
    from reproduction.figure import plot_compute

    runs, rows = made_up
    plot_compute(tmp_path / "plot.png", "title", by_cell([run.cell for run in runs[:4]], rows))
    plot_compute(tmp_path / "empty.png", "title", [])
    assert (tmp_path / "plot.png").stat().st_size > (tmp_path / "empty.png").stat().st_size > 1000


# Jobs


def sweep_arguments(tmp_path, **changes) -> SweepArguments:
    fields = {"table": "masking_vs_pairing", "config": str(PHOTOGRAPHS), "output_dir": str(tmp_path / "a b")}
    return SweepArguments(**(fields | changes))


def test_slurm_gets_a_job_array(tmp_path, capsys):
    options = "--gpus-per-node=8 --time=24:00:00"
    arguments = sweep_arguments(
        tmp_path,
        launcher="slurm",
        seeds=[0, 1],
        num_parallel=3,
        job_options=options,
        job_setup="source env/bin/activate",
    )
    assert run_sweep(arguments, TRAIN_SCRIPT) == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "#SBATCH --array=0-23%3\n" in script and "#SBATCH --gpus-per-node=8\n" in script
    assert not (tmp_path / "a b").exists()
    # What a task runs, with srun in place of Slurm's.
    stub = "source() { :; }; srun() { printf '%s\\n' \"$@\"; }; SLURM_ARRAY_TASK_ID=13\n" + script.replace("exec ", "")
    words = subprocess.run(["bash", "-c", stub], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[:2] == ["python", "scripts/sweep.py"] and words[-2:] == ["--runs", "all_spatial-pairing/seed_1"]
    assert words[words.index("--output_dir") + 1] == str(tmp_path / "a b") and "--launcher" not in words


def test_hf_jobs_gets_a_line_for_each_run(tmp_path, capsys):
    setup = "git clone https://example.org/jet && cd jet && pip install -c constraints.txt '.[train]'"
    arguments = sweep_arguments(
        tmp_path,
        launcher="hf_jobs",
        job_setup=setup,
        job_options="--flavor a10g-large --timeout 12h -v hf://buckets/me/jet:/runs",
    )
    run_sweep(arguments, TRAIN_SCRIPT)
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    jobs = [shlex.split(line) for line in script.splitlines()[2:]]
    assert len(jobs) == 12
    assert jobs[0][:4] == ["hf", "jobs", "run", "--detach"] and jobs[0][-4:-1] == ["python:3.11", "bash", "-c"]
    assert jobs[0][jobs[0].index("--flavor") + 1] == "a10g-large"
    inner = jobs[0][-1]
    assert inner.startswith(setup) and inner.endswith("--runs all_spatial-masking/seed_0")
    subprocess.run(["bash", "-n"], input=inner, text=True, check=True)
    with pytest.raises(ValueError, match="job_setup"):
        sweep_arguments(tmp_path, launcher="hf_jobs")


# Running


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def recipe(root):
    fields = {**TINY, "dataset_path": str(write_images(root / "images")), "sample_steps": 0}
    (root / "recipe.yaml").write_text(yaml.safe_dump(fields))
    return root / "recipe.yaml"


@pytest.fixture(scope="module", autouse=True)
def environment_of_runs(root):
    """That of the processes which sweeps start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(root).items():
            patch.setenv(name, value)
        yield


def two_cells(recipe: Path, folder: Path, **changes) -> SweepArguments:
    """A sweep over two layouts."""
    axis = ["ratio=4to1,all_channel", "pattern=mix"]
    arguments = SweepArguments("coupling_layouts", str(recipe), str(folder), axis=axis, accelerate_config=CPU)
    return dataclasses.replace(arguments, **changes)


def wait_for(happens, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not happens():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def read_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "coupling_layouts" / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(root, recipe):
    """A sweep that nothing happened to, two runs at a time, with a report."""
    arguments = two_cells(recipe, root / "straight", num_parallel=2, report=str(root / "report.md"))
    assert run_sweep(arguments, TRAIN_SCRIPT) == 0
    return root / "straight"


def test_a_sweep_leaves_results_and_a_report(root, straight):
    table = datasets.load_dataset(
        "json", data_files=str(straight / "coupling_layouts" / "results.jsonl"), cache_dir=str(root / "cache")
    )["train"]
    assert table["cell"] == ["4to1-mix", "all_channel"] and set(table["status"]) == {FINISHED}
    for row in read_rows(straight):
        run = straight / "coupling_layouts" / row["cell"] / "seed_0"
        last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
        assert (row["bits_per_dim"], row["standard_error"]) == (last["bits_per_dim"], last["standard_error"])
        assert row["num_steps"] == 12 and row["num_eval_images"] == 5 and row["hidden_size"] == 16
    report = (root / "report.md").read_text()
    assert report.startswith("`python scripts/sweep.py --table coupling_layouts --config ")
    assert "| `all_channel` | 3.742 |" in report and (root / "report.png").is_file()
    assert "one seed, no error" in report


def test_killed_midway_a_sweep_ends_in_the_same_results(root, recipe, straight):
    folder = root / "killed"
    first, second = (folder / "coupling_layouts" / cell / "seed_0" for cell in ("4to1-mix", "all_channel"))
    arguments = two_cells(recipe, folder)
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *arguments.command()[2:]]
    process = subprocess.Popen(command, cwd=root)
    wait_for((first / "checkpoint-3").exists, process)
    # The machine goes down: the sweep and all that it started.
    for member in [*psutil.Process(process.pid).children(recursive=True), process]:
        member.kill()
    process.wait()
    assert not (first / "config.json").exists() and not (folder / "coupling_layouts" / "results.jsonl").exists()
    assert run_sweep(arguments, TRAIN_SCRIPT) == 0
    assert read_rows(folder) == read_rows(straight)
    for run in (first, second):
        ours, theirs = (load_file(path / "model.safetensors") for path in (run, straight / run.relative_to(folder)))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert "resuming from" in (first / "log.txt").read_text()
    assert [(run / "log.txt").read_text().count(START_LINE) for run in (first, second)] == [2, 1]


def test_a_finished_sweep_runs_nothing_and_refuses_other_settings(root, recipe, straight):
    arguments = two_cells(recipe, straight)
    missing = root / "no_script.py"  # nothing may be started
    assert run_sweep(arguments, missing) == 0
    # What does not change the numbers may differ, and a default that is written out is the same.
    harmless = ["save_steps=5", "num_channels=3", "eval_batch_size=3"]
    assert run_sweep(dataclasses.replace(arguments, override=harmless), missing) == 0
    other = dataclasses.replace(arguments, override=["learning_rate=0.5"])
    with pytest.raises(SweepError, match=r"2 runs .* learning_rate was 0\.01, is 0\.5.*--rerun_changed"):
        run_sweep(other, missing)
    with pytest.raises(ValueError, match="`runs` names nothing"):
        run_sweep(dataclasses.replace(arguments, runs=["nothing"]), missing)


STUB = """
import os, signal, sys, time
from pathlib import Path
import yaml

def main():
    folder = Path(yaml.safe_load(Path(sys.argv[2]).read_text())["output_dir"])
    if "all_channel" in str(folder):
        sys.exit("error: step 3: loss nan, gradient norm nan; the weights are those after the step before.")
    if (folder / "slow").exists():
        signal.signal(signal.SIGTERM, lambda *_: (folder / "saved").touch() or sys.exit(0))
        (folder / "ready").touch()
        time.sleep(60)
    row = '{"step": 12, "bits_per_dim": 4.5, "standard_error": 0.1, "num_images": 5}'
    (folder / "evaluations.jsonl").write_text(row + chr(10))
    (folder / "config.json").touch()

main()
"""


@pytest.fixture
def stub(tmp_path):
    """A trainer that fails for one cell."""
    (tmp_path / "stub.py").write_text(STUB)
    return tmp_path / "stub.py"


def test_a_run_that_fails_is_skipped_with_its_reason(tmp_path, recipe, stub):
    arguments = two_cells(recipe, tmp_path / "runs", report=str(tmp_path / "report.md"))
    assert run_sweep(arguments, stub) == 1
    rows = {row["cell"]: row for row in read_rows(tmp_path / "runs")}
    assert rows["4to1-mix"]["bits_per_dim"] == 4.5 and rows["4to1-mix"]["reason"] is None
    assert rows["all_channel"]["status"] == FAILED and rows["all_channel"]["bits_per_dim"] is None
    assert rows["all_channel"]["reason"].startswith("diverged: step 3: loss nan")
    assert "- `all_channel`, seed 0: diverged: step 3: loss nan" in (tmp_path / "report.md").read_text()
    # It is not tried again unasked.
    log = tmp_path / "runs" / "coupling_layouts" / "all_channel" / "seed_0" / "log.txt"
    assert run_sweep(arguments, stub) == 1 and log.read_text().count(START_LINE) == 1
    assert run_sweep(dataclasses.replace(arguments, retry_failed=True), stub) == 1
    assert log.read_text().count(START_LINE) == 2
    # Asked for, runs of other settings are moved aside and run anew.
    changed = dataclasses.replace(arguments, override=["learning_rate=0.5"], rerun_changed=True, runs=["4to1-mix"])
    with pytest.raises(SweepError, match="1 runs"):  # the other one's settings have to be settled as well
        run_sweep(changed, stub)
    aside = tmp_path / "runs" / "coupling_layouts" / "4to1-mix" / "seed_0_replaced_1"
    assert (aside / "config.json").exists()


def test_sigterm_lets_runs_save_and_end(tmp_path, recipe, stub):
    base = base_arguments(str(recipe), [])
    cells = TABLES["coupling_layouts"].cells({"ratio": ["4to1"], "pattern": ["mix"]})
    runs = make_runs(TABLES["coupling_layouts"], cells, base, set(), [0, 1], tmp_path)
    folder = runs[0].folder
    folder.mkdir(parents=True)
    (folder / "slow").touch()
    runner = LocalRunner(stub)
    watcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, signal, sys, time\n"
            "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
            "os.kill(int(sys.argv[2]), signal.SIGTERM)",
            str(folder / "ready"),
            str(os.getpid()),
        ]
    )
    runner.work_off(runs)
    assert watcher.wait() == 0 and runner.stopped_by == signal.SIGTERM
    assert (folder / "saved").exists() and not runs[1].folder.exists()
    state = read_state(runs[0])
    assert state.status == "unfinished" and is_pending(state, retry_failed=False)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_a_killed_sweep_left_at_work_is_waited_for(tmp_path, recipe, caplog):
    base = base_arguments(str(recipe), [])
    cells = TABLES["coupling_layouts"].cells({"ratio": ["4to1"], "pattern": ["mix"]})
    (run,) = make_runs(TABLES["coupling_layouts"], cells, base, set(), [0], tmp_path)
    log = open_log(run.folder)
    assert not is_at_work(tmp_path) and is_at_work(run.folder) and open_log(run.folder) is None
    finish = """sleep 1; echo '{"step": 12, "bits_per_dim": 4.5}' > evaluations.jsonl; touch config.json"""
    left = subprocess.Popen(["bash", "-c", finish], cwd=run.folder, stdout=log)
    log.close()
    states = []
    with caplog.at_level("INFO"):
        LocalRunner(tmp_path / "no_script.py", notify=lambda _, state: states.append(state)).work_off([run])
    assert left.wait() == 0 and [state.status for state in states] == [FINISHED]
    assert "waiting for it" in caplog.text and not is_at_work(run.folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("error: `x` must be 1.\nTraceback\nsubprocess.CalledProcessError: Command [] returned", "`x` must be 1."),
        ("torch.OutOfMemoryError: CUDA out of memory.\n", "torch.OutOfMemoryError: CUDA out of memory."),
        ("CalledProcessError: Command '[]' died with <Signals.SIGKILL: 9>.", "killed by SIGKILL (out of memory?)"),
        ("", "exit code 3: no output"),
        ("what is this\n", "exit code 3: what is this"),
        (f"error: an older attempt\n{START_LINE}\nRuntimeError: newer\n", "RuntimeError: newer"),
    ],
)
def test_the_reason_of_a_failure_is_found_in_the_log(tmp_path, text, reason):
    (tmp_path / "log.txt").write_text(text)
    assert failure_reason(tmp_path / "log.txt", 3) == reason
