"""Pushes to the Hub: the real huggingface_hub client, in its own processes, and the server of hub_server.py."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import random_bytes, random_images, tiny_model
from hub_repos import card_metadata
from hub_server import ClientError
from PIL import Image

import jet_hf.model
from jet_hf import JetImageProcessor
from jet_hf.hub import CardFacts, EvaluationRecord, add_evaluation, check_login, write_model_card


DATA = "ImageNet 32 x 32, the PNG release of van den Oord et al."
LARGE = {"model.safetensors", "samples.png", "samples/samples-00001000.png"}
NOT_PUSHED = {
    *("checkpoint-500/model.safetensors", "best/model.safetensors", "trackers/wandb/run.log"),
    *(".push.draft", "samples/.hidden"),
}


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory) -> Path:
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    model = tiny_model()
    JetImageProcessor(size=model.config.image_size).save_pretrained(folder)
    model.save_pretrained(folder)
    for name in LARGE - {"model.safetensors"}:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.effect_noise((64, 64), len(name)).save(folder / name)
    (folder / "metrics.jsonl").write_text('{"step": 1000, "loss": 3.9}\n')
    for name in NOT_PUSHED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not for the Hub")
    score = EvaluationRecord(DATA, "imagefolder", "validation", 49_999, 3.8571, 0.0123)
    note, training = "Not comparable with the release of Chrabaszcz et al.", {"learning rate": 3e-4}
    facts = CardFacts(DATA, note, training, "train.py --config recipes/imagenet32.yaml", [score], None, None, True)
    write_model_card(folder, facts, "jet/pushed")
    return folder


@pytest.fixture
def folder(output_dir, tmp_path) -> Path:
    """Copy of the folder that a test may change."""
    return shutil.copytree(output_dir, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def to_be_pushed(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name not in NOT_PUSHED}


# A push and its result


@pytest.fixture(scope="module")
def pushed(running_hub, client, output_dir) -> str:
    before = contents(output_dir)
    url = client.push(output_dir, "jet/pushed", commit_message="Jet: the finished model")
    assert url == f"{running_hub.url}/jet/pushed"
    assert contents(output_dir) == before
    return "jet/pushed"


def test_a_push_contains_model_code_and_card_in_one_commit(hub, output_dir, pushed):
    assert hub.files(pushed) == to_be_pushed(output_dir)
    assert hub.messages(pushed) == ["Jet: the finished model"]
    assert not hub.repo(pushed).private
    assert {name for name, file in hub.repo(pushed).commits[-1].files.items() if file.lfs} == LARGE
    code = {file.name for file in Path(jet_hf.model.__path__[0]).glob("*_jet.py")}
    assert code | {"config.json", "preprocessor_config.json", "metrics.jsonl", "README.md"} <= set(hub.files(pushed))
    for name, auto_class in (("config.json", "AutoModel"), ("preprocessor_config.json", "AutoImageProcessor")):
        module = json.loads(hub.files(pushed)[name])["auto_map"][auto_class].split(".")[0]
        assert f"{module}.py" in code


def test_the_client_reads_the_card_and_its_code_for_jet_hf_runs(hub, client, pushed):
    (code,) = re.findall(r"```python\n(from jet_hf.*?)```", hub.files(pushed)["README.md"].decode(), re.DOTALL)
    code += """
info, card = HfApi().model_info(repo_id), ModelCard.load(repo_id)
assert card.data.to_dict() == info.card_data.to_dict()
result = {
    "library": info.library_name, "task": info.pipeline_tag, "tags": info.tags, "license": card.data.license,
    "index": info.model_index, "scores": [vars(score) for score in info.card_data.eval_results], "text": card.text,
    "loaded": type(model).__name__,
}
"""
    read = client(code, token=None, repo_id=pushed)
    expected = ["transformers", "unconditional-image-generation", "apache-2.0", "JetForDensityEstimation"]
    assert [read["library"], read["task"], read["license"], read["loaded"]] == expected
    assert read["tags"] == ["jet", "normalizing-flow", "density-estimation", "custom_code"]
    (score,) = read["scores"]
    assert [score[f"dataset_{name}"] for name in ("name", "type", "split")] == [DATA, "imagefolder", "validation"]
    expected = ["bits_per_dim", "bits per dimension", 3.8571]
    assert [score[f"metric_{name}"] for name in ("type", "name", "value")] == expected
    assert score["metric_args"] == {"standard_error": 0.0123, "num_images": 49_999, "num_noise_samples": 1}
    assert [model["name"] for model in read["index"]] == [pushed]
    assert f"| {DATA} | validation | 49,999 | 3.8571 ± 0.0123 | 1 |" in read["text"]
    for part in ("![Samples of the model](samples.png)", "Chrabaszcz", "| learning rate | 0.0003 |", "recipes/"):
        assert part in read["text"]


REMOTE = """
import gc, os, sys
gc.disable()  # imports take less time, and so does the end
import torch

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "jet_hf":
            raise ModuleNotFoundError(f"{name} must not be imported")

