"""Model cards and their machine-readable scores."""

import copy
import dataclasses
import math
import re
from pathlib import Path

import pytest
from conftest import tiny_model
from hub_repos import card_errors, card_metadata
from huggingface_hub import EvalResult, ModelCard, RepoCard
from PIL import Image

from jet_hf import JetImageProcessor
from jet_hf.hub import CardFacts, EvaluationRecord, add_evaluation, write_model_card


OORD = "ImageNet 32 x 32, the PNG release of van den Oord et al."
CHRABASZCZ = "ImageNet 32 x 32, the release of Chrabaszcz et al."
RECORD = EvaluationRecord(OORD, "imagefolder", "validation", 49_999, 3.8571, 0.0123)


def facts(**fields) -> CardFacts:
    defaults = {
        "dataset_title": OORD,
        "dataset_note": "Not comparable with the release of Chrabaszcz et al.",
        "training": {"optimizer steps": 1000},
        "command": "train.py --config recipes/imagenet32.yaml",
        "evaluations": [RECORD],
        "base_model": None,
        "dataset_id": None,
        "has_samples": True,
    }
    return CardFacts(**(defaults | fields))


def read_scores(folder: Path) -> dict[tuple, float]:
    card = ModelCard.load(folder / "README.md").data
    scores = {(s.dataset_name, s.metric_type, s.metric_config): s.metric_value for s in card.eval_results}
    assert len(scores) == len(card.eval_results), "a score is duplicated"
    results = card_metadata((folder / "README.md").read_text())["model-index"][0]["results"]
    assert len(results) == len({name for name, *_ in scores}), "scores of a dataset are split"
    return scores


FOREIGN = """---
license: apache-2.0
model-index:
- name: theirs
  results:
  - task: {type: image-classification}
    dataset: {name: Beans, type: beans, split: test}
    metrics: [{type: accuracy, value: 0.9, verified: true}]
    source: {url: https://example.org}
  - task: {type: unconditional-image-generation}
    dataset: {name: Beans, type: beans, split: test}
    metrics: [{type: fid, value: 12.5}]
# a comment
tags: [a, "ä"]
---
\r
# Title\r

Text with --- and\ttrailing space \n\n"""


