# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Averages of the weights of several models."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation


@torch.no_grad()
def average_models(folders: Sequence[str | os.PathLike]) -> tuple[JetForDensityEstimation, JetImageProcessor]:
    """
    Return a float32 model whose weights are the mean of those of other models, and their image processor.

    The sums are float64, so that the order of the models changes the result by rounding at most. At most two models
    are in memory besides the sums.

    Args:
        folders: Two or more folders of saved models, such as checkpoints of a run.

    Raises:
        ValueError: if a folder holds no model, or its configuration, permutations or image processor differ from those
            of the first one; the message names the folder and the difference.
    """
    if len(folders) < 2:
        raise ValueError(f"`models` must name at least two folders, got {len(folders)}.")
    for folder in folders:
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"`models` must be folders of saved models, but there is no {Path(folder)}/config.json.")
    model, processor = _load(folders[0])
    sums = {name: parameter.double() for name, parameter in model.named_parameters()}
    for folder in folders[1:]:
        other, other_processor = _load(folder)
        ours, theirs = _settings(model, processor), _settings(other, other_processor)
        if changed := [name for name in ours if ours[name] != theirs[name]]:
            raise ValueError(
                f"{folder} cannot be averaged with {folders[0]}: "
                + "; ".join(f"`{name}` is {theirs[name]} and must be {ours[name]}" for name in changed)
                + "."
            )
        for name, buffer in other.named_buffers():
            if not torch.equal(buffer, model.get_buffer(name)):
                raise ValueError(f"{folder} cannot be averaged with {folders[0]}: `{name}` differs.")
        for name, parameter in other.named_parameters():
            sums[name] += parameter
    for name, parameter in model.named_parameters():
        parameter.copy_(sums[name] / len(folders))
    return model, processor


def _load(folder: str | os.PathLike) -> tuple[JetForDensityEstimation, JetImageProcessor]:
    model = JetForDensityEstimation.from_pretrained(folder, dtype="float32")
    return model, JetImageProcessor.from_pretrained(folder)


def _settings(model: JetForDensityEstimation, processor: JetImageProcessor) -> dict:
    """Return the settings that models of an average share."""
    return model.config.own_fields() | processor.to_dict()
