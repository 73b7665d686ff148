"""space/deploy.py: the real client and the server of hub_server.py."""

import contextlib
import re
import shlex
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest
from conftest import ROOT
from deploy import stage_space
from hub_repos import card_metadata
from hub_server import HubServer
from packaging.requirements import Requirement

import jet_hf


SPACE = ROOT / "space"
SCRIPT = SPACE / "deploy.py"
PACKAGE = Path(jet_hf.__file__).parent
# Runs the script in a process that has already imported slow modules, and does not wait between attempts.
DEPLOY = """
import contextlib, io, runpy, time

waits, printed, sys.argv = [], io.StringIO(), [script, *arguments]
time.sleep = waits.append
try:
    with contextlib.redirect_stdout(printed):
        runpy.run_path(script, run_name="__main__")
    error = None
except SystemExit as stop:
    error = stop.code
result = {"printed": printed.getvalue(), "error": error, "waits": waits}
"""


@pytest.fixture(scope="module")
def model_id(client) -> str:
    client("HfApi().create_repo('jet/pictures')")
    return "jet/pictures"


@pytest.fixture
def deploy(hub, client):
    """Runs the script, which must succeed, and returns its waits."""

    def run(repo_id: str, *arguments: str) -> list[float]:
        result = client(DEPLOY, script=str(SCRIPT), arguments=[repo_id, *arguments])
        assert result["error"] is None, result["error"]
        assert result["printed"] == f"{hub.url}/spaces/{repo_id if '/' in repo_id else f'jet/{repo_id}'}\n"
        return result["waits"]

    return run


@pytest.fixture
def refused(client):
    """Runs the script, which must fail, and returns its error."""

    def run(*arguments: str, token: str | None = "writer") -> str:
        result = client(DEPLOY, token=token, script=str(SCRIPT), arguments=list(arguments))
        assert result["printed"] == "" and result["error"].startswith("error: ")
        assert len(result["error"].splitlines()) == 1
        return result["error"]

    return run


def deployed_files(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path.read_bytes()
        for name, path in files.items()
        if name.as_posix() not in ("deploy.py", "Dockerfile")
        and name.suffix != ".pyi"
        and not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }


def expected(with_model: bool = True) -> dict[str, bytes]:
    demo = deployed_files(SPACE).items()
    files = {name: content for name, content in demo if with_model or not name.startswith("model/")}
    return files | {f"jet_hf/{name}": content for name, content in deployed_files(PACKAGE).items()}


def variables(hub: HubServer, repo_id: str) -> dict[str, str]:
    return hub.repo(repo_id, "space").variables


def writes(hub: HubServer, start: int) -> list[str]:
    """Return the writing requests since number `start`, except for those of the files' content."""
    routes = ("commit", "set_variable", "delete_variable", "hardware")
    return [request["route"] for request in hub.requests[start:] if request["route"] in routes]


def commit_own_files(client, repo_id: str, *paths: str) -> dict[str, bytes]:
    """Commit files as the owner of a Space does."""
    code = """
from huggingface_hub import CommitOperationAdd
operations = [CommitOperationAdd(path, path.encode()) for path in paths]
HfApi().create_commit(repo_id, operations, commit_message="mine", repo_type="space")
"""
    client(code, repo_id=repo_id, paths=paths)
    return {path: path.encode() for path in paths}


# Files


@pytest.fixture(scope="module")
def deployed(client) -> str:
    assert client(DEPLOY, script=str(SCRIPT), arguments=["jet/deployed"])["error"] is None
    return "jet/deployed"


def test_the_first_deployment(hub, deployed):
    files = hub.files(deployed, "space")
    assert files == expected()
    sources = {"app.py", "requirements.txt", "jet_hf/__init__.py", "jet_hf/model/modeling_jet.py"}
    data = {"model/config.json", "model/model.safetensors", "jet_hf/hub/model_card_template.md"}
    assert sources | data <= files.keys()
    assert not [name for name in files if "__pycache__" in name or name.endswith("deploy.py")]
    assert card_metadata(files["README.md"].decode())["sdk"] == "gradio"
    assert hub.messages(deployed, "space") == ["Deploy the Jet demo"]
    space = hub.repo(deployed, "space")
    assert (space.private, space.hardware, space.variables) == (False, "cpu-basic", {})


