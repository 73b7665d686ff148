"""The stand-in for the Hub, where test_hub.py does not reach."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from hub_server import HubServer


def run(code: str, hub: HubServer, *arguments) -> str:
    command = [sys.executable, "-c", f"import sys; from huggingface_hub import HfApi; {code}", *map(str, arguments)]
    process = subprocess.run(command, env=hub.environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_large_files_in_parts(tmp_path):
    content = os.urandom(25_000)
    (tmp_path / "model.safetensors").write_bytes(content)
    code = """
api = HfApi()
api.create_repo("parts", exist_ok=True)
api.upload_folder(repo_id="jet/parts", folder_path=sys.argv[1])
path = api.hf_hub_download("jet/parts", "model.safetensors")
print(open(path, "rb").read() == open(sys.argv[1] + "/model.safetensors", "rb").read())
"""
    with HubServer(chunk_size=10_000) as hub:
        assert run(code, hub, tmp_path).split() == ["True"]
        assert hub.files("jet/parts") == {"model.safetensors": content}
        assert (hub.count("upload"), hub.count("complete"), hub.count("verify")) == (3, 1, 1)


def test_spaces(tmp_path):
    (tmp_path / "app.py").write_text("print(1)\n")
    code = """
api = HfApi()
api.create_repo("jet/demo", repo_type="space", space_sdk="gradio", private=True)
api.add_space_variable("jet/demo", "MODEL_ID", "jet/tiny")
api.upload_folder(repo_id="jet/demo", repo_type="space", folder_path=sys.argv[1])
print(*api.list_repo_files("jet/demo", repo_type="space"))
"""
    with HubServer() as hub:
        assert run(code, hub, tmp_path).split() == [".gitattributes", "app.py"]
        assert hub.files("jet/demo", "space") == {"app.py": b"print(1)\n"}
        assert hub.repo("jet/demo", "space").private
        assert hub.repo("jet/demo", "space").variables == {"MODEL_ID": "jet/tiny"}
        assert {request["user"] for request in hub.requests} == {"jet"}


def test_by_hand():
    command = [sys.executable, str(Path(__file__).with_name("hub_server.py")), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        settings = {}
        while (line := server.stdout.readline()).startswith("export "):
            name, value = line.removeprefix("export ").strip().split("=", 1)
            settings[name] = value
        code = "from huggingface_hub import whoami; print(whoami()['name'])"
        command = [sys.executable, "-c", code]
        process = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
        server.send_signal(signal.SIGINT)
        assert process.stdout == "jet\n", process.stderr
        assert server.wait(60) == 0 and not Path(settings["HF_HOME"]).exists()
