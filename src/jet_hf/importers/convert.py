# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversion of other implementations' checkpoints to `from_pretrained` folders."""

import os
from pathlib import Path

from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.files import new_folder
from .big_vision import convert_big_vision
from .jet_pytorch import convert_jet_pytorch


CONVERTERS = {"big_vision": convert_big_vision, "jet_pytorch": convert_jet_pytorch}


def convert_checkpoint(source: str, path: str | os.PathLike, output_dir: str | os.PathLike, **known) -> Path:
    """
    Convert a checkpoint to a folder for [`JetForDensityEstimation.from_pretrained`].

    Args:
        source: Implementation that wrote the checkpoint, `"big_vision"` or `"jet_pytorch"`.
        path: The checkpoint.
        output_dir: Folder to create; it appears only once it is complete.
        known: Fields of [`JetConfig`] that the file does not show.

    Raises:
        ValueError: if `source` is unknown; see also [`convert_big_vision`] and [`convert_jet_pytorch`].
        FileNotFoundError: if there is no file at `path`.
        FileExistsError: if `output_dir` exists and is not an empty folder.
    """
    if source not in CONVERTERS:
        raise ValueError(f"`source` must be one of {list(CONVERTERS)}, got {source!r}.")
    with new_folder(output_dir) as folder:
        if not Path(path).is_file():
            state = "is a folder" if Path(path).is_dir() else "does not exist"
            raise FileNotFoundError(f"`checkpoint` must be a file, but {path} {state}.")
        config, state_dict = CONVERTERS[source](path, **known)
        model = JetForDensityEstimation(config)
        model.load_state_dict(state_dict)
        model.save_pretrained(folder)
        JetImageProcessor(size=config.image_size, num_channels=config.num_channels).save_pretrained(folder)
    return Path(output_dir)
