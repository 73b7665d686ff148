"""space/deploy.py and push_folder for Spaces: the real client against the stand-in of hub_server.py."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from deploy import stage_space
from hub_repos import card_metadata
from hub_server import Client, ClientError, HubServer

import jet_hf


SPACE = ROOT / "space"
SCRIPT = SPACE / "deploy.py"
PACKAGE = Path(jet_hf.__file__).parent
CAPTURED = {"capture_output": True, "text": True}
# The script in a process of its own, which has imported before what takes long, and does not wait between attempts.
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
    """Runs the script to its good end, and gives what it waited for."""

    def run(repo_id: str, *arguments: str) -> list[float]:
        result = client(DEPLOY, script=str(SCRIPT), arguments=[repo_id, *arguments])
        assert result["error"] is None, result["error"]
        assert result["printed"] == f"{hub.url}/spaces/{repo_id}\n"
        return result["waits"]

    return run


@pytest.fixture
def refused(client):
    """Runs the script, which has to fail, and gives its error."""

    def run(*arguments: str, token: str | None = "writer") -> str:
        result = client(DEPLOY, token=token, script=str(SCRIPT), arguments=list(arguments))
        assert result["printed"] == "" and result["error"].startswith("error: ")
        assert len(result["error"].splitlines()) == 1
        return result["error"]

    return run


def travelling(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path.read_bytes()
        for name, path in files.items()
        if name.as_posix() != "deploy.py"
        and name.suffix != ".pyi"
        and not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def expected(with_model: bool = True) -> dict[str, bytes]:
    demo = {
        name: content for name, content in travelling(SPACE).items() if with_model or not name.startswith("model/")
    }
    return demo | {f"jet_hf/{name}": content for name, content in travelling(PACKAGE).items()}


def variables(hub: HubServer, repo_id: str) -> dict[str, str]:
    return hub.repo(repo_id, "space").variables


def writes(hub: HubServer, since: int) -> list[str]:
    """What was changed, in the order of the answers."""
    routes = ("set_variable", "delete_variable", "hardware", "commit")
    return [request["route"] for request in hub.requests[since:] if request["route"] in routes]


def own(client: Client, repo_id: str, *paths: str) -> dict[str, bytes]:
    """A commit of the Space's owner."""
    code = """
from huggingface_hub import CommitOperationAdd
operations = [CommitOperationAdd(path, path.encode()) for path in paths]
HfApi().create_commit(repo_id, operations, commit_message="mine", repo_type="space")
"""
    client(code, repo_id=repo_id, paths=paths)
    return {path: path.encode() for path in paths}


# What is deployed


@pytest.fixture(scope="module")
def deployed(running_hub) -> str:
    command = [sys.executable, SCRIPT, "jet/deployed"]
    process = subprocess.run(command, env=running_hub.environment(), **CAPTURED)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{running_hub.url}/spaces/jet/deployed\n"
    return "jet/deployed"


def test_the_first_deployment(hub, deployed):
    files = hub.files(deployed, "space")
    assert files == expected()
    sources = {"app.py", "requirements.txt", "jet_hf/__init__.py", "jet_hf/model/modeling_jet.py"}
    assert (
        sources | {"model/config.json", "model/model.safetensors", "jet_hf/hub/model_card_template.md"} <= files.keys()
    )
    assert not [name for name in files if "__pycache__" in name or name.endswith("deploy.py")]
    assert card_metadata(files["README.md"].decode())["sdk"] == "gradio"
    assert hub.messages(deployed, "space") == ["Deploy the demo of Jet"]
    space = hub.repo(deployed, "space")
    assert (space.private, space.hardware, space.variables) == (False, "cpu-basic", {})


