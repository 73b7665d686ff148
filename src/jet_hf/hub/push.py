# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Pushes to the Hub that survive a bad connection.

`model.push_to_hub(repo_id)` of transformers pushes the weights, the configuration and the code for
`trust_remote_code`, under a card that is an empty form; the processor needs a push of its own. [`push_folder`] pushes
all that a training run has written, with the card of [`write_model_card`], in one commit.
"""

import json
import logging
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token, whoami
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled


logger = logging.getLogger(__name__)

# The base class of the client's HTTP errors, of a library that differs between its releases.
HTTPError = HfHubHTTPError.__bases__[0]
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN, to a token with write access."
MAX_WAIT = 60.0


class PushError(RuntimeError):
    """A push that failed, why, and what to do about it."""


def full_repo_id(repo_id: str) -> str:
    """Puts the name of the user who is logged in before a name without one; without a login, leaves it as it is."""
    if "/" in repo_id:
        return repo_id
    try:
        return f"{whoami(cache=True)['name']}/{repo_id}"
    except Exception:
        return repo_id


def check_login() -> str | None:
    """One sentence about what will keep a push from working, as far as can be known beforehand, or None."""
    try:
        if get_token() is None:
            return f"no token was found. {LOGIN}"
        access = whoami(cache=True).get("auth", {}).get("accessToken", {})
    except Exception as error:
        return _diagnose(error, "your repositories").text
    if access.get("role") == "read":
        return f"the token may only read. {LOGIN}"
    return None


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    commit_message: str = "Upload Jet model",
    ignore_patterns: tuple[str, ...] = ("checkpoint-*/**", ".*", "*/.*"),
    token: str | None = None,
    max_attempts: int = 5,
    wait_seconds: float = 2.0,
    repo_type: str = "model",
    space_sdk: str | None = None,
    space_hardware: str | None = None,
    delete_patterns: tuple[str, ...] = (),
    before_commit: Callable[[HfApi, str], None] | None = None,
    after_commit: Callable[[HfApi, str], None] | None = None,
    again: str | None = None,
) -> str:
    """
    Uploads a folder to a repository on the Hub, which is made if need be. The folder is only read.

    The client itself repeats the upload of a large file, but not the making of the repository, nor, without Xet, the
    commit. Here the whole is repeated: what has arrived is not sent again, and a commit that was made although its
    answer was lost is not made twice.

    Args:
        folder: What is uploaded. Files that the repository has beside it stay.
        repo_id: Name of the repository; without a user, that of the token.
        private: Whether the repository, if it has to be made, is private; None: as the user's settings say.
        commit_message: Of the commit.
        ignore_patterns: What stays behind: checkpoints and hidden files.
        token: Instead of the one that `hf auth login` stored or `HF_TOKEN` names.
        max_attempts: Attempts in all, where the server is overloaded, or does not answer.
        wait_seconds: Before the second attempt; doubled before each that follows.
        repo_type: Kind of the repository: "model", "dataset" or "space".
        space_sdk, space_hardware: Of a Space, if it has to be made; a Space needs the first.
        delete_patterns: Files of the repository that do not stay, unless the folder has them.
        before_commit, after_commit: Called with the client and the repository's full name, in each attempt.
        again: Command that completes the push after a failure; None: `hf upload` of the folder.

    Returns:
        Address of the repository.

    Raises:
        PushError: with what to do about it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PushError(f"{folder} is not a folder.")
    failure, advice = f"the push to {repo_id} failed", f"To complete it: {again}"
    if again is None:
        later = ["hf", "upload", repo_id, str(folder), ".", *(["--private"] if private else [])]
        later += [] if repo_type == "model" else ["--repo-type", repo_type]
        later += [word for pattern in ignore_patterns for word in ("--exclude", pattern)]
        later += [word for pattern in delete_patterns for word in ("--delete", pattern)]
        failure = f"{folder} was not pushed to {repo_id}"
        advice = f"It is left as it was; to push it later: {shlex.join(later)}"

    def push_once() -> str:
        api = HfApi(token=token)
        space = {"space_sdk": space_sdk, "space_hardware": space_hardware}
        url = api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True, **space)
        if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
            raise PushError(
                "the repository exists, and is public. Make it private in its settings, or do not ask for `private`."
            )
        if before_commit is not None:
            before_commit(api, url.repo_id)
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message=commit_message,
            ignore_patterns=list(ignore_patterns),
            delete_patterns=list(delete_patterns) or None,
        )
        if after_commit is not None:
            after_commit(api, url.repo_id)
        return str(url)

    for attempt in range(1, max_attempts + 1):
        try:
            token = token or get_token()
            if token is None:
                raise PushError(f"no token was found. {LOGIN}")
            return push_once()
        except Exception as error:
            diagnosis = _diagnose(error, repo_id)
            if not diagnosis.passing or attempt == max_attempts:
                tried = f" ({attempt} attempts)" if attempt > 1 else ""
                raise PushError(f"{failure}{tried}: {diagnosis.text} {advice}") from error
            wait = min(max(wait_seconds * 2 ** (attempt - 1), diagnosis.wait), MAX_WAIT)
            logger.warning(f"{diagnosis.text} Pushing to {repo_id} again in {wait:.0f} s.")
            time.sleep(wait)
    raise ValueError(f"`max_attempts` has to be at least 1, got {max_attempts}.")


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong and what to do, in sentences; whether it may pass by itself, and the seconds that it asks for."""

    text: str
    passing: bool = False
    wait: float = 0.0


def _diagnose(error: BaseException, repo_id: str) -> Diagnosis:
    # These explain themselves; a JSONDecodeError is a ValueError that does not.
    if isinstance(error, PushError | ValueError) and not isinstance(error, HTTPError | json.JSONDecodeError):
        return Diagnosis(" ".join(str(error).split()))
    chain = [error]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    answered = next((link for link in chain if isinstance(link, HfHubHTTPError)), None)
    if answered is not None:
        return _diagnose_answer(answered, repo_id)
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return Diagnosis("offline mode is on. Unset HF_HUB_OFFLINE.")
    if any(isinstance(link, HTTPError | ConnectionError | TimeoutError) for link in chain):
        reason = str(chain[-1]) or type(chain[-1]).__name__
        return Diagnosis(f"the Hub cannot be reached ({reason}). Check the network, and HF_ENDPOINT if set.", True)
    # The client reads some answers as JSON before it looks at their status: those of a proxy are pages.
    if any(isinstance(link, json.JSONDecodeError) for link in chain):
        return Diagnosis("the Hub, or a proxy on the way, gave an answer that is not JSON.", True)
    return Diagnosis(f"{type(error).__name__}: {error}.")


def _diagnose_answer(error: HfHubHTTPError, repo_id: str) -> Diagnosis:
    status = error.response.status_code
    if status == 401:
        return Diagnosis(f"the Hub does not accept the token. {LOGIN}")
    if status == 403:
        return Diagnosis(
            f"the token may not write to {repo_id} ({error.server_message}). Check the name before the slash, and the "
            "permissions of the token at https://huggingface.co/settings/tokens."
        )
    if status == 404:
        return Diagnosis(f"{repo_id} was not found, or is not visible to the token's user. Check its name.")
    answer = f"the Hub answered {status}{f' ({error.server_message})' if error.server_message else ''}."
    # 409, 412: someone else's commit came in between.
    if status in (408, 409, 412, 429) or status >= 500:
        wait = error.response.headers.get("Retry-After", "")
        return Diagnosis(answer, True, float(wait) if wait.isdigit() else 0.0)
    return Diagnosis(answer)
