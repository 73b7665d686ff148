"""The demo as a real server: for visitors, programs and floods, and against requests that the page never sends."""

import contextlib
import http.server
import io
import json
import os
import re
import select
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from decoder import MAX_PIXELS, MAX_SIDE
from fastapi.openapi.models import OpenAPI
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from guard import RequestLimits
from jet_demo import MAX_COPIED_PARAMETERS, MAX_FILE_SIDE, JetDemo, Sampler
from pictures import jpeg_of_scans, photograph
from PIL import Image
from space_server import SPACE, SpaceServer, serve_here
from storage import Quota
from uploads import MAX_FILE_SIZE

from jet_hf.analysis.codec.container import unpack


EXAMPLES = ("1_coffee.png", "2_temple.png", "4_smooth.png")
COFFEE, TEMPLE, SMOOTH = (str(SPACE / "examples" / name) for name in EXAMPLES)
NOT_AN_UPLOAD = "must be a file that was uploaded here within the last hour"
LIMITS = {
    "DELETE_CACHE": (0.2, 3600),
    "QUOTA": Quota(client_files=3, result_files=40),
    "REQUESTS": RequestLimits(idle_seconds=3, client_uploads=8, uploads=12),
}
NUM_VISITORS = 20
CALLS_OF_VISITOR = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder):
    with SpaceServer(folder) as server:
        yield server
        assert server.process.poll() is None
    # A server that ends deletes all files.
    assert server.process.returncode == 0 and not any(path.is_file() for path in server.files.rglob("*"))


