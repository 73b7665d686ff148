#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Make or update a Gradio Space of this demo on the Hub. The Space carries its own copy of jet_hf.

    python space/deploy.py org/jet-demo                                # with the checkpoint of space/model
    python space/deploy.py org/jet-demo --model_id org/jet-imagenet-64 # with a model of the Hub

A Space restarts when one of its variables changes, and is rebuilt after a commit. The variable `MODEL_ID`, which names
a model on the Hub, is therefore set before the commit that removes the folder `model/`, and deleted after the commit
that adds it: whatever fails, the Space has a model to start with at every moment, the previous or the new one.
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
from jet_hf.hub import HUB_ID, PushError, push_folder


logger = logging.getLogger(__name__)

PACKAGE = Path(jet_hf.__file__).parent
MODEL_VARIABLE = "MODEL_ID"
# Folders that belong to the deployment: files of earlier ones are deleted there, and nowhere else.
OWN_FOLDERS = (PACKAGE.name, "model", "examples")
SCRIPT = Path(__file__).name


def stage_space(source: str | os.PathLike, folder: str | os.PathLike, with_model: bool = True) -> None:
    """
    Gathers the files of the Space.

    Args:
        source: Folder of the demo. Hidden files, the script that deploys it, and what Python and Gradio write beside
            their sources (`__pycache__`, `*.pyi`) stay behind.
        folder: Folder to make.
        with_model: Whether the checkpoint in `model/` is among them.

    Raises:
        ValueError: if the demo, or the checkpoint, is not there.
    """
    source = Path(source)
    for name, wanted in (("app.py", True), ("model/config.json", with_model)):
        if wanted and not (source / name).is_file():
            hint = "" if name == "app.py" else "; `model_id` names a model on the Hub instead"
            raise ValueError(f"`source` has to hold {name}, got {source}, which does not{hint}.")
    left_out = {SCRIPT} if with_model else {SCRIPT, "model"}

    def ignore(parent: str, names: list[str]) -> set[str]:
        unwanted = {name for name in names if name == "__pycache__" or name.startswith(".") or name.endswith(".pyi")}
        return unwanted | left_out if Path(parent) == source else unwanted

    shutil.copytree(source, folder, ignore=ignore)
    shutil.copytree(PACKAGE, Path(folder) / PACKAGE.name, ignore=ignore)


def deploy_space(
    source: str | os.PathLike,
    repo_id: str,
    model_id: str | None = None,
    private: bool | None = None,
    hardware: str | None = None,
    commit_message: str = "Deploy the demo of Jet",
    again: str | None = None,
    wait_seconds: float = 2.0,
) -> str:
    """
    Makes a Space, or brings it up to date, in one commit. Files of its owner stay.

    Args:
        source: Folder of the demo.
        repo_id: Name of the Space; without a user, that of the token.
        model_id: Name on the Hub of the model that the Space loads; None: the checkpoint in `model/` of the demo.
        private: Whether the Space, if it has to be made, is private; None: as the user's settings say.
        hardware: What the Space runs on, such as "zero-a10g"; None: as it is, for a new Space the Hub's default.
        commit_message: Of the commit.
        again: Command that error messages give for completing the deployment.
        wait_seconds: Before the second attempt of a push; see [`push_folder`].

    Returns:
        Address of the Space.

    Raises:
        ValueError: if files are missing, or `model_id` is not the name of a model on the Hub.
        PushError: with what to do about it.
    """
    if model_id is not None:
        _check_model(model_id)

    def before_commit(api: HfApi, space: str) -> None:
        if hardware is not None:
            runtime = api.get_space_runtime(space)
            if hardware != (runtime.requested_hardware or runtime.hardware):
                api.request_space_hardware(space, hardware)
        if model_id is not None:
            variable = api.get_space_variables(space).get(MODEL_VARIABLE)
            if variable is None or variable.value != model_id:
                api.add_space_variable(space, MODEL_VARIABLE, model_id)

    def after_commit(api: HfApi, space: str) -> None:
        if model_id is None and MODEL_VARIABLE in api.get_space_variables(space):
            api.delete_space_variable(space, MODEL_VARIABLE)

    with tempfile.TemporaryDirectory() as draft:
        folder = Path(draft) / "space"
        stage_space(source, folder, with_model=model_id is None)
        return push_folder(
            folder,
            repo_id,
            private=private,
            commit_message=commit_message,
            ignore_patterns=(),
            wait_seconds=wait_seconds,
            repo_type="space",
            space_sdk="gradio",
            space_hardware=hardware,
            delete_patterns=tuple(f"{name}/*" for name in OWN_FOLDERS),
            before_commit=before_commit,
            after_commit=after_commit,
            again=again,
        )


def _check_model(model_id: str) -> None:
    """
    Raises ValueError if it is known that a Space cannot load the model. Where the Hub cannot be asked, the push will
    say so.
    """
    wanted = "`model_id` has to be the name of a model on the Hub, such as org/jet-imagenet-64"
    if model_id and Path(model_id).exists():
        raise ValueError(f"{wanted}, got {model_id}, which is on this machine, where a Space cannot read it.")
    if not HUB_ID.fullmatch(model_id):
        raise ValueError(f"{wanted}, got {model_id!r}.")
    try:
        private = HfApi().model_info(model_id).private
    except RepositoryNotFoundError as error:
        raise ValueError(f"{wanted}, got {model_id}, which was not found, or is not visible to you.") from error
    except Exception:
        return
    if private:
        logger.warning(f"{model_id} is private: the Space needs a secret HF_TOKEN that may read it.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo_id", help="Name of the Space.")
    parser.add_argument("--model_id", help="Name on the Hub of the model to load, instead of the checkpoint here.")
    parser.add_argument("--private", action="store_true", help="Make a Space that only you see.")
    parser.add_argument("--hardware", help="What it runs on, such as zero-a10g; without, as it is.")
    parser.add_argument("--commit_message", default="Deploy the demo of Jet", help="Of the one commit.")
    arguments = parser.parse_args()
    address = deploy_space(
        Path(__file__).resolve().parent,
        arguments.repo_id,
        model_id=arguments.model_id,
        private=arguments.private or None,
        hardware=arguments.hardware,
        commit_message=arguments.commit_message,
        again=shlex.join(["python", *sys.argv]),
    )
    print(address)


if __name__ == "__main__":
    try:
        main()
    except (PushError, ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
