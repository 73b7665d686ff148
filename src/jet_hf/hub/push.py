# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Pushes to the Hub that survive a bad connection.

The `push_to_hub` method of transformers pushes the weights, the configuration and the remote code, under an empty
model card, and the processor needs a second push. [`push_folder`] pushes the whole output of a training run, including
the card of [`write_model_card`], in one commit.
"""

import json
import logging
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, RepoUrl, whoami
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled


logger = logging.getLogger(__name__)

T = TypeVar("T")
# The base class of the client's HTTP errors. Its library differs between releases of huggingface_hub.
HTTPError = HfHubHTTPError.__bases__[0]
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN, to a token with write access."
MAX_WAIT = 60.0
# Checkpoints, the best models beside the finished one, the files of trackers and hidden files.
NOT_PUSHED = ["checkpoint-*/**", "best/**", "best-*/**", "trackers/**", ".*", "*/.*"]


class PushError(RuntimeError):
    """Failed push. The message states the cause and the remedy."""


def full_repo_id(repo_id: str) -> str:
    """Prefix a repository name with the logged-in user, unless it has a namespace or nobody is logged in."""
    if "/" in repo_id:
        return repo_id
    try:
        return f"{whoami(cache=True)['name']}/{repo_id}"
    except Exception:
        return repo_id


def check_login() -> str | None:
    """Return a sentence about a problem that would make a push fail, or `None` if none is known."""
    try:
        access_token = whoami(cache=True).get("auth", {}).get("accessToken", {})
    except Exception as error:
        return _diagnose(error, "your repositories").text
    return f"the token is read-only. {LOGIN}" if access_token.get("role") == "read" else None


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    commit_message: str = "Upload Jet model",
    token: str | None = None,
    max_attempts: int = 5,
    wait_seconds: float = 2.0,
) -> str:
    """
    Upload a folder to a model repository in one commit, and create the repository if necessary.

    Other files of the repository are kept, and the folder is not changed. A repeated push does not send files again
    that have arrived, and does not repeat a commit whose response was lost.

    Args:
        folder: Folder to upload, without `checkpoint-*/`, `best/`, `trackers/` and hidden files.
        repo_id: Name of the repository. The default namespace is the user of the token.
        private: Whether a new repository is private. `None` follows the user's settings.
        commit_message: Commit message.
        token: Access token. `None` uses `HF_TOKEN` or the stored login.
        max_attempts: Maximum number of attempts.
        wait_seconds: Wait before the second attempt, in seconds. It doubles with each attempt.

    Returns:
        URL of the repository.

    Raises:
        PushError: If the push fails. The message contains a command that completes it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PushError(f"`folder` must be an existing folder, got {folder}.")

    def push() -> str:
        # `True` requires a token, which may also appear between two attempts.
        api = HfApi(token=token or True)
        url = create_repository(api, repo_id, private)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message=commit_message, ignore_patterns=NOT_PUSHED
        )
        return str(url)

    try:
        return retry(push, repo_id, max_attempts, wait_seconds)
    except PushError as error:
        command = ["hf", "upload", repo_id, str(folder), ".", *(["--private"] if private else [])]
        command += [word for pattern in NOT_PUSHED for word in ("--exclude", pattern)]
        raise PushError(f"{error} {folder} is unchanged. To push it later: {shlex.join(command)}") from error


def create_repository(api: HfApi, repo_id: str, private: bool | None, **options) -> RepoUrl:
    """
    Call `HfApi.create_repo` unless the repository exists.

    Raises:
        PushError: If `private` is true and the repository exists and is public.
    """
    url = api.create_repo(repo_id, private=private, exist_ok=True, **options)
    if private and not api.repo_info(url.repo_id, repo_type=url.repo_type).private:
        raise PushError("the repository exists and is public. Make it private in its settings, or omit `private`.")
    return url


def retry(push: Callable[[], T], repo_id: str, max_attempts: int = 5, wait_seconds: float = 2.0) -> T:
    """
    Call `push` until it succeeds, as long as its errors are transient.

    The client itself repeats the upload of a large file, but neither the creation of a repository nor, without Xet,
    the commit.

    Args:
        push: Function that pushes to the Hub. It must be safe to call again after a failure.
        repo_id: Name of the repository, for messages.
        max_attempts: Maximum number of calls.
        wait_seconds: Wait before the second call, in seconds. It doubles with each call.

    Returns:
        Return value of `push`.

    Raises:
        PushError: If the last attempt fails, or an error is not transient.
    """
    if max_attempts < 1:
        raise ValueError(f"`max_attempts` must be at least 1, got {max_attempts}.")
    attempt = 1
    while True:
        try:
            return push()
        except Exception as error:
            diagnosis = _diagnose(error, repo_id)
            if not diagnosis.is_transient or attempt == max_attempts:
                attempts = f" ({attempt} attempts)" if attempt > 1 else ""
                raise PushError(f"the push to {repo_id} failed{attempts}: {diagnosis.text}") from error
        wait = min(max(wait_seconds * 2 ** (attempt - 1), diagnosis.wait), MAX_WAIT)
        logger.warning(f"{diagnosis.text} Retrying the push to {repo_id} in {wait:.0f} s.")
        time.sleep(wait)
        attempt += 1


@dataclass(frozen=True)
class Diagnosis:
    """Cause and remedy of an error, whether a retry may succeed, and the wait in seconds that the Hub asks for."""

    text: str
    is_transient: bool = False
    wait: float = 0.0


def _diagnose(error: BaseException, repo_id: str) -> Diagnosis:
    # These explain themselves, except for JSONDecodeError, which is a ValueError too.
    if isinstance(error, PushError | ValueError) and not isinstance(error, HTTPError | json.JSONDecodeError):
        return Diagnosis(" ".join(str(error).split()))
    chain = [error]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    for link in chain:
        if isinstance(link, HfHubHTTPError):
            return _diagnose_response(link, repo_id)
    if isinstance(error, LocalTokenNotFoundError):
        return Diagnosis(f"no token was found. {LOGIN}")
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return Diagnosis("offline mode is on. Unset HF_HUB_OFFLINE.")
    if any(isinstance(link, HTTPError | ConnectionError | TimeoutError) for link in chain):
        reason = str(chain[-1]) or type(chain[-1]).__name__
        return Diagnosis(f"the Hub cannot be reached ({reason}). Check the network, and HF_ENDPOINT if set.", True)
    # The client parses some responses before it looks at their status. Those of a proxy are often HTML pages.
    if any(isinstance(link, json.JSONDecodeError) for link in chain):
        return Diagnosis("the response of the Hub, or of a proxy in between, is not JSON.", True)
    return Diagnosis(f"{type(error).__name__}: {error}.")


def _diagnose_response(error: HfHubHTTPError, repo_id: str) -> Diagnosis:
    status = error.response.status_code
    if status == 401:
        return Diagnosis(f"the Hub does not accept the token. {LOGIN}")
    if status == 403:
        return Diagnosis(
            f"the token may not write to {repo_id} ({error.server_message}). Check the namespace, and the permissions "
            "of the token at https://huggingface.co/settings/tokens."
        )
    if status == 404:
        return Diagnosis(f"{repo_id} was not found, or is not visible to the token's user. Check its name.")
    text = f"the Hub responded with {status}{f' ({error.server_message})' if error.server_message else ''}."
    # 409 and 412 mean that another commit came first.
    is_transient = status in (408, 409, 412, 429) or status >= 500
    wait = error.response.headers.get("Retry-After", "")
    return Diagnosis(text, is_transient, float(wait) if wait.isdigit() else 0.0)