sys.meta_path.insert(0, Blocker())
inputs = torch.load(sys.argv[1])
exec(open(sys.argv[2]).read())
assert type(model).__name__ == "JetForDensityEstimation" and len(images) == 4
with torch.no_grad():
    again = model(inputs["pixel_values"], noise=inputs["noise"]).bits_per_dim
torch.save({"bits_per_dim": again, "pixels": pixel_values, "scores": scores}, sys.argv[3])
assert not any(name.split(".")[0] == "jet_hf" for name in sys.modules)
os._exit(0)
"""


def test_the_code_of_the_card_runs_without_jet_hf(hub, pushed, tmp_path):
    model = tiny_model()
    pixel_values = random_images(4, model.config)
    noise = torch.rand(pixel_values.shape, generator=torch.Generator().manual_seed(1))
    image = Image.fromarray(random_bytes(1, model.config)[0].permute(1, 2, 0).numpy())
    torch.save({"pixel_values": pixel_values, "noise": noise}, tmp_path / "inputs.pt")
    image.save(tmp_path / "image.png")
    (code,) = re.findall(r"```python\n(import torch.*?)```", hub.files(pushed)["README.md"].decode(), re.DOTALL)
    (tmp_path / "card.py").write_text(code)

    environment = hub.environment(token=None, home=tmp_path / "home")
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    environment.pop("PYTHONPATH", None)
    files = [tmp_path / name for name in ("inputs.pt", "card.py", "results.pt")]
    process = subprocess.run(
        [sys.executable, "-c", REMOTE, *files], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    results = torch.load(tmp_path / "results.pt")
    pixels = JetImageProcessor(size=model.config.image_size)(image, return_tensors="pt").pixel_values
    with torch.no_grad():
        assert torch.equal(results["bits_per_dim"], model(pixel_values, noise=noise).bits_per_dim)
        seeded = model(pixels, generator=torch.Generator().manual_seed(0)).bits_per_dim
    assert torch.equal(results["pixels"], pixels) and torch.equal(results["scores"], seeded)


def test_a_new_card_uploads_no_weights_and_other_files_are_kept(hub, client, folder, repo_id):
    client.push(folder, repo_id)
    uploads = hub.count("upload")
    add_evaluation(folder, EvaluationRecord(DATA, "imagefolder", "validation", 49_999, 3.7, 0.01, 64))
    client.push(folder, repo_id, commit_message="better scores")
    assert hub.files(repo_id) == to_be_pushed(folder)
    assert hub.messages(repo_id)[1:] == ["better scores"]
    client.push(folder, repo_id, commit_message="nothing new")
    assert len(hub.messages(repo_id)) == 2
    assert hub.count("upload") == uploads
    (folder / "metrics.jsonl").unlink()
    client.push(folder, repo_id)
    assert "metrics.jsonl" in hub.files(repo_id)


# Permissions


def test_tokens_that_are_missing_or_lack_permissions(hub, client, output_dir, pushed):
    messages = {
        None: r"no token was found.*`hf auth login`.*HF_TOKEN.*later: hf",
        "revoked": "does not accept the token",
        "reader": "may not write",
        "stranger": "may not write to jet/",
    }
    for token, message in messages.items():
        requests = len(hub.requests)
        for repo_id in (pushed, "jet/new"):
            with pytest.raises(ClientError, match=f"PushError: .*{message}"):
                client.push(output_dir, repo_id, token=token)
        assert token is not None or len(hub.requests) == requests
    assert len(hub.messages(pushed)) == 1 and ("models", "jet/new") not in hub.repos


def test_a_token_as_an_argument(hub, client, output_dir, repo_id):
    client("push_folder(folder, repo_id, token='writer')", token=None, folder=output_dir, repo_id=repo_id)
    assert hub.files(repo_id) == to_be_pushed(output_dir)


def test_check_login_returns_a_problem_and_never_raises(hub, client, monkeypatch):
    problems = {None: "no token was found", "revoked": "does not accept the token", "reader": "read-only"}
    for token, problem in problems.items():
        assert re.search(f"{problem}.*hf auth login.*write access", client("result = check_login()", token=token))
    assert client("result = check_login()") is None
    hub.fail("whoami")
    assert "503" in client("result = check_login()")
    hub.fail("whoami", status=None)
    assert "cannot be reached" in client("result = check_login()")
    monkeypatch.setenv("HF_TOKEN", "writer")
    assert check_login() == "offline mode is on. Unset HF_HUB_OFFLINE."


def test_private_repositories(hub, client, output_dir, repo_id):
    client.push(output_dir, repo_id, private=True)
    assert hub.repo(repo_id).private
    load = "result = JetForDensityEstimation.from_pretrained(repo_id).num_parameters()"
    for token in (None, "stranger"):
        with pytest.raises(ClientError, match="OSError"):
            client(load, token=token, repo_id=repo_id)
        with pytest.raises(ClientError, match="RepositoryNotFoundError"):
            client("HfApi().model_info(repo_id)", token=token, repo_id=repo_id)
    assert client(load, token="reader", repo_id=repo_id) == tiny_model().num_parameters()

    public = f"{repo_id}-public"
    client("HfApi().create_repo(repo_id)", repo_id=public)
    with pytest.raises(ClientError, match=r"PushError: .*is public"):
        client.push(output_dir, public, private=True)
    assert hub.files(public) == {}


def test_a_name_without_a_namespace(hub, client, output_dir):
    assert client("result = full_repo_id('no-user')") == "jet/no-user"
    assert client("result = full_repo_id('someone/model')") == "someone/model"
    assert client("result = full_repo_id('no-user')", token=None) == "no-user"
    assert client.push(output_dir, "no-user") == f"{hub.url}/jet/no-user"
    assert hub.files("jet/no-user") == to_be_pushed(output_dir)


# A bad connection

HTML = {"body": "<html>Service unavailable</html>", "headers": {"Content-Type": "text/html"}}


@pytest.mark.parametrize(
    "faults",
    [
        [("commit", {}), ("commit", {"status": 429}), ("commit", {"status": 412}), ("commit", {"status": None})],
        [("create", {}), ("create", {"status": None}), ("validate", HTML), ("commit", {"when": "after"})],
        [("upload", {"status": 409}), ("commit", {"when": "after", "status": None})],
    ],
    ids=["commit", "several", "lost"],
)
def test_a_push_is_retried(hub, client, output_dir, repo_id, faults):
    uploads = hub.count("upload")
    reached = [hub.fail(route, **options).reached for route, options in faults]
    client.push(output_dir, repo_id)
    assert all(event.is_set() for event in reached)
    assert hub.files(repo_id) == to_be_pushed(output_dir)
    assert len(hub.messages(repo_id)) == 1
    assert hub.count("upload") == uploads + len(LARGE)


def test_waits_double_and_follow_the_server(hub, client, output_dir, repo_id):
    hub.fail("commit", times=2)
    for seconds in ("30", "3600"):
        hub.fail("commit", status=429, headers={"Retry-After": seconds})
    code = "from jet_hf.hub import push; result = []; push.time.sleep = result.append; push_folder(folder, repo_id)"
    assert client(code, folder=output_dir, repo_id=repo_id) == [2, 4, 30, 60]


def test_only_transient_errors_are_retried(hub, client, folder, output_dir, repo_id):
    for status, attempts in ((400, 1), (404, 1), (413, 1), (500, 2)):
        before = hub.count("commit", status)
        hub.fail("commit", status=status, times=2)
        message = "was not found" if status == 404 else rf"the Hub responded with {status} \(told to fail\)"
        with pytest.raises(ClientError, match=f"PushError: .*{message}"):
            client.push(output_dir, repo_id, max_attempts=2)
        assert hub.count("commit", status) == before + attempts
        hub.recover()
    (folder / "README.md").write_text("---\nbase_model: /not/a/name\n---\n")
    with pytest.raises(ClientError, match=r"PushError: .*Invalid metadata in README.md.*base_model"):
        client.push(folder, repo_id)
    assert hub.files(repo_id) == {}


def test_the_command_of_the_message_completes_a_failed_push(hub, client, folder, repo_id, tmp_path):
    before, commits = contents(folder), hub.count("commit", status=503)
    hub.fail("commit", times=1000)
    message = r"PushError: .*\(3 attempts\): the Hub responded with 503 \(told to fail\)"
    with pytest.raises(ClientError, match=message) as error:
        client.push(folder, repo_id, max_attempts=3, private=True)
    assert hub.count("commit", status=503) == commits + 3
    assert contents(folder) == before and hub.messages(repo_id) == []

    hub.recover()
    command = shlex.split(str(error.value).split("later: ")[1])
    assert command[:3] == ["hf", "upload", repo_id] and "--private" in command
    command[0] = str(Path(sys.executable).with_name("hf"))
    environment = hub.environment(home=tmp_path / "home")
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert hub.files(repo_id) == to_be_pushed(folder)


def test_no_server_no_folder_and_no_attempts(client, output_dir, repo_id):
    code = "constants.ENDPOINT = 'http://127.0.0.1:9'; push_folder(folder, repo_id, max_attempts=2, wait_seconds=0)"
    with pytest.raises(ClientError, match=r"PushError: .*\(2 attempts\): the Hub cannot be reached \(.*HF_ENDPOINT"):
        client(code, folder=output_dir, repo_id=repo_id)
    with pytest.raises(ClientError, match=r"PushError: `folder` must be an existing folder, got .*nothing"):
        client(code, folder=output_dir / "nothing", repo_id=repo_id)
    with pytest.raises(ClientError, match="ValueError: `max_attempts` must be at least 1, got 0"):
        client.push(output_dir, repo_id, max_attempts=0)


@pytest.mark.parametrize("fault", [{"status": 503}, {"when": "half"}], ids=["503", "cut"])
def test_the_client_itself_retries_an_upload(hub, client, output_dir, repo_id, fault):
    fault = hub.fail("upload", **fault)
    fault.release.set()
    client.push(output_dir, repo_id, max_attempts=1)
    assert fault.reached.is_set()
    assert hub.files(repo_id) == to_be_pushed(output_dir)


def test_the_next_push_completes_an_interrupted_upload(hub, client, output_dir, repo_id):
    size, uploads = (output_dir / "model.safetensors").stat().st_size, hub.count("upload")
    fault = hub.fail("upload", when="half", min_size=size)
    process = client.start("push_folder(folder, repo_id)", folder=output_dir, repo_id=repo_id)
    assert fault.reached.wait(60)
    for _ in range(6000):
        if hub.count("upload") == uploads + len(LARGE) - 1:
            break
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    fault.release.set()
    assert client.wait() is None and hub.messages(repo_id) == []

    client.push(output_dir, repo_id)
    assert hub.files(repo_id) == to_be_pushed(output_dir)
    sent = [request["size"] for request in hub.requests if request["route"] == "upload" and request["status"] == 200]
    assert len(sent) == uploads + len(LARGE) and sent[-1] == size


def test_push_to_hub_of_transformers(hub, client, output_dir, repo_id):
    for name in ("JetForDensityEstimation", "JetImageProcessor"):
        client(f"{name}.from_pretrained(folder).push_to_hub(repo_id)", folder=output_dir, repo_id=repo_id)
    ours, theirs = to_be_pushed(output_dir), hub.files(repo_id)
    assert ours.keys() - theirs.keys() == {"metrics.jsonl", *LARGE} - {"model.safetensors"}
    assert [name for name in theirs if theirs[name] != ours.get(name)] == ["README.md"]
    assert card_metadata(theirs["README.md"].decode())["library_name"] == "transformers"
    load = """
pixels = torch.arange(192).reshape(1, 3, 8, 8) / 127.5 - 1
bits = JetForDensityEstimation.from_pretrained(repo_id)(pixels, noise=torch.full_like(pixels, 0.5)).bits_per_dim
names = [type(auto.from_pretrained(repo_id)).__name__ for auto in (AutoModel, AutoImageProcessor)]
result = [*names, bits.item()]
"""
    pixels = torch.arange(192).reshape(1, 3, 8, 8) / 127.5 - 1
    bits = tiny_model()(pixels, noise=torch.full_like(pixels, 0.5)).bits_per_dim
    assert client(load, token=None, repo_id=repo_id) == ["JetForDensityEstimation", "JetImageProcessor", bits.item()]
    client.push(output_dir, repo_id)
    assert hub.files(repo_id) == ours