@pytest.fixture(scope="module")
def limited(folder):
    """A server with low limits."""
    with serve_here(folder / "limited", **LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def client(server, folder):
    return Client(server.url, verbose=False, download_files=folder / "downloads")


@pytest.fixture(scope="module")
def packed(client) -> str:
    """File of the function `compress`."""
    path, _ = client.predict(handle_file(COFFEE), api_name="/compress")
    return path


@pytest.fixture(scope="module")
def private(folder) -> Path:
    """Image on the server's disk that nobody uploaded."""
    photograph().save(folder / "private.png")
    return folder / "private.png"


@pytest.fixture(scope="module")
def elsewhere():
    """Address on another server, and the list of its requests."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}/a.png", requests
        http_server.shutdown()


# The API


def pictures_of(gallery) -> list[Image.Image]:
    return [Image.open(item["image"]) for item in gallery]


def test_the_api_is_what_the_readme_says(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    signatures = {
        name: {field["parameter_name"]: field["python_type"]["type"] for field in endpoint["parameters"]}
        for name, endpoint in endpoints.items()
    }
    fit = "Literal['resize', 'crop']"
    assert signatures == {
        "/sample": {
            "num_images": "int",
            "temperature": "float",
            "seed": "int",
            "label": "int",
            "model": "Literal['jet-digits-8', 'jet-photographs-32']",
        },
        "/score": {"image": "filepath", "num_noise_draws": "int", "fit": fit},
        "/reconstruct": {"image": "filepath", "fit": fit},
        "/interpolate": {"image_a": "filepath", "image_b": "filepath", "steps": "int"},
        "/compress": {"image": "filepath"},
        "/decompress": {"file": "filepath"},
        "/anomaly": {"image": "filepath", "fit": fit},
        "/denoise": {"image": "filepath", "sigma": "float", "fit": fit},
    }


def test_results_arrive_without_loss(server, client):
    demo = JetDemo(SPACE / "model")
    gallery = client.predict(num_images=3, temperature=0.8, seed=5, api_name="/sample")
    for picture, image in zip(pictures_of(gallery), demo.sample(3, 0.8, 5), strict=True):
        assert picture.format == "PNG"
        # Another process may round differently.
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(image)).max() <= 1
    score, heat_map = client.predict(handle_file(COFFEE), num_noise_draws=4, fit="crop", api_name="/score")
    expected = demo.score(demo.load(COFFEE, "crop"), 4).to_dict()
    assert score.keys() == expected.keys()
    for name in ("bits_per_dim", "log_likelihood", "png_bits_per_dim", "webp_bits_per_dim", "num_dims"):
        assert score[name] == pytest.approx(expected[name], rel=1e-5), name
    assert score["standard_error"] == pytest.approx(expected["standard_error"], rel=1e-2)
    picture = Image.open(heat_map)
    assert picture.format == "PNG" and picture.width > 600
    image, measured = client.predict(handle_file(COFFEE), "resize", api_name="/reconstruct")
    assert measured["bytes_equal"] is True and measured["max_abs_error"] < 1e-4
    seen = demo.load(COFFEE).pixels.permute(1, 2, 0).numpy()
    assert Image.open(image).format == "PNG" and np.array_equal(np.asarray(Image.open(image)), seen)
    gallery = client.predict(handle_file(COFFEE), handle_file(TEMPLE), 3, api_name="/interpolate")
    assert np.array_equal(np.asarray(pictures_of(gallery)[0]), seen) and len(gallery) == 3

    event, (by_curl, picture) = server.call("score", [server.upload(COFFEE), 4, "crop"])
    assert event == "complete" and by_curl["bits_per_dim"] == pytest.approx(score["bits_per_dim"], rel=1e-6)
    assert Image.open(io.BytesIO(server.http.get(picture["url"]).content)).format == "PNG"
    digits = client.predict(2, 1.0, 5, 3, "jet-digits-8", api_name="/sample")
    for picture, image in zip(pictures_of(digits), Sampler(SPACE / "digits").sample(2, 1.0, 5, 3), strict=True):
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(image)).max() <= 1
    posted = server.post("call/v2/sample", json={"num_images": 2, "temperature": 1, "seed": 0})
    url = f"{server.url}/gradio_api/call/v2/sample/{posted.json()['event_id']}"
    assert "event: complete" in server.http.get(url).text


def test_a_picture_becomes_a_file_and_comes_back(server, client, folder):
    packed, sizes = client.predict(handle_file(COFFEE), api_name="/compress")
    assert sizes["bytes"]["jet"] == Path(packed).stat().st_size < sizes["bytes"]["png"]
    assert max(sizes["width"], sizes["height"]) == 256 and "averaged down to 256 x" in sizes["notes"][0]
    image, measured = client.predict(handle_file(packed), api_name="/decompress")
    restored = np.asarray(Image.open(image))
    assert restored.shape == (measured["height"], measured["width"], 3)
    with Image.open(COFFEE) as original:
        original = original.convert("RGB")
        original.thumbnail((256, 256), Image.Resampling.BOX, reducing_gap=None)
        assert np.array_equal(restored, original)
    # Uploaded by the name that it was downloaded with, a damaged file is refused.
    damaged = bytearray(Path(packed).read_bytes())
    damaged[-9] ^= 1
    (folder / "damaged.jet").write_bytes(damaged)
    for path, message in ((folder / "damaged.jet", "the file is damaged"), (COFFEE, "the data are no file of")):
        event, answer = server.call("decompress", [server.upload(path)])
        assert event == "error" and answer["error"].startswith(f"`file` cannot be decompressed: {message}")
    event, answer = server.call("decompress", [None])
    assert event == "error" and NOT_AN_UPLOAD in answer["error"]


def test_anomalies_are_found_and_noise_is_removed(client, folder):
    table, heat_map = client.predict(handle_file(SMOOTH), "resize", api_name="/anomaly")
    # The likelihood is fooled by a smooth picture.
    assert table["negative_log_likelihood"]["p_value"] > 0.5 and table["complexity_corrected"]["p_value"] < 0.05
    assert Image.open(heat_map).format == "PNG"
    sizes = np.array(Image.open(COFFEE).size) // 2 - 16
    clean = np.asarray(Image.open(COFFEE).convert("RGB").crop((*sizes, *(sizes + 32)))).astype(float)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 25, clean.shape), 0, 255).round().astype(np.uint8)
    Image.fromarray(noisy).save(folder / "noisy.png")
    path = client.predict(handle_file(folder / "noisy.png"), 25, "crop", api_name="/denoise")
    errors = [np.square(image - clean).mean() for image in (noisy, np.asarray(Image.open(path)))]
    assert errors[1] < errors[0] / 2


def test_clients_cannot_call_the_functions_of_the_page(client):
    with pytest.raises(ValueError, match="Cannot find a function"):
        client.predict(1, 1.0, 0, api_name="/page_sample")
    with pytest.raises(AppError, match="`num_images` must be"):
        client.predict(0, 1.0, 0, api_name="/sample")


def test_images_are_scored_or_refused_with_a_sentence(server, good, bad):
    before = server.megabytes()
    for name in ("no_name", "alpha.webp", "rotated.jpg"):
        event, (score, _) = server.call("score", [server.upload(good[name]), 1, "resize"])
        assert event == "complete" and score["bits_per_dim"] > 0, name
    for name in ("text.png", "bomb.png", "float.tiff"):
        path, message = bad[name]
        event, answer = server.call("score", [server.upload(path), 1, "resize"])
        assert event == "error" and message in answer["error"]
        assert "Traceback" not in answer["error"] and str(server.files) not in answer["error"]
    assert server.megabytes() < before + 100
    assert server.call("sample", [1, 1.0, 0])[0] == "complete"


# The documentation of the API


README = (SPACE / "README.md").read_text()
API_README = README.split("## API\n")[1].split("\n## ")[0]


def readme_code(language: str) -> str:
    return "".join(re.findall(rf"```{language}\n(.*?)```", API_README, re.DOTALL))


@pytest.fixture
def readme_folder(tmp_path, monkeypatch) -> Path:
    """Working folder with the files that README.md names."""
    photograph().save(tmp_path / "cat.png")
    photograph().rotate(180).save(tmp_path / "cup.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_code_of_the_readme_runs(server, readme_folder):
    names = {}
    exec(readme_code("python").replace("user/jet-demo", server.url), names)
    assert len(names["gallery"]) == 9 and len(names["path"]) == 8
    assert Image.open(names["picture"]).tobytes() == photograph().tobytes()
    assert names["sizes"]["bytes"]["jet"] == Path(names["file"]).stat().st_size
    assert Path(names["clean"]).is_relative_to(readme_folder / "results")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_of_the_readme_run(server, readme_folder):
    lines = [line.removeprefix("$ ") for line in readme_code("console").splitlines()]
    script = "\n".join(lines).replace("http://127.0.0.1:7860", server.url)
    command, environment = ["bash", "-e", "-o", "pipefail", "-c", script], os.environ | {"NO_PROXY": "127.0.0.1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("event: complete") == script.count("curl -sN") == 5, process.stdout
    assert unpack((readme_folder / "picture.jet").read_bytes())
    assert json.loads((readme_folder / "openapi.json").read_text())["openapi"] == "3.1.0"


class DescribedClient:
    """
    Client that knows no route, parameter or result but those of the server's OpenAPI description.

    Args:
        server: The server.
        files: Files to upload, by the names of their schemas.
    """

    def __init__(self, server, files: dict[str, Path | str]):
        self.http, self.url, self.files = server.http, server.url, files
        self.document = self.http.get(f"{self.url}/gradio_api/openapi.json").json()
        self.operations = {
            operation["operationId"]: (method, path, operation)
            for path, item in self.document["paths"].items()
            for method, operation in item.items()
        }

    def functions(self) -> dict[str, dict]:
        """Return the schemas of the values of all functions by their names."""
        bodies = {name: operation.get("requestBody") for name, (_, _, operation) in self.operations.items()}
        del bodies["upload"]
        return {name: body["content"]["application/json"]["schema"] for name, body in bodies.items() if body}

    def resolve(self, schema: dict) -> dict:
        if "$ref" not in schema:
            return schema
        return self.document["components"]["schemas"][schema["$ref"].removeprefix("#/components/schemas/")]

    def send(self, name: str, place: dict | None = None, **content) -> httpx.Response:
        method, path, operation = self.operations[name]
        answer = self.http.request(method, self.url + path.format(**place or {}), **content)
        described = operation["responses"][str(answer.status_code)]["content"]
        media_type = answer.headers["content-type"].split(";")[0]
        assert media_type != "application/json" or self.fits(answer.json(), described[media_type]["schema"])
        assert media_type in described
        return answer

    def upload(self, schema: dict) -> dict:
        with open(self.files[schema["$ref"].rpartition("/")[2]], "rb") as file:
            (path,) = self.send("upload", files={"files": file}).json()
        return {"path": path, "meta": self.resolve(schema)["properties"]["meta"]["const"]}

    def call(self, name: str, values: dict) -> tuple[str, object]:
        """Call a function, and return the name and the data of the last event."""
        started = self.send(name, json=values).json()
        link = self.operations[name][2]["responses"]["200"]["links"]["result"]
        place = {field: started[source.rpartition("/")[2]] for field, source in link["parameters"].items()}
        last = self.send(link["operationId"], place).text.strip().split("\n\n")[-1]
        event, data = (line.partition(": ")[2] for line in last.splitlines())
        return event, json.loads(data)

    def result_schema(self, name: str) -> dict:
        _, _, operation = self.operations[f"{name}_result"]
        stream = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
        return {"$ref": re.search(r"#/components/schemas/\w+", stream["description"])[0]}

    def fits(self, value, schema: dict) -> bool:
        """Return whether a value has the types and fields of its schema."""
        schema, types = self.resolve(schema), {"object": dict, "array": list, "string": str}
        if not isinstance(value, types[schema["type"]]):
            return False
        if isinstance(value, list):
            schemas = schema.get("prefixItems") or [schema["items"]] * len(value)
            return len(schemas) == len(value) and all(map(self.fits, value, schemas))
        return all(
            field in value and self.fits(value[field], schema["properties"][field])
            for field in schema.get("required", ())
        )


@pytest.fixture(scope="module")
def described(server, private, packed) -> DescribedClient:
    return DescribedClient(server, {"UploadedImage": private, "UploadedFile": packed})


def test_the_openapi_description_lists_the_public_functions(described, client):
    OpenAPI.model_validate(described.document)
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    functions = described.functions()
    assert {f"/{name}" for name in functions} == endpoints.keys()
    assert set(described.operations) == {"upload", *functions, *(f"{name}_result" for name in functions)}
    for name, values in functions.items():
        fields = {field["parameter_name"]: field for field in endpoints[f"/{name}"]["parameters"]}
        assert values["properties"].keys() == fields.keys()
        assert values["required"] == [field for field in fields if not fields[field]["parameter_has_default"]]
    references = re.findall(r"#/components/schemas/(\w+)", json.dumps(described.document))
    assert set(references) == described.document["components"]["schemas"].keys()


def test_a_client_that_follows_the_openapi_description_gets_answers(described):
    for name, values in described.functions().items():
        fields = values["properties"]
        required = {field: described.upload(fields[field]) for field in values["required"]}
        event, result = described.call(name, required)
        assert event == "complete" and described.fits(result, described.result_schema(name)), (name, result)
        assert described.send(name, json=required | {"unknown": 1}).status_code == 422
        assert not required or described.send(name, json={}).status_code == 422
        for field, schema in fields.items():
            refused = [schema["minimum"] - 1, schema["maximum"] + 1] if "minimum" in schema else []
            for value in [*refused, *(["another"] if "enum" in schema else [])]:
                event, answer = described.call(name, required | {field: value})
                assert event == "error" and answer["error"].startswith(f"`{field}` must be"), (name, field, value)
    assert described.send("score_result", {"event_id": "unknown"}).status_code == 404


def test_the_tables_of_the_readme_have_the_limits_of_the_code(described):
    rows = dict(re.findall(r"^\| `/(\w+)` \| (.*?) \| ", API_README, re.MULTILINE))
    functions = described.functions()
    assert rows.keys() == functions.keys()
    for name, values in functions.items():
        assert re.findall(r"`(\w+)(?=[:`])", rows[name]) == list(values["properties"]), name
        for field, schema in values["properties"].items():
            if "minimum" in schema:
                kind = {"integer": "int", "number": "float"}[schema["type"]]
                bounds = f"{schema['minimum']} to {schema['maximum']} ({schema['default']})"
                assert f"`{field}: {kind}` {bounds}" in rows[name]
    for limit in (
        f"at most {MAX_FILE_SIZE // 2**20} MB, {MAX_PIXELS // 10**6} million pixels and {MAX_SIDE:,} pixels per side",
        f"more than {MAX_FILE_SIDE} pixels a side are averaged down first",
        f"one picture of at most {MAX_FILE_SIDE} pixels a side",
        f"more than {MAX_COPIED_PARAMETERS // 10**6} million parameters",
    ):
        assert limit in " ".join(API_README.split()), limit


# Inputs


def functions_of(server) -> list[tuple[dict, list[dict]]]:
    """Return all events of the page that run a function of the server, with their input components."""
    config = server.http.get(f"{server.url}/config").json()
    components = {component["id"]: component for component in config["components"]}
    events = [event for event in config["dependencies"] if event["backend_fn"]]
    return [(event, [components[number] for number in event["inputs"]]) for event in events]


def send(server, event: dict, data: list) -> dict:
    """Run an event as the page does, and return its output."""
    body = {"data": data, "fn_index": event["id"], "session_hash": uuid.uuid4().hex}
    if event["api_name"].startswith("patch_at"):
        body["event_data"] = {"index": [9, 10**9], "value": None}
    if not event["queue"]:
        return server.post(f"run/{event['api_name']}", json=body).json()
    server.post("queue/join", json=body).raise_for_status()
    url = f"{server.url}/gradio_api/queue/data?session_hash={body['session_hash']}"
    messages = [json.loads(line[6:]) for line in server.http.get(url).text.splitlines() if line]
    return next(message["output"] for message in messages if message["msg"] == "process_completed")


def is_upload(component: dict) -> bool:
    return component["type"] in ("image", "file")


def good_values(server, components: list[dict], packed: str) -> list:
    """Return a value for each input that the page could send. `packed` is a file of the codec."""
    values = {"image": server.upload(COFFEE), "file": server.upload(packed), "dataset": 0}
    return [values.get(component["type"], component["props"].get("value")) for component in components]


def check_sentence(server, error: str, name: str) -> None:
    assert f"`{name}`" in error and error.endswith(".") and "\n" not in error, error
    said, _, _shown = error.partition(", got ")
    assert not re.search(r"Traceback|Error\b|/tmp/|site-packages", said) and str(server.files) not in error, error


def test_no_input_of_any_function_reads_the_disk_or_fetches_addresses(server, private, packed, elsewhere):
    """Sends valid values, and then each of many invalid values to each input of each function."""
    address, requests = elsewhere
    meta = {"meta": {"_type": "gradio.FileData"}}
    upload = server.upload(COFFEE)
    anywhere = [
        {"no": "value"},
        {"path": str(private), **meta},
        {"path": address, "url": address, "is_stream": True, **meta},
        str(private),
        [upload],
    ]
    images = [
        *anywhere,
        {"path": str(private)},
        {"path": str(private.parent / "not there.png"), **meta},
        {"path": address, **meta},
        {"path": upload["path"] + "/../1_coffee.png", **meta},
        {"url": address, **meta},
        {"url": "data:image/png;base64,aaaa", **meta},
        {"path": None, **meta},
        {"path": [upload["path"]], **meta},
        {"value": upload},
        address,
        "/proc/self/fd/1",
        7,
        True,
    ]
    attempts = []
    for event, components in functions_of(server):
        valid = good_values(server, components, packed)
        answer = send(server, event, valid)
        assert answer.get("error") is None and answer["data"], event["api_name"]
        for slot, component in enumerate(components):
            for value in images if is_upload(component) else [*anywhere, upload]:
                attempts.append((event, [*valid[:slot], value, *valid[slot + 1 :]], component))
    assert len(attempts) > 150
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda attempt: send(server, *attempt[:2]), attempts))
    for (_, _, component), answer in zip(attempts, answers, strict=True):
        name = component["props"].get("label") if component["type"] != "dataset" else "example"
        check_sentence(server, answer["error"], name)
        if is_upload(component):
            # The message does not reveal whether the file exists.
            assert answer["error"].startswith(f"`{name}` {NOT_AN_UPLOAD}")
    assert requests == []
    (edit,) = (event for event, _ in functions_of(server) if event["api_name"] == "page_reconstruct")
    data = [upload, None, "crop", 0.5, 0, 6, 0, 0]
    check_sentence(server, send(server, edit, data)["error"], "Second image")


def test_neither_addresses_nor_other_fields_of_a_picture_have_an_effect(server, elsewhere):
    address, requests = elsewhere
    picture = server.upload(COFFEE) | {"url": address, "orig_name": address, "is_stream": True, "size": -1}
    event, (_, measured) = server.call("reconstruct", [picture, "crop"])
    assert event == "complete" and measured["bytes_equal"] and requests == []


def test_files_that_replace_an_upload_are_not_read(server, private, tmp_path):
    """Links, also of a parent folder, pipes and devices are refused, and none delays the next visitor."""
    refused = []

    def attempt(prepare) -> None:
        photograph().resize((50 + len(refused), 50)).save(tmp_path / "picture.png")
        picture = server.upload(tmp_path / "picture.png")
        path = Path(picture["path"])
        prepare(path)
        refused.append(server.call("reconstruct", [picture, "crop"]))
        assert server.call("sample", [1, 1.0, 0])[0] == "complete"

    def linked_folder(path: Path) -> None:
        shutil.copy(private, tmp_path / path.name)
        shutil.rmtree(path.parent)
        path.parent.symlink_to(tmp_path)

    def replaced(path: Path, make) -> None:
        path.unlink()
        make(path)

    attempt(lambda path: replaced(path, lambda path: path.symlink_to(private)))
    attempt(lambda path: replaced(path, lambda path: path.symlink_to("/proc/self/fd/1")))
    attempt(lambda path: replaced(path, os.mkfifo))
    attempt(lambda path: replaced(path, os.mkdir))
    attempt(lambda path: path.unlink())
    attempt(linked_folder)
    # A file among the uploads that was not uploaded, and a result.
    picture = server.upload(COFFEE)
    copy = Path(picture["path"]).with_name("copy.png")
    shutil.copy(private, copy)
    refused.append(server.call("reconstruct", [picture | {"path": str(copy)}, "crop"]))
    for path in ("/proc/self/fd/0", "/proc/self/fd/1", "/dev/zero", "/dev/stdin"):
        refused.append(server.call("reconstruct", [{"path": path}, "crop"]))
    _, (gallery,) = server.call("sample", [1, 1.0, 0])
    refused.append(server.call("reconstruct", [gallery[0]["image"], "crop"]))
    sentences = {(event, answer["error"]) for event, answer in refused}
    assert len(refused) == 12 and len(sentences) == 1
    ((event, sentence),) = sentences
    assert event == "error" and NOT_AN_UPLOAD in sentence


def test_invalid_values_are_answered_with_a_sentence(server):
    upload = server.upload(COFFEE)
    for name, data, message in (
        ("score", [], "`score` must get 3 values (`image`, `num_noise_draws`, `fit`), got 0."),
        ("score", [None], "`score` must get 3 values (`image`, `num_noise_draws`, `fit`), got 1."),
        (
            "sample",
            [1, 1.0],
            "`sample` must get 3 to 5 values (`num_images`, `temperature`, `seed`, `label`, `model`)",
        ),
        ("sample", [1, 1.0, 0, 10, "jet-digits-8"], "`label` must be a class of the model, which has 10, got 10."),
        ("sample", [1, 1.0, 0, -1, "cat"], "`model` must be one of jet-digits-8, jet-photographs-32, got 'cat'."),
        ("sample", [10**9, 1.0, 0], "`num_images` must be a whole number from 1 to 36, got 1000000000."),
        ("sample", [1, None, 0], "`temperature` must be a number from 0 to 2, got None."),
        ("sample", [1, 1.0, "7" * 100_000], "`seed` must be a whole number from 0 to 4294967295, got '7777"),
        ("sample", [1, 1.0, 10**4000], "`seed` must be a whole number from 0 to 4294967295, got 1000"),
        ("score", ["cat.png", 1, "crop"], f"`image` {NOT_AN_UPLOAD}"),
        ("score", [None, 1, "crop"], "`image` is missing: upload, paste or choose an image first."),
        ("score", [upload, 33, "crop"], "`num_noise_draws` must be a whole number from 1 to 32, got 33."),
        ("score", [upload, 1, ["crop"]], "`fit` must be one of resize, crop, got ['crop']."),
        ("interpolate", [upload, upload, 17], "`steps` must be a whole number from 2 to 16, got 17."),
        ("interpolate", [upload, None, 2], "`image_b` is missing: upload, paste or choose an image first."),
    ):
        event, answer = server.call(name, data)
        assert event == "error" and answer["error"].startswith(message)
        assert answer["error"].endswith(".") and len(answer["error"]) < 200


def test_requests_of_the_wrong_shape_are_answered_with_a_sentence(server):
    functions = {event["api_name"]: event["id"] for event, _ in functions_of(server)}
    click = {"data": [], "fn_index": functions["patch_at"], "session_hash": "a"}
    for route, content, status in (
        ("call/sample", b"", 400),
        ("call/sample", b"{", 400),
        ("call/sample", b"[" * 100_000, 400),
        ("call/sample", b"9" * 100_000, 400),
        ("call/sample", b"[]", 422),
        ("call/sample", b"{}", 422),
        ("call/sample", b'{"data": null}', 422),
        ("call/sample", b'{"data": {"num_images": 1}}', 422),
        ("call/nothing", b'{"data": []}', 404),
        ("call/v2/nothing", b"{}", 404),
        ("call/v2/score", b"{}", 422),
        ("call/v2/sample", b'{"number": 1}', 422),
        ("queue/join", b'{"data": [], "session_hash": "a"}', 404),
        ("queue/join", b'{"data": [], "fn_index": 10000, "session_hash": "a"}', 404),
        ("queue/join", json.dumps(click | {"session_hash": None}), 422),
        ("queue/join", json.dumps(click | {"session_hash": ["a"]}), 422),
        ("queue/join", json.dumps(click), 422),
        ("queue/join", json.dumps(click | {"event_data": {"index": [1, "2"]}}), 422),
        ("queue/join", json.dumps(click | {"event_data": {"index": [1, float("nan")]}}), 422),
        ("cancel", b'{"fn_index": {}}', 422),
        ("upload", b"no form", 400),
    ):
        answer = server.post(route, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, (route, content[:40])
        detail = answer.json()["detail"]
        assert isinstance(detail, str) and detail.endswith(".") and len(detail) < 200


def test_routes_that_the_demo_does_not_need_are_closed(server, private):
    before = set(server.files.rglob("*"))
    session = uuid.uuid4().hex
    send(
        server,
        *next((event, [1, 1, 0, -1]) for event, _ in functions_of(server) if event["api_name"] == "page_sample"),
    )
    for path in ("deep_link", f"deep_link?session_hash={session}", "dev/reload", "stream/a/b/1/playlist-file"):
        assert server.http.get(f"{server.url}/gradio_api/{path}").status_code == 404, path
    for path in ("component_server", "process_recording", "stream/a", "vibe-edit", "run-history/connect", "login"):
        answer = server.post(path, json={"data": [], "fn_name": "ls", "component_id": 1, "session_hash": session})
        assert answer.status_code == 404, path
    recording = {"video": ("a.webm", b"0" * 1000)}
    assert server.post("process_recording", files=recording).status_code == 404
    for path in (f"file={private}", f"file={private.parent}/not there.png", f"file/{private}"):
        assert server.http.get(f"{server.url}/gradio_api/{path}").status_code in (403, 404), path
    grown = {path for path in set(server.files.rglob("*")) - before if path.is_file() and path.suffix != ".png"}
    assert not grown


def test_only_files_of_the_page_can_be_downloaded(server):
    for path in ("/etc/passwd", SPACE / "app.py", SPACE / "model" / "model.safetensors", server.log, "app.py"):
        assert server.http.get(f"{server.url}/gradio_api/file={path}").status_code in (403, 404), path
    for path in ("file=http://127.0.0.1:1/", "file=https://example.com/", "proxy=https://example.com/"):
        answer = server.http.get(f"{server.url}/gradio_api/{path}")
        assert (answer.status_code, answer.text) == (403, "Addresses are not fetched.")
    for path in (f"{server.files}/../log.txt", f"{server.files}/%2e%2e/log.txt"):
        with pytest.raises(urllib.error.HTTPError, match=r"403|404"):
            urllib.request.urlopen(f"{server.url}/gradio_api/file={path}")


def test_huge_requests_are_refused(server):
    file = io.BytesIO(bytes(MAX_FILE_SIZE + 2**20))
    answer = server.post("upload", files={"files": ("a.png", file)})
    assert answer.status_code == 413 and "at most" in answer.text

    # The request has no Content-Length, hence the server counts.
    parts = (bytes(2**16) for _ in range(8))
    answer = server.post("call/sample", content=parts)
    assert answer.status_code == 413
    assert server.call("sample", [1, 1.0, 0])[0] == "complete"


# Fairness


def test_slow_images_delay_only_their_sender(limited, tmp_path, monkeypatch):
    """Each of these images would decode for minutes, but a visitor is served in the meantime."""
    monkeypatch.setattr("uploads.DECODE_SECONDS", 60)
    (tmp_path / "slow.jpg").write_bytes(jpeg_of_scans(4000, 3000))
    slow = limited.upload(tmp_path / "slow.jpg", "198.51.100.1")
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(limited.call, "score", [slow, 1, "crop"], "198.51.100.1") for _ in range(2)]
        picture = limited.upload(COFFEE)
        assert limited.call("score", [picture, 1, "crop"])[0] == "complete"
        assert not all(answer.done() for answer in answers)
        # The kernel ends them at a limit of processor time; here that comes at once.
        while not all(answer.done() for answer in answers):
            for process in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if any(word.endswith("decoder.py") for word in process.cmdline()):
                        process.kill()
            time.sleep(0.05)
    for event, answer in (answer.result() for answer in answers):
        assert event == "error" and answer["error"].startswith("`image` takes too much time or memory to decode")


def test_a_flood_does_not_keep_a_visitor_waiting(server, record_property):
    """120 calls without a reader and 200 with one come from other addresses, and a visitor is served next."""
    for number in range(120):
        answer = server.post("call/sample", f"203.0.113.{number % 4}", json={"data": [36, 1.0, number]})
        assert answer.status_code == 200
    served, readers, done = [], [], threading.Event()

    def flood(number: int) -> None:
        with contextlib.suppress(httpx.TransportError):  # of those who disconnect in the end
            if not done.is_set():
                served.append(server.call("sample", [36, 1.0, number], "198.51.100.7", readers))

    with ThreadPoolExecutor(40) as pool:
        for number in range(200):
            pool.submit(flood, number)
        deadline = time.monotonic() + 60
        while not any(event == "complete" for event, _ in list(served)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        waits = []
        for _ in range(3):
            before, start = sum(event == "complete" for event, _ in list(served)), time.monotonic()
            assert server.call("sample", [1, 1.0, 0], "192.0.2.1")[0] == "complete"
            waits.append(time.monotonic() - start)
            # One call was running, one was next, and the response takes some time.
            assert sum(event == "complete" for event, _ in list(served)) - before <= 4
        done.set()
        for reader in readers:
            with contextlib.suppress(OSError):  # of those who have been answered
                reader.shutdown(socket.SHUT_RDWR)
    record_property("demo", f"in a flood of 320 calls, a visitor waited at most {max(waits):.2f} s")
    # The refusals explain themselves.
    refusals = {answer["error"] for event, answer in served if event == "error"}
    assert all(re.match(r"You have 24 calls in line, and at most 24 may wait", sentence) for sentence in refusals)
    assert refusals


def test_a_flood_of_page_loads_does_not_keep_a_visitor_waiting(server):
    address = server.url.removeprefix("http://").split(":")
    connections = []
    for _ in range(150):
        connections.append(socket.create_connection(address))
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 198.51.100.8\r\nConnection: close\r\n\r\n"
        connections[-1].sendall(request)
    page = server.http.get(server.url, headers={"X-Forwarded-For": "192.0.2.8"})
    answered, _, _ = select.select(connections, [], [], 0)
    assert page.status_code == 200 and len(answered) < 100
    for connection in connections:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        connection.close()


def test_calls_whose_readers_disconnected_are_not_computed(server):
    """The readers of all 24 calls that a session may have disconnect, and its next call is served."""
    client = "198.51.100.77"
    events = [server.post("call/sample", client, json={"data": [36, 1.0, number]}) for number in range(24)]
    address = server.url.removeprefix("http://").split(":")
    connections = []
    for event in events:
        connections.append(socket.create_connection(address))
        request = f"GET /gradio_api/call/sample/{event.json()['event_id']} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connections[-1].sendall(request.encode())
    for connection in connections:
        connection.recv(100)  # the head of the response, after which the stream is open
    event, answer = server.call("sample", [1, 1.0, 0], client)
    assert event == "error" and answer["error"].startswith("You have 2")
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + 60
    while (answer := server.call("sample", [1, 1.0, 0], client))[0] != "complete":
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    gone = server.http.get(f"{server.url}/gradio_api/call/sample/{events[-1].json()['event_id']}")
    assert gone.status_code == 404 and gone.json()["detail"].startswith("There is no such call")


def test_twenty_visitors_at_once(server, packed, record_property):
    """Each makes one call after another. All calls are answered, and the memory does not grow."""

    def picture(number: int) -> dict:
        return server.upload((COFFEE, TEMPLE)[number % 2])

    requests = {
        "sample": lambda i: [16, 1.0, i],
        "compress": lambda i: [picture(i)],
        "score": lambda i: [picture(i), 8, "resize"],
        "anomaly": lambda i: [picture(i), "resize"],
        "reconstruct": lambda i: [picture(i), "crop"],
        "decompress": lambda i: [server.upload(packed)],
        "interpolate": lambda i: [picture(i), picture(i + 1), 8],
        "denoise": lambda i: [picture(i), 25, "crop"],
    }
    names = list(requests)
    latencies, failures, memory, logged = [], [], [], server.logged()

    def visit(visitor: int) -> None:
        try:
            for i in range(visitor, visitor + CALLS_OF_VISITOR):
                name = names[i % len(names)]
                data = requests[name](i)
                start = time.monotonic()
                event, answer = server.call(name, data)
                latencies.append(time.monotonic() - start)
                memory.append(server.megabytes())
                if event != "complete":
                    failures.append((name, answer))
        except Exception as error:
            failures.append(error)

    visitors = [threading.Thread(target=visit, args=(visitor,)) for visitor in range(NUM_VISITORS)]
    for thread in visitors:
        thread.start()
    for thread in visitors:
        thread.join()
    assert not failures
    half = len(memory) // 2
    assert len(memory) == NUM_VISITORS * CALLS_OF_VISITOR
    # The first half reaches the maximum, apart from the fragmentation of the allocator.
    assert max(memory[half:]) < max(memory[:half]) + 80
    p50, p95 = np.percentile(latencies, [50, 95])
    record_property(
        "demo",
        f"{NUM_VISITORS} visitors: {len(latencies)} answers, p50 {p50:.2f} s, p95 {p95:.2f} s; memory "
        f"{memory[0]:.0f} MB at first, at most {max(memory[:half]):.0f} MB by half-time, {max(memory):.0f} MB",
    )
    assert "Traceback" not in server.logged()[len(logged) :]


# Limits


def half_sent(server, client: str) -> socket.socket:
    """Start an upload whose body never ends, and send a part of the file."""
    connection = socket.create_connection(server.url.removeprefix("http://").split(":"))
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(10_000)
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {client}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n"
    )
    connection.sendall(head.encode() + part)
    return connection


def answer_of(connection: socket.socket) -> bytes:
    connection.settimeout(60)
    answer = b""
    while b"\r\n\r\n" not in answer or answer.endswith(b"\r\n\r\n"):
        if not (received := connection.recv(2000)):
            break
        answer += received
    return answer


def upload_in_the_end(server) -> dict:
    deadline = time.monotonic() + 60
    while True:
        try:
            return server.upload(COFFEE, "192.0.2.1")
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == 429 and "try again soon" in error.response.text
            assert time.monotonic() < deadline
            time.sleep(0.2)


def wait_for_half_files(server) -> None:
    """Wait until no half-received file lies on the server's disk."""
    deadline = time.monotonic() + 60
    while half := [path for path in server.received() if path.parent.parent == server.files]:
        assert time.monotonic() < deadline, half
        time.sleep(0.2)


def test_stalled_uploads_and_results_do_not_fill_the_disk(limited, good, capfd):
    limited.remember_own_files()  # and those of other tests
    connections = [half_sent(limited, f"198.51.100.{number % 3}") for number in range(300)]
    assert re.match(rb"HTTP/1.1 (429|503)", answer_of(connections[-1]))
    assert len(limited.received()) <= 12
    # Stalled uploads make room for a new one before their time is over.
    picture = upload_in_the_end(limited)
    assert limited.call("score", [picture, 1, "crop"])[0] == "complete"
    stalled = [answer_of(connection) for connection in connections[:6]]
    assert all(b"had stalled" in answer for answer in stalled), stalled
    wait_for_half_files(limited)
    # An upload whose client closes the connection is deleted as well.
    for connection in [half_sent(limited, "198.51.100.9") for _ in range(8)]:
        connection.close()
    wait_for_half_files(limited)
    assert limited.call("score", [picture, 1, "crop"])[0] == "complete"
    for connection in connections:
        connection.close()

    # The client's quota.
    for name in ("alpha.webp", "16bit.png"):
        limited.upload(good[name], "192.0.2.1")
    answer = limited.post("upload", "192.0.2.1", files={"files": b"one more"})
    assert answer.status_code == 429
    assert answer.json()["detail"].startswith("You have uploaded 3 files of 0 MB, and at most 3 files of 200 MB")
    assert limited.upload(good["no_name"], "192.0.2.2")
    before, files = limited.received(), [("files", (f"{number}.png", bytes([number]))) for number in range(4)]
    assert limited.post("upload", "192.0.2.3", files=files).json()["detail"].startswith("You have uploaded 0 files")
    assert limited.received() == before

    # The quota of the results, of which the oldest are deleted. The uploads and examples stay.
    for seed in range(3):
        event, (gallery,) = limited.call("sample", [36, 1.0, seed])
        assert event == "complete"
    deadline = time.monotonic() + 60
    while len(limited.received()) > 40 + 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert all(limited.http.get(item["image"]["url"]).status_code == 200 for item in gallery)
    example = next(path for path in limited.files.rglob("1_coffee.png") if "examples" in path.parts)
    for image in (picture, {"path": str(example)}):
        assert limited.call("score", [image, 1, "resize"])[0] == "complete"
    assert "Traceback" not in capfd.readouterr().err
