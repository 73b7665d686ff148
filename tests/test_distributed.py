"""Two processes with whole models (DDP) or sharded ones (FSDP2) give the results of one process."""

import filecmp
import json

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, tiny_model
from distributed_worker import (
    NUM_EVAL_IMAGES,
    SHARDING,
    compare_samples,
    make_accelerator,
    measure,
    pixels,
    skip_a_step,
)
from train_process import run_in_two

from jet_hf import JetForDensityEstimation
from jet_hf.analysis.evaluation import evaluate


RECIPE = ROOT / "recipes" / "accelerate" / "fsdp2.yaml"
KINDS = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of the two processes."""
    folder = tmp_path_factory.mktemp("distributed")
    run_in_two([str(ROOT / "tests" / "distributed_worker.py"), str(folder)], folder)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return {kind: [json.loads((folder / f"{kind}-{rank}.json").read_text()) for rank in range(2)] for kind in KINDS}


@pytest.fixture(scope="module")
def alone():
    """The results of this one process."""
    return measure(make_accelerator())[1]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradient_norms_are_those_of_one_process(kind, results, alone):
    losses = np.array(alone["steps"])[:, 0]
    assert losses[0] - losses[-1] > 0.1  # the steps changed the weights
    for rank in range(2):
        for name in ("steps", "noisy_steps"):
            np.testing.assert_allclose(results[kind][rank][name], alone[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_all_processes_skip_a_step_that_one_of_them_spoils(kind, results):
    alone = skip_a_step(make_accelerator())
    for rank in range(2):
        steps = results[kind][rank]["skipped_step"]
        assert [skipped for skipped, _ in steps] == [False, True, False]
        for step in (0, 2):
            assert steps[step][1] == pytest.approx(alone[step][1], rel=1e-5)


def test_sharding_changes_no_number(results):
    for name in ("steps", "noisy_steps", "scores", "noisy_scores", "averaged_scores", "samples", "denoised_samples"):
        np.testing.assert_allclose(results["fsdp2"][0][name], results["ddp"][0][name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_split_that_does_not_divide_are_those_of_one_process(kind, results, alone):
    assert len(alone["scores"]) == NUM_EVAL_IMAGES
    for rank in range(2):
        for name in ("scores", "noisy_scores"):
            np.testing.assert_allclose(results[kind][rank][name], alone[name], rtol=1e-5, err_msg=name)


def test_figures_of_samples_are_those_of_one_process(results):
    figures = compare_samples(make_accelerator())
    assert len(figures) == 8 and results["ddp"][0]["figures"].keys() == figures.keys()
    for name, values in figures.items():
        assert results["ddp"][0]["figures"][name]["samples"] == pytest.approx(values["samples"], rel=1e-3), name
    assert results["ddp"][1]["figures"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_moving_average_is_put_in_place_and_taken_out_again(kind, results, alone):
    for rank in range(2):
        result = results[kind][rank]
        np.testing.assert_allclose(result["averaged_scores"], alone["averaged_scores"], rtol=1e-5)
        assert result["scores_again"] == result["scores"]
        assert np.abs(np.subtract(result["averaged_scores"], result["scores"])).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_works_before_the_first_step_and_after_the_last(kind, results, alone):
    for rank in range(2):
        for name in ("samples", "samples_again", "denoised_samples"):
            np.testing.assert_allclose(results[kind][rank][name], alone[name], atol=1e-4, err_msg=name)
    assert np.abs(np.subtract(alone["samples"], alone["samples_again"])).max() > 0.1


def test_each_coupling_and_the_model_are_sharded(results):
    result = results["fsdp2"][0]
    assert result["sharded_modules"] == ["", *(f"jet.couplings.{i}" for i in range(5))]
    assert result["all_sharded"]
    # All parameters are halved, except the position embeddings with their first axis of 1.
    assert sum(results["fsdp2"][rank]["local_share"] for rank in range(2)) == pytest.approx(1)
    assert 0.4 < result["local_share"] < 0.6


def test_gathered_weights_load_and_score_the_same(folder, results, tmp_path):
    model = JetForDensityEstimation.from_pretrained(folder / "model")
    scores = evaluate(model, pixels(NUM_EVAL_IMAGES, seed=2), num_noise_samples=2).bits_per_dim
    np.testing.assert_allclose(scores, results["fsdp2"][0]["scores"], rtol=1e-5)

    # The name, the configuration and the code are those of a model that was never sharded.
    tiny_model().save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".safetensors")
    assert sorted(path.name for path in (folder / "model").iterdir() if path.suffix != ".safetensors") == names
    assert filecmp.cmpfiles(tmp_path, folder / "model", names, shallow=False) == (names, [], [])


def test_a_sharded_checkpoint_resumes_bit_for_bit(folder, results):
    for rank in range(2):
        result = results["fsdp2"][rank]
        assert result["resumed"] == result["straight"]
        assert result["resumed_averaged"] == result["straight_averaged"]
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        assert len(list((folder / "checkpoint-3" / part).glob("*.distcp"))) == 2, part


def test_a_sharded_checkpoint_opens_as_the_model_that_is_evaluated(folder, results):
    model = JetForDensityEstimation.from_pretrained(folder / "checkpoint-3")
    scores = evaluate(model, pixels(NUM_EVAL_IMAGES, seed=2), num_noise_samples=2).bits_per_dim
    np.testing.assert_allclose(scores, results["fsdp2"][0]["averaged_scores"], rtol=1e-5)


def test_a_flow_gathered_in_bfloat16_keeps_its_state_in_float32(results):
    result = results["fsdp2"][0]
    assert result["bfloat16_latents"] == str(torch.float32)
    np.testing.assert_allclose(result["bfloat16_steps"], result["steps"][:1], rtol=5e-3)
    assert result["bfloat16_steps"] != result["steps"][:1]


def test_the_recipe_shards_as_these_tests_do():
    settings = yaml.safe_load(RECIPE.read_text())["fsdp_config"]
    names = {"transformer_cls_names_to_wrap": "transformer_layer_cls_to_wrap"}
    for field, value in SHARDING.items():
        key = field if field == "fsdp_version" else f"fsdp_{names.get(field, field)}"
        assert settings[key] == (",".join(value) if isinstance(value, list) else value), key