SELF_CONTAINED = """
import ast, importlib, importlib.util, sys
from pathlib import Path

here = Path.cwd()
sys.path[:] = [str(here), *(place for place in sys.path[1:] if not (Path(place) / "jet_hf").exists())]
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
import jet_hf, jet_hf.analysis.sampling

siblings = {file.stem for file in here.glob("*.py")}
for file in here.glob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
        named = node.names if isinstance(node, ast.Import) else []
        modules = [alias.name for alias in named] + ([node.module] if isinstance(node, ast.ImportFrom) else [])
        for module in modules:
            if module.split(".")[0] == "jet_hf":
                importlib.import_module(module)
            elif module in siblings:
                assert importlib.util.find_spec(module).origin == str(here / f"{module}.py")
files = {name: Path(module.__file__) for name, module in sys.modules.items() if name.split(".")[0] == "jet_hf"}
assert {"jet_hf", "jet_hf.model.modeling_jet", "jet_hf.analysis.sampling"} <= files.keys()
assert all(file.is_relative_to(here / "jet_hf") for file in files.values()), files
model = jet_hf.JetForDensityEstimation.from_pretrained("model").eval()
print(len(jet_hf.analysis.sampling.sample_images(model, jet_hf.JetImageProcessor.from_pretrained("model"), 2)))
"""


def test_it_runs_where_jet_hf_is_not_installed(hub, deployed, tmp_path):
    for name, content in hub.files(deployed, "space").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    environment = hub.environment(token=None) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", SELF_CONTAINED]
    process = subprocess.run(command, env=environment, cwd=tmp_path, **CAPTURED)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "2\n"


def test_what_stays_behind(tmp_path):
    source = tmp_path / "demo"
    names = ["app.py", "texts.py", "model/config.json", "examples/deploy.py", "examples/model/a.png"]
    unwanted = ["deploy.py", ".env", "app.pyi", "examples/.DS_Store", "__pycache__/app.pyc", ".cache/a/b"]
    for name in names + unwanted:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    for with_model in (True, False):
        stage_space(source, tmp_path / f"staged-{with_model}", with_model)
        staged = {name for name in names_in(tmp_path / f"staged-{with_model}") if not name.startswith("jet_hf/")}
        assert staged == set(names) - (set() if with_model else {"model/config.json"})
    (source / "model" / "config.json").unlink()
    stage_space(source, tmp_path / "without", with_model=False)
    with pytest.raises(ValueError, match=r"`source` has to hold model/config.json, got .*demo.*`model_id` names"):
        stage_space(source, tmp_path / "with")
    (source / "app.py").unlink()
    with pytest.raises(ValueError, match=r"`source` has to hold app.py, got .*demo"):
        stage_space(source, tmp_path / "with", with_model=False)


def test_an_update(hub, client, deploy, repo_id):
    deploy(repo_id)
    stale = ["jet_hf/old.py", "jet_hf/model/older_jet.py", "model/pytorch_model.bin", "examples/old.txt"]
    own(client, repo_id, *stale)
    kept = own(client, repo_id, "notes.md", "jet_hf.txt", "data/jet_hf/notes.py", "my/examples/mine.txt")
    uploads = hub.count("upload")
    deploy(repo_id, "--commit_message", "second")
    assert hub.files(repo_id, "space") == expected() | kept
    assert hub.messages(repo_id, "space") == ["Deploy the demo of Jet", "mine", "mine", "second"]
    own(client, repo_id, "app.py", "jet_hf/__init__.py")
    deploy(repo_id)
    assert hub.files(repo_id, "space") == expected() | kept
    assert hub.count("upload") == uploads


# Which model the Space loads


def test_a_model_of_the_hub(hub, client, deploy, repo_id, model_id):
    start = len(hub.requests)
    deploy(repo_id, "--model_id", model_id)
    assert hub.files(repo_id, "space") == expected(with_model=False)
    assert variables(hub, repo_id) == {"MODEL_ID": model_id}
    # An empty Space starts nothing; with the files, the variable is there.
    assert writes(hub, start) == ["set_variable", "commit"]

    start = len(hub.requests)
    own(client, repo_id, "app.py")
    deploy(repo_id, "--model_id", model_id)
    assert writes(hub, start) == ["commit", "commit"]


def test_from_the_shipped_model_to_one_of_the_hub_and_back(hub, client, deploy, repo_id, model_id):
    deploy(repo_id)
    client("HfApi().add_space_variable(repo_id, 'THEME', 'dark')", repo_id=repo_id)
    start = len(hub.requests)
    deploy(repo_id, "--model_id", model_id)
    assert hub.files(repo_id, "space") == expected(with_model=False)
    assert variables(hub, repo_id) == {"THEME": "dark", "MODEL_ID": model_id}
    assert writes(hub, start) == ["set_variable", "commit"]

    start = len(hub.requests)
    deploy(repo_id)
    assert hub.files(repo_id, "space") == expected()
    assert variables(hub, repo_id) == {"THEME": "dark"}
    assert writes(hub, start) == ["commit", "delete_variable"]


