#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Create or update a Gradio Space of this demo on the Hub. The Space contains a copy of jet_hf.

    python space/deploy.py org/jet-demo                                # with the checkpoint of space/model
    python space/deploy.py org/jet-demo --model_id org/jet-imagenet-64 # with a model of the Hub
"""

import argparse
import logging
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

import jet_hf
from jet_hf.hub import HUB_ID, PushError, create_repository, retry


logger = logging.getLogger(__name__)

PACKAGE = Path(jet_hf.__file__).parent
MODEL_VARIABLE = "MODEL_ID"
COMMIT_MESSAGE = "Deploy the Jet demo"
# Files of earlier deployments are deleted in these folders only.
OWN_FOLDERS = (PACKAGE.name, "model", "digits", "examples")


def stage_space(source: Path, folder: Path, with_model: bool = True) -> None:
    """
    Copy the files of the Space to a new folder.

    Args:
        source: Folder of the demo. Hidden files, this script, the Dockerfile, and the files that Python and Gradio
            generate (`__pycache__`, `*.pyi`) are left out.
        folder: Folder to create.
        with_model: Whether to include the checkpoint in `model/`.

    Raises:
        ValueError: If the demo or the checkpoint is missing.
    """
    if not (source / "app.py").is_file():
        raise ValueError(f"`source` must contain app.py, got {source}.")
    if with_model and not (source / "model" / "config.json").is_file():
        raise ValueError(
            f"`source` must contain model/config.json, got {source}. To use a model of the Hub instead, "
            "set `model_id`."
        )
    excluded = {Path(__file__).name, "Dockerfile", *([] if with_model else ["model"])}

    def ignore(parent: str, names: list[str]) -> set[str]:
        unwanted = {name for name in names if name == "__pycache__" or name.startswith(".") or name.endswith(".pyi")}
        return unwanted | excluded if Path(parent) == source else unwanted

    shutil.copytree(source, folder, ignore=ignore)
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignore)


def deploy_space(
    source: str | os.PathLike,
    repo_id: str,
    model_id: str | None = None,
    private: bool | None = None,
    hardware: str | None = None,
    commit_message: str = COMMIT_MESSAGE,
) -> str:
    """
    Create or update a Space in one commit. Other files of the Space are kept.

    A Space restarts when one of its variables changes, and is rebuilt after a commit. The variable `MODEL_ID` is
    therefore set before the commit that removes the folder `model/`, and deleted after the commit that adds it. If any
    step fails, the Space still has a model to start with, either the previous or the new one.

    Args:
        source: Folder of the demo.
        repo_id: Name of the Space. The default namespace is the user of the token.
        model_id: Name on the Hub of the model that the Space loads. `None` uses the checkpoint in `model/`.
        private: Whether a new Space is private. `None` follows the user's settings.
        hardware: Hardware of the Space, such as "zero-a10g". `None` keeps it; new Spaces get the Hub's default.
        commit_message: Commit message.

    Returns:
        URL of the Space.

    Raises:
        ValueError: If files are missing, or a Space cannot load `model_id`.
        PushError: If the deployment fails.
    """
    if model_id is not None:
        _check_model(model_id)

    def push(folder: Path) -> str:
        api = HfApi(token=True)
        url = create_repository(api, repo_id, private, repo_type="space", space_sdk="gradio", space_hardware=hardware)
        space = url.repo_id
        if hardware is not None:
            runtime = api.get_space_runtime(space)
            if hardware != (runtime.requested_hardware or runtime.hardware):
                api.request_space_hardware(space, hardware)
        if model_id is not None:
            variable = api.get_space_variables(space).get(MODEL_VARIABLE)
            if variable is None or variable.value != model_id:
                api.add_space_variable(space, MODEL_VARIABLE, model_id)
        api.upload_folder(
            repo_id=space,
            repo_type="space",
            folder_path=folder,
            commit_message=commit_message,
            delete_patterns=[f"{name}/*" for name in OWN_FOLDERS],
        )
        if model_id is None and MODEL_VARIABLE in api.get_space_variables(space):
            api.delete_space_variable(space, MODEL_VARIABLE)
        return str(url)

    with tempfile.TemporaryDirectory() as draft:
        folder = Path(draft) / "space"
        stage_space(Path(source), folder, with_model=model_id is None)
        return retry(lambda: push(folder), repo_id)


def _check_model(model_id: str) -> None:
    """Raise ValueError if a Space cannot load the model. If the Hub cannot be reached, the push reports that."""
    expected = "`model_id` must be the name of a model on the Hub, such as org/jet-imagenet-64"
    if model_id and Path(model_id).exists():
        raise ValueError(f"{expected}, got {model_id}, which is on this machine, where a Space cannot read it.")
    if not HUB_ID.fullmatch(model_id):
        raise ValueError(f"{expected}, got {model_id!r}.")
    try:
        private = HfApi().model_info(model_id).private
    except RepositoryNotFoundError as error:
        raise ValueError(f"{expected}, got {model_id}, which does not exist or is not visible to you.") from error
    except Exception:
        return
    if private:
        logger.warning(f"{model_id} is private: the Space needs a secret HF_TOKEN that may read it.")


def main() -> None:
    """Parse the command line, deploy the Space, and print its URL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo_id", help="Name of the Space.")
    parser.add_argument("--model_id", help="Name of a model on the Hub to load instead of the checkpoint.")
    parser.add_argument("--private", action="store_true", default=None, help="Create a private Space.")
    parser.add_argument("--hardware", help="Hardware, such as zero-a10g. By default it is not changed.")
    parser.add_argument("--commit_message", default=COMMIT_MESSAGE, help="Commit message.")
    try:
        print(deploy_space(Path(__file__).resolve().parent, **vars(parser.parse_args())))
    except PushError as error:
        sys.exit(f"error: {error} To complete it: {shlex.join(['python', *sys.argv])}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
