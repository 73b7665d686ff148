"""The page on other libraries, transformers' Trainer, and the examples for those who build on the model."""

import dataclasses
import json
from contextlib import chdir

import pytest
import torch
from conftest import ROOT, random_images, randomize, tiny_model
from doc_blocks import parse_page
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from examples import (
    anomaly_table,
    autoregressive_latents,
    denoise_and_inpaint,
    odd_products,
    per_sample_gradients,
    reduced_precision,
    restoration,
    score_folder,
    variational_inference,
)
from jet_hf.analysis.anomaly import metrics


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the code blocks of the page in a folder of their own, and return the folder and their names."""
    document, folder = parse_page(ROOT / "docs" / "guides" / "integrations.md"), tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    first, *others = document
    with chdir(folder):
        first.evaluate()
        randomize(document.namespace["model"]).save_pretrained("jet")  # a new flow would hide wrong exports
        for example in others:
            example.evaluate()
    return folder, document.namespace


def test_trainer_evaluates_bits_per_dimension(page):
    _, names = page
    trainer, pixels = names["trainer"], names["pixels"]
    with torch.no_grad():
        expected = trainer.model(pixels, noise=torch.full(pixels.shape, 0.5)).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=0.1)
    assert trainer.state.global_step == 2
    arguments = dataclasses.replace(names["arguments"], label_names=None)
    assert "eval_loss" not in Trainer(trainer.model, arguments, eval_dataset=names["rows"]).evaluate()


def test_lora_adapts_the_named_layers_and_merges(page):
    folder, names = page
    adapted = names["adapted"]
    trained = {name.split(".lora_")[0].rpartition(".")[2] for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"qkv_proj", "fc1", "fc2"}
    model, pixels = tiny_model(hidden_size=32, num_coupling_layers=2, patch_size=4), names["pixels"]
    tuned = PeftModel.from_pretrained(model, folder / "adapter").eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        latents = tuned.encode(pixels)[0]
        torch.testing.assert_close(tuned.decode(latents)[0], pixels, rtol=0, atol=1e-4)
        torch.testing.assert_close(tuned.merge_and_unload().encode(pixels)[0], latents, rtol=0, atol=1e-4)
    assert (folder / "merged" / "modeling_jet.py").exists()


@torch.no_grad()
def test_exports_score_other_batches_than_they_were_made_with(page):
    _, names = page
    model, pixels = names["Scorer"](names["model"]), names["pixels"]
    expected = model(pixels, torch.full(pixels.shape, 0.5))
    for bits in (names["bits"], torch.from_numpy(names["bits_of_onnx"])):
        torch.testing.assert_close(bits, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(names["latents"]), expected[1], rtol=0, atol=1e-5)
    assert [output.name for output in names["session"].get_outputs()] == ["bits_per_dim", "latents"]
    assert names["curvature"].shape == (1, 3, 8, 8) and names["larger"].config.image_size == 16


def test_trainer_accumulates_the_gradients_of_labeled_batches(tmp_path):
    """Two micro-batches give the gradient of one batch, whose loss is a mean, and classes need no `label_names`."""

    class Recorder(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            inputs["noise"] = torch.full_like(inputs["pixel_values"], 0.5)
            return super().compute_loss(model, inputs, **kwargs)

    images, norms = random_images(8, tiny_model().config), []
    rows = [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(images)]
    for accumulation in (1, 2):
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            prediction_loss_only=True,
        )
        trainer = Recorder(tiny_model(num_classes=3), arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_folder_is_scored_in_order(capsys):
    bits = score_folder.main(str(ROOT / "space" / "examples"), str(ROOT / "space" / "model"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == sorted(bits, key=bits.get) and len(lines) == 5
    assert bits["4_smooth.png"] < bits["1_coffee.png"] < 8 < bits["5_static.png"]


def test_the_largest_patch_finds_odd_products():
    areas = odd_products.main(num_good=20, num_odd=3, model=str(ROOT / "space" / "model"))
    assert areas["largest_patch"] > 0.95 and areas["largest_patch"] > areas["negative_log_likelihood"]


def test_a_prior_denoises_and_fills_in_pixels():
    results = denoise_and_inpaint.main(str(ROOT / "space" / "model"), steps=12)
    assert results["denoised"] > results["noisy"] + 4 and results["filled in"] > results["mean of neighbors"] + 1


def test_the_table_of_restorations_has_every_task_and_method(tmp_path, monkeypatch):
    monkeypatch.setattr(restoration, "CROP_SIZE", 32)
    flags = ["--num_crops", "1", "--num_steps", "2", "--sigmas", "25", "--langevin_steps", "4"]
    restoration.main(["--model", str(ROOT / "space" / "model"), "--output_dir", str(tmp_path / "table"), *flags])
    results = json.loads((tmp_path / "table" / "results.json").read_text())
    methods = {task: list(rows) for task, rows in results.items()}
    assert methods == {
        "noise 25": ["noisy", "TV", "wavelet", "non-local means", "flow"],
        "inpainting": ["biharmonic", "flow"],
        "super-resolution x 2": ["bicubic", "flow"],
    }
    assert all(len(row["psnr"]) == 2 and row["seconds"] >= 0 for rows in results.values() for row in rows.values())
    noisy, *better = (sum(row["psnr"]) for row in results["noise 25"].values())
    assert min(better) > noisy + 2
    assert len((tmp_path / "table" / "table.md").read_text().splitlines()) == 2 + 9
    assert all((tmp_path / "table" / f"{name}.png").exists() for name in ("denoising", "inpainting"))


def test_the_tables_of_anomaly_scores_have_every_kind_of_image_and_method(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "NUM_RESAMPLES", 2)
    monkeypatch.setattr(anomaly_table, "REDUCTIONS", (4,))
    monkeypatch.setattr(anomaly_table, "NUM_CLASSES", 2)
    monkeypatch.setattr(anomaly_table, "GridSearchCV", lambda estimator, *_, **__: estimator)
    list_images = anomaly_table.list_images
    monkeypatch.setattr(anomaly_table, "list_images", lambda pixels: list_images(pixels)[:24])
    flags = {"num_normal": 8, "num_odd": 4, "background_steps": 1, "digits_steps": 1}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    anomaly_table.main(["--output_dir", str(tmp_path / "tables"), *words])
    results = json.loads((tmp_path / "tables" / "results.json").read_text())
    photographs, digits = results["photographs"], results["digits"]
    assert len(photographs) == 1 + 15 and photographs["normal crops"]["share of p-values up to 0.05"].keys() == set(
        anomaly_table.TITLES
    )
    constant, noise = photographs["constant colors"], photographs["uniform noise"]
    assert constant["negative_log_likelihood"]["auroc"]["value"] < 0.7 < 0.95 < noise["latent_norm"]["auroc"]["value"]
    assert constant["complexity_corrected"]["auroc"]["value"] > 0.95 and 0 < noise["p of a batch"] < 0.01
    assert len(digits) == 6 + 3 and all(0 <= area <= 1 for areas in digits.values() for area in areas)
    lines = (tmp_path / "tables" / "tables.md").read_text().splitlines()
    assert len(lines) == (2 + 16) + 1 + (2 + 9) and (tmp_path / "tables" / "heat_maps.png").exists()


def test_per_sample_gradients_equal_those_of_a_loop():
    results = per_sample_gradients.main(batch_size=3)
    assert results["difference"] < 1e-6 and 0 < results["agreement"] < 1


def test_variational_inference_approaches_the_posterior():
    results = variational_inference.main(steps=30)
    assert 0 < results["gap"] < 0.7 * results["independent"] and results["mean_error"] < 0.25


def test_a_causal_transformer_learns_the_latents():
    results = autoregressive_latents.main(steps=5)
    for before, after in results.values():
        assert before > after + 0.2


def test_narrow_conditioners_nearly_keep_scores_and_bytes():
    (bits, error, kept), *others = reduced_precision.main(num_images=4).values()
    assert error < 1e-5 and kept == 1
    for narrow in others:  # whether a rounding differs in so few images is chance, so errors have no lower bound here
        assert 0 < abs(narrow[0] - bits) < 0.02 and narrow[2] > 0.99