def test_a_score_is_added_to_foreign_ones(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(FOREIGN, newline="")
    add_evaluation(tmp_path, RECORD)
    card, before = card_metadata(path.read_bytes().decode()), card_metadata(FOREIGN)
    added = card["model-index"][0]["results"].pop()
    assert card == before and card_errors(path.read_text()) == []
    assert added["dataset"]["name"] == OORD and added["metrics"][0]["value"] == 3.8571
    assert path.read_bytes().endswith(FOREIGN.split("---\n", 2)[2].encode())
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_a_score_replaces_an_earlier_one(tmp_path):
    write_model_card(tmp_path, facts(), "jet/tiny")
    body = ModelCard.load(tmp_path / "README.md").text
    other = {"dataset_type": "imagefolder", "split": "validation", "num_images": 50_000, "standard_error": 0.01}
    for name, bits, samples in ((CHRABASZCZ, 3.6, 1), (OORD, 3.5, 1), (OORD, 3.4, 16), (OORD, 3.3, 16)):
        record = EvaluationRecord(name, bits_per_dim=bits, num_noise_samples=samples, **other)
        add_evaluation(tmp_path / "README.md", record)
    expected = {
        (OORD, "bits_per_dim", "1 noise sample"): 3.5,
        (OORD, "bits_per_dim", "16 noise samples"): 3.3,
        (CHRABASZCZ, "bits_per_dim", "1 noise sample"): 3.6,
    }
    assert read_scores(tmp_path) == expected
    # The client regroups results when it saves a card. The two releases must stay separate.
    card = ModelCard.load(tmp_path / "README.md")
    card.data.eval_results.append(EvalResult("image-classification", "beans", "Beans", "accuracy", 0.9))
    card.save(tmp_path / "README.md")
    assert read_scores(tmp_path) == expected | {("Beans", "accuracy", None): 0.9}
    assert ModelCard.load(tmp_path / "README.md").text == body
    assert card_errors((tmp_path / "README.md").read_text()) == []


def test_duplicated_scores_are_merged(tmp_path):
    write_model_card(tmp_path, facts(), "jet/tiny")
    card = RepoCard.load(tmp_path / "README.md")
    card.data["model-index"][0]["results"] += copy.deepcopy(card.data["model-index"][0]["results"])
    card.save(tmp_path / "README.md")
    assert card_metadata((tmp_path / "README.md").read_text())["model-index"][0]["results"][1:]
    add_evaluation(tmp_path, dataclasses.replace(RECORD, bits_per_dim=3.5))
    assert list(read_scores(tmp_path).values()) == [3.5]
    assert card_errors((tmp_path / "README.md").read_text()) == []


def test_a_card_without_metadata(tmp_path):
    (tmp_path / "README.md").write_text("# Only text\n")
    add_evaluation(tmp_path, RECORD)
    assert list(read_scores(tmp_path).values()) == [3.8571]
    assert (tmp_path / "README.md").read_text().endswith("---\n# Only text\n")


def test_invalid_cards_and_scores_are_refused(tmp_path):
    card = tmp_path / "README.md"
    with pytest.raises(ValueError, match=r"`path` must be a model card or its folder, got .*README.md does not exist"):
        add_evaluation(tmp_path, RECORD)
    assert not list(tmp_path.iterdir())
    for metadata in ("model-index: 3", "model-index: [{name: a}]", "model-index: [{results: [{dataset: a}]}]", "a: ["):
        card.write_text(f"---\n{metadata}\n---\n")
        with pytest.raises(ValueError, match=r"the metadata of .*README.md is invalid"):
            add_evaluation(tmp_path, RECORD)
        assert card.read_text() == f"---\n{metadata}\n---\n"
    card.write_text("# a\n")
    with pytest.raises(ValueError, match="`bits_per_dim` must be a finite number, got nan"):
        add_evaluation(card, dataclasses.replace(RECORD, bits_per_dim=math.nan))
    assert [file.read_text() for file in tmp_path.iterdir()] == ["# a\n"]


def test_the_hub_accepts_a_card_of_awkward_facts(tmp_path):
    evaluations = [
        EvaluationRecord("folder | of\nmine", "/home/me/my pictures", "test", 1, 4.25, math.nan),
        EvaluationRecord("overflown", "imagefolder", "test", 10, math.inf, math.nan),
    ]
    awkward = facts(
        evaluations=evaluations, base_model="/home/me/runs/base", dataset_id="imagefolder", training={"a | b": "c\nd"}
    )
    write_model_card(tmp_path, awkward, "jet/tiny")
    text = (tmp_path / "README.md").read_text()
    card = card_metadata(text)
    assert card_errors(text) == []
    assert not {"base_model", "datasets", "base_model_relation"} & set(card)
    (result,) = card["model-index"][0]["results"]
    assert result["dataset"]["type"] == "my-pictures"
    assert result["metrics"][0]["args"] == {"num_images": 1, "num_noise_samples": 1}
    assert "/home/me" not in text and "the weights of base." in text
    assert "| folder \\| of mine | test | 1 | 4.2500 | 1 |" in text and "| a \\| b | c d |" in text
    assert "samples.png" not in text, "there is no such file"


def test_a_fine_tuned_model_without_scores(tmp_path):
    fields = {"base_model": "jet/imagenet21k-32", "dataset_id": "uoft-cs/cifar10", "evaluations": []}
    write_model_card(tmp_path, facts(**fields), "jet/tiny")
    text = (tmp_path / "README.md").read_text()
    card = card_metadata(text)
    assert card_errors(text) == [] and "model-index" not in card and "was not evaluated" in text
    assert card["base_model"] == "jet/imagenet21k-32" and card["base_model_relation"] == "finetune"
    assert card["datasets"] == ["uoft-cs/cifar10"]
    add_evaluation(tmp_path, RECORD)
    assert list(read_scores(tmp_path).values()) == [3.8571]


@pytest.mark.parametrize(
    "fields",
    [{}, {"num_classes": 3}, {"num_classes": 3, "noise_std": 0.2}, {"num_classes": 3, "noise_std": [0.1, 1.0]}],
)
def test_the_code_of_a_card_runs(fields, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    tiny_model(**fields).save_pretrained(folder)
    JetImageProcessor(size=8).save_pretrained(folder)
    write_model_card(folder, facts(evaluations=[]), str(folder))
    Image.new("RGB", (8, 8), "teal").save("image.png")
    first, second = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    # Without remote code, which other tests run, AutoModel opens the package's own class.
    names: dict = {}
    exec(first.replace(", trust_remote_code=True", ""), names)
    exec(second, names)
    assert [image.size for image in names["images"]] == [(8, 8)] * 4 and names["latents"].shape == (1, 3, 8, 8)
    assert type(names["model"]).__name__ == "JetForDensityEstimation"