def test_from_one_model_of_the_hub_to_another(hub, client, deploy, repo_id, model_id):
    client("HfApi().create_repo('jet/others')")
    deploy(repo_id, "--model_id", "jet/others")
    deploy(repo_id, "--model_id", model_id)
    assert variables(hub, repo_id) == {"MODEL_ID": model_id}


def test_a_commit_that_fails_leaves_a_space_with_a_model(hub, deploy, refused, repo_id, model_id):
    deploy(repo_id)
    files, fault = hub.files(repo_id, "space"), hub.fail("commit", status=400)
    error = refused(repo_id, "--model_id", model_id)
    again = shlex.join(["python", str(SCRIPT), repo_id, "--model_id", model_id])
    assert fault.reached.is_set()
    assert error == (
        f"error: the push to {repo_id} failed: the Hub answered 400 (told to fail). To complete it: {again}"
    )
    assert hub.files(repo_id, "space") == files and variables(hub, repo_id) == {"MODEL_ID": model_id}
    deploy(*shlex.split(again)[2:])
    assert hub.files(repo_id, "space") == expected(with_model=False)

    hub.fail("commit", status=400)
    refused(repo_id)
    assert hub.files(repo_id, "space") == expected(with_model=False)
    assert variables(hub, repo_id) == {"MODEL_ID": model_id}


@pytest.mark.parametrize("status", [400, 503])
def test_a_variable_that_stays_behind_goes_with_the_next_deployment(hub, deploy, refused, repo_id, model_id, status):
    deploy(repo_id, "--model_id", model_id)
    hub.fail("delete_variable", status=status, times=5)
    assert f"the Hub answered {status}" in refused(repo_id)
    hub.recover()
    assert hub.files(repo_id, "space") == expected() and variables(hub, repo_id) == {"MODEL_ID": model_id}
    deploy(repo_id)
    assert variables(hub, repo_id) == {}
    assert len(hub.messages(repo_id, "space")) == 2


def test_a_variable_that_cannot_be_set_leaves_the_space_as_it_was(hub, deploy, refused, repo_id, model_id):
    deploy(repo_id)
    hub.fail("set_variable", status=400)
    assert "told to fail" in refused(repo_id, "--model_id", model_id)
    assert hub.files(repo_id, "space") == expected() and variables(hub, repo_id) == {}
    assert len(hub.messages(repo_id, "space")) == 1


def test_models_that_a_space_cannot_load(hub, refused, repo_id, tmp_path):
    messages = {
        str(tmp_path): f"got {tmp_path}, which is on this machine, where a Space cannot read it",
        "/no/such/folder": "got '/no/such/folder'",
        "": "got ''",
        "jet/missing": "got jet/missing, which was not found",
    }
    for model_id, message in messages.items():
        error = refused(repo_id, "--model_id", model_id)
        assert error.startswith("error: `model_id` has to be the name of a model on the Hub") and message in error
    assert ("spaces", repo_id) not in hub.repos


# Rights


def test_a_private_space(hub, deploy, refused, deployed, repo_id):
    deploy(repo_id, "--private")
    assert hub.repo(repo_id, "space").private and hub.files(repo_id, "space") == expected()
    deploy(repo_id, "--private")
    deploy(repo_id)
    assert hub.repo(repo_id, "space").private
    start = len(hub.requests)
    assert "the repository exists, and is public" in refused(deployed, "--private", "--hardware", "t4-small")
    assert writes(hub, start) == [] and not hub.repo(deployed, "space").private


@pytest.mark.parametrize(
    "token, message",
    [
        (None, r"no token was found.*`hf auth login`.*HF_TOKEN"),
        ("revoked", "does not accept the token"),
        ("reader", r"may not write to jet/"),
        ("stranger", r"may not write to jet/"),
    ],
)
def test_tokens_that_do_not_do(hub, refused, deployed, model_id, token, message):
    start = len(hub.requests)
    for arguments in (
        ["jet/new"],
        [deployed],
        ["jet/new", "--model_id", model_id],
        [deployed, "--model_id", model_id],
    ):
        assert re.search(message, refused(*arguments, token=token))
    assert not [
        request for request in hub.requests[start:] if request["route"] == "commit" and request["status"] == 200
    ]
    assert ("spaces", "jet/new") not in hub.repos and variables(hub, deployed) == {}
    assert hub.files(deployed, "space") == expected()