START = """
import gc, os
gc.disable()  # imports take less time, and so does the end
import app
page = app.build_app(*app.load_models(None))
app.describe(page)
print(*sorted(function.api_name for function in page.fns.values() if function.api_visibility == "public"), flush=True)
os._exit(0)
"""


def install_requirements(folder: Path, requirements: list[str]) -> None:
    """Create a folder with links to the installed packages that a list of requirements brings, and to no other."""
    names, waiting = set(), [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.name in names or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        names.add(requirement.name)
        package = distribution(requirement.name)
        waiting += map(Requirement, package.requires or ())
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            with contextlib.suppress(FileExistsError):
                (folder / top).symlink_to(package.locate_file(top))


def test_a_deployed_space_starts_with_no_more_than_its_requirements(hub, deployed, tmp_path):
    files = hub.files(deployed, "space")
    for name, content in files.items():
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_bytes(content)
    pins = [line for line in files["requirements.txt"].decode().splitlines() if not line.startswith("#")]
    version = card_metadata(files["README.md"].decode())["sdk_version"]
    (tmp_path / "site").mkdir()
    install_requirements(tmp_path / "site", [*pins, f"gradio=={version}"])
    environment = hub.environment(token=None) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "GRADIO_TEMP_DIR": str(tmp_path / "files")}
    # Without the module `site`, Python finds no other packages.
    command = [sys.executable, "-S", "-c", START]
    process = subprocess.run(command, env=environment, cwd=tmp_path / "space", capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    public = "anomaly compress decompress denoise interpolate reconstruct sample score"
    assert process.stdout.splitlines()[-1] == public


# Docker


def copied_by_docker() -> list[tuple[list[str], str]]:
    """Return the sources and the target of each instruction that copies files of the checkout into the image."""
    lines = (SPACE / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:] for line in lines if line.startswith("COPY ") and "--from" not in line]
    copies = [[word for word in words if not word.startswith("--")] for words in copies]
    return [(sources, target) for *sources, target in copies]


