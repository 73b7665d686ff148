# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Configurations of saved models, with errors that tell a wrong path from a name that the Hub does not know."""

import difflib
from pathlib import Path

from ..model.configuration_jet import JetConfig
from .card import HUB_ID


def load_config(name_or_path: str, argument: str) -> JetConfig:
    """
    Load the configuration of a saved model. Commands call it before they load the model from the same place.

    Args:
        name_or_path: Folder of the model, or its name on the Hub.
        argument: Name of the command's argument, for messages.

    Raises:
        ValueError: for a path without a saved Jet, and a name that is neither a folder nor on the Hub.
    """
    path = Path(name_or_path)
    if path.is_dir() and not (path / "config.json").is_file():
        checkpoints = sorted(folder.name for folder in path.glob("checkpoint-*"))
        hint = f"; its checkpoints, such as {path / checkpoints[-1]}, hold models" if checkpoints else ""
        raise ValueError(f"`{argument}` {path} must be the folder of a model, but it has no config.json{hint}.")
    if path.is_file():
        raise ValueError(f"`{argument}` {path} must be the folder of a model, but it is a file.")
    if not path.exists() and not HUB_ID.fullmatch(name_or_path):
        raise ValueError(missing_path(name_or_path, argument))
    try:
        fields, _ = JetConfig.get_config_dict(name_or_path)
    except OSError as error:
        if not path.exists() and "/" in name_or_path and path.parent.is_dir():
            raise ValueError(missing_path(name_or_path, argument)) from error
        if path.is_dir():  # its config.json is damaged
            raise
        raise ValueError(
            f"`{argument}` {name_or_path} is no folder here and cannot be loaded from the Hub: {error}"
        ) from error
    if (kind := fields.get("model_type")) != JetConfig.model_type:
        raise ValueError(f"`{argument}` must be a Jet, but {name_or_path} is a model of type {kind}.")
    return JetConfig.from_dict(fields)


def missing_path(name_or_path: str, argument: str) -> str:
    """Return the message on a path that does not exist, with the nearest name in the same folder."""
    path = Path(name_or_path)
    beside = [folder.name for folder in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    hint = f": did you mean {path.parent / close[0]}?" if close else "."
    return f"`{argument}` {name_or_path} is a path that does not exist{hint}"