def test_an_error_is_one_line_and_no_traceback(hub):
    command = [sys.executable, SCRIPT, "jet/a/b"]
    process = subprocess.run(command, env=hub.environment(), **CAPTURED)
    assert process.returncode == 1 and process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: the push to jet/a/b failed: ") and "'jet/a/b'" in line


def test_a_name_without_a_user(hub, client):
    result = client(DEPLOY, script=str(SCRIPT), arguments=["no-user"])
    assert result["printed"] == f"{hub.url}/spaces/jet/no-user\n"
    assert hub.files("jet/no-user", "space") == expected()


# Hardware


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
        assert "the Hub answered 400 (Invalid hardware abacus)" in refused(name, "--hardware", "abacus")
    assert hub.repo(repo_id, "space").hardware == "t4-small" and ("spaces", "jet/new") not in hub.repos


# A bad connection


@pytest.mark.parametrize("route", ["create", "runtime", "hardware", "variables", "set_variable", "commit"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"status": None, "when": "after"}], ids=["503", "lost"])
def test_it_is_repeated(hub, client, deploy, repo_id, model_id, route, fault):
    if route == "hardware":  # of a Space that is there already
        client("HfApi().create_repo(repo_id, repo_type='space', space_sdk='gradio')", repo_id=repo_id)
    happened = hub.fail(route, **fault).reached
    assert deploy(repo_id, "--model_id", model_id, "--hardware", "zero-a10g") == [2]
    assert happened.is_set()
    assert hub.files(repo_id, "space") == expected(with_model=False)
    assert hub.messages(repo_id, "space") == ["Deploy the demo of Jet"]
    assert variables(hub, repo_id) == {"MODEL_ID": model_id} and hub.repo(repo_id, "space").hardware == "zero-a10g"


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": None, "when": "after"}], ids=["503", "lost"])
def test_removing_the_variable_is_repeated(hub, deploy, repo_id, model_id, fault):
    deploy(repo_id, "--model_id", model_id)
    happened = hub.fail("delete_variable", **fault).reached
    assert deploy(repo_id) == [2]
    assert happened.is_set()
    assert variables(hub, repo_id) == {} and len(hub.messages(repo_id, "space")) == 2


def test_giving_up(hub, refused, repo_id):
    hub.fail("commit", times=1000)
    assert f"the push to {repo_id} failed (5 attempts): the Hub answered 503 (told to fail)" in refused(repo_id)
    assert hub.files(repo_id, "space") == {}


def test_the_command_that_pushes_a_folder_to_a_space_later(hub, client, repo_id, tmp_path):
    folder = tmp_path / "demo"
    (folder / "checkpoint-1").mkdir(parents=True)
    for name in ("app.py", "checkpoint-1/weights", ".env"):
        (folder / name).write_text(name)
    options = {"repo_type": "space", "space_sdk": "gradio", "delete_patterns": ["old/*"]}
    client.push(folder, repo_id, **options)
    kept = own(client, repo_id, "old/a.py", "older.py")
    (folder / "app.py").write_text("print(1)\n")
    hub.fail("commit", times=1000)
    with pytest.raises(ClientError, match=rf"PushError: {folder} was not pushed to {repo_id}: .*503") as error:
        client.push(folder, repo_id, max_attempts=1, **options)
    hub.recover()
    command = shlex.split(str(error.value).split("push it later: ")[1])
    assert command[:3] == ["hf", "upload", repo_id]
    command[0] = str(Path(sys.executable).with_name("hf"))
    process = subprocess.run(command, env=hub.environment(home=tmp_path / "home"), cwd=tmp_path, **CAPTURED)
    assert process.returncode == 0, process.stderr
    assert hub.files(repo_id, "space") == {"app.py": b"print(1)\n", "older.py": kept["older.py"]}
    assert ("models", repo_id) not in hub.repos