def is_sent_to_docker(name: str) -> bool:
    """Return whether `.dockerignore` leaves a file in: the last line that matches it or a folder of it decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        for path in (PurePosixPath(name), *PurePosixPath(name).parents):
            if path.name and fnmatch(path.name if "**/" in line else str(path), pattern):
                sent = line.startswith("!")
    return sent


def docker_files(source: str) -> dict[str, Path]:
    """Return the files that an instruction copies from `source`, by their names in the checkout."""
    paths = [ROOT / source, *(ROOT / source).rglob("*")]
    files = {path.relative_to(ROOT).as_posix(): path for path in paths if path.is_file()}
    return {name: path for name, path in files.items() if is_sent_to_docker(name)}


def test_the_image_contains_the_files_of_a_space(tmp_path):
    *_, (sources, target) = copied_by_docker()
    assert (sources, target) == (["space"], "./")
    in_image = {name.removeprefix("space/"): path.read_bytes() for name, path in docker_files("space").items()}
    assert in_image == {name: content for name, content in expected().items() if not name.startswith("jet_hf/")}


def test_the_package_of_the_image_builds_from_the_copied_files(tmp_path):
    context = tmp_path / "context"
    for sources, _ in copied_by_docker()[:-1]:
        for name, path in (item for source in sources for item in docker_files(source).items()):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_bytes(path.read_bytes())
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    process = subprocess.run([sys.executable, "-c", code], cwd=context, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    with zipfile.ZipFile(tmp_path / process.stdout.splitlines()[-1]) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("jet_hf/")}
        metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    assert packed == {name for name in expected() if name.startswith("jet_hf/")}
    assert "Provides-Extra: space" in metadata


def test_staged_files(tmp_path):
    source = tmp_path / "demo"
    names = ["app.py", "texts.py", "model/config.json", "examples/deploy.py", "examples/model/a.png"]
    unwanted = [
        "deploy.py",
        "Dockerfile",
        ".env",
        "app.pyi",
        "examples/.DS_Store",
        "__pycache__/app.pyc",
        ".cache/a/b",
    ]
    for name in names + unwanted:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    for with_model in (True, False):
        target = tmp_path / f"staged-{with_model}"
        stage_space(source, target, with_model)
        staged = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
        kept = {name for name in staged if not name.startswith("jet_hf/")}
        assert kept == set(names) - (set() if with_model else {"model/config.json"})
    (source / "model" / "config.json").unlink()
    stage_space(source, tmp_path / "without", with_model=False)
    with pytest.raises(ValueError, match=r"`source` must contain model/config.json, got .*demo.*set `model_id`"):
        stage_space(source, tmp_path / "with")
    (source / "app.py").unlink()
    with pytest.raises(ValueError, match=r"`source` must contain app.py, got .*demo"):
        stage_space(source, tmp_path / "with", with_model=False)


def test_an_update_replaces_its_own_files_and_keeps_those_of_the_owner(hub, client, deploy, repo_id):
    deploy(repo_id)
    stale = ["jet_hf/old.py", "jet_hf/model/older_jet.py", "model/pytorch_model.bin", "examples/old.txt", "app.py"]
    commit_own_files(client, repo_id, *stale)
    kept = commit_own_files(client, repo_id, "notes.md", "jet_hf.txt", "data/jet_hf/notes.py", "my/examples/mine.txt")
    uploads = hub.count("upload")
    deploy(repo_id, "--commit_message", "second")
    assert hub.files(repo_id, "space") == expected() | kept
    assert hub.messages(repo_id, "space") == ["Deploy the Jet demo", "mine", "mine", "second"]
    assert hub.count("upload") == uploads


# The model of the Space


def test_the_variable_is_set_before_the_commit_and_deleted_after_it(hub, client, deploy, repo_id, model_id):
    client("HfApi().create_repo('jet/others')")
    start = len(hub.requests)
    deploy(repo_id, "--model_id", "jet/others")
    assert hub.files(repo_id, "space") == expected(with_model=False)
    assert variables(hub, repo_id) == {"MODEL_ID": "jet/others"}
    # An empty Space does not start. Once it has files, the variable is set.
    assert writes(hub, start) == ["set_variable", "commit"]

    client("HfApi().add_space_variable(repo_id, 'THEME', 'dark')", repo_id=repo_id)
    start = len(hub.requests)
    deploy(repo_id)
    assert hub.files(repo_id, "space") == expected()
    assert variables(hub, repo_id) == {"THEME": "dark"}
    assert writes(hub, start) == ["commit", "delete_variable"]

    start = len(hub.requests)
    deploy(repo_id, "--model_id", model_id)
    assert hub.files(repo_id, "space") == expected(with_model=False)
    assert variables(hub, repo_id) == {"THEME": "dark", "MODEL_ID": model_id}
    commit_own_files(client, repo_id, "app.py")
    deploy(repo_id, "--model_id", model_id)
    assert writes(hub, start) == ["set_variable", "commit", "commit", "commit"]


def test_a_failed_step_leaves_a_space_with_a_model(hub, deploy, refused, repo_id, model_id):
    deploy(repo_id)
    files, commits = hub.files(repo_id, "space"), hub.messages(repo_id, "space")
    hub.fail("set_variable", status=400)
    assert "told to fail" in refused(repo_id, "--model_id", model_id)
    assert hub.files(repo_id, "space") == files and variables(hub, repo_id) == {}
    fault = hub.fail("commit", status=400)
    error = refused(repo_id, "--model_id", model_id)
    again = shlex.join(["python", str(SCRIPT), repo_id, "--model_id", model_id])
    assert fault.reached.is_set()
    reason = f"error: the push to {repo_id} failed: the Hub responded with 400 (told to fail)."
    assert error == f"{reason} To complete it: {again}"
    assert hub.files(repo_id, "space") == files and variables(hub, repo_id) == {"MODEL_ID": model_id}
    assert hub.messages(repo_id, "space") == commits
    deploy(*shlex.split(again)[2:])
    assert hub.files(repo_id, "space") == expected(with_model=False)

    hub.fail("commit", status=400)
    refused(repo_id)
    assert hub.files(repo_id, "space") == expected(with_model=False)
    assert variables(hub, repo_id) == {"MODEL_ID": model_id}
    commits = len(hub.messages(repo_id, "space"))
    for status in (400, 503):
        hub.fail("delete_variable", status=status, times=5)
        assert f"the Hub responded with {status}" in refused(repo_id)
        hub.recover()
        assert hub.files(repo_id, "space") == expected() and variables(hub, repo_id) == {"MODEL_ID": model_id}
    deploy(repo_id)
    assert variables(hub, repo_id) == {}
    assert len(hub.messages(repo_id, "space")) == commits + 1


def test_models_that_a_space_cannot_load(hub, refused, repo_id, tmp_path):
    messages = {
        str(tmp_path): f"got {tmp_path}, which is on this machine, where a Space cannot read it",
        "/no/such/folder": "got '/no/such/folder'",
        "": "got ''",
        "jet/missing": "got jet/missing, which does not exist",
    }
    for model_id, message in messages.items():
        error = refused(repo_id, "--model_id", model_id)
        assert error.startswith("error: `model_id` must be the name of a model on the Hub") and message in error
    assert ("spaces", repo_id) not in hub.repos


# Permissions and hardware


def test_private_spaces(hub, deploy, refused, deployed, repo_id):
    deploy(repo_id, "--private")
    assert hub.repo(repo_id, "space").private and hub.files(repo_id, "space") == expected()
    deploy(repo_id, "--private")
    deploy(repo_id)
    assert hub.repo(repo_id, "space").private
    start = len(hub.requests)
    assert "the repository exists and is public" in refused(deployed, "--private", "--hardware", "t4-small")
    assert writes(hub, start) == [] and not hub.repo(deployed, "space").private


def test_tokens_that_are_missing_or_lack_permissions(hub, refused, deployed, model_id):
    messages = {
        None: r"no token was found.*`hf auth login`.*HF_TOKEN",
        "revoked": "does not accept the token",
        "reader": "may not write to jet/",
        "stranger": "may not write to jet/",
    }
    commits = hub.count("commit")
    for token, message in messages.items():
        for arguments in (["jet/new"], [deployed, "--model_id", model_id]):
            assert re.search(message, refused(*arguments, token=token))
    assert hub.count("commit") == commits
    assert ("spaces", "jet/new") not in hub.repos and variables(hub, deployed) == {}


def test_names(hub, deploy, refused):
    error = refused("jet/a/b")
    assert error.startswith("error: the push to jet/a/b failed: ") and "'jet/a/b'" in error
    deploy("no-user")
    assert hub.files("jet/no-user", "space") == expected()


def test_hardware(hub, deploy, refused, repo_id):
    start = len(hub.requests)
    deploy(repo_id, "--hardware", "zero-a10g")
    deploy(repo_id)
    assert hub.repo(repo_id, "space").hardware == "zero-a10g"
    assert writes(hub, start) == ["commit"]
    deploy(repo_id, "--hardware", "t4-small")
    deploy(repo_id, "--hardware", "t4-small")
    assert hub.repo(repo_id, "space").hardware == "t4-small"
    assert writes(hub, start) == ["commit", "hardware"]
    for name in (repo_id, "jet/new"):
        assert "the Hub responded with 400 (Invalid hardware abacus)" in refused(name, "--hardware", "abacus")
    assert hub.repo(repo_id, "space").hardware == "t4-small" and ("spaces", "jet/new") not in hub.repos


# A bad connection


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": None, "when": "after"}], ids=["503", "lost"])
def test_each_step_is_retried(hub, client, deploy, refused, repo_id, model_id, fault):
    """Every request of a new Space fails once, and then every further request of an existing one."""
    other = f"{repo_id}-existing"
    client("HfApi().create_repo(repo_id, repo_type='space', space_sdk='gradio')", repo_id=other)
    for name, routes in (
        (repo_id, ["create", "variables", "set_variable", "commit"]),
        (other, ["runtime", "hardware"]),
    ):
        faults = [hub.fail(route, **fault) for route in routes]
        waits = deploy(name, "--model_id", model_id, "--hardware", "zero-a10g")
        assert waits == [2, 4, 8, 16][: len(routes)]
        assert all(fault.reached.is_set() for fault in faults)
        assert hub.files(name, "space") == expected(with_model=False)
        assert hub.messages(name, "space") == ["Deploy the Jet demo"]
        assert variables(hub, name) == {"MODEL_ID": model_id} and hub.repo(name, "space").hardware == "zero-a10g"
    reached = hub.fail("delete_variable", **fault).reached
    assert deploy(other) == [2]
    assert reached.is_set() and variables(hub, other) == {} and len(hub.messages(other, "space")) == 2
    hub.fail("commit", times=1000)
    new = f"{repo_id}-new"
    assert f"the push to {new} failed (5 attempts): the Hub responded with 503 (told to fail)" in refused(new)
    assert hub.files(new, "space") == {}
