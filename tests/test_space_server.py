"""The demo as visitors and programs meet it: a real server, gradio_client, and plain HTTP."""

import io
import math
import threading
import time
import urllib.error
import urllib.request

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from jet_demo import JetDemo
from PIL import Image
from space_server import SPACE, SpaceServer
from uploads import MAX_FILE_SIZE, read_upload


COFFEE, TEMPLE = (str(SPACE / "examples" / name) for name in ("1_coffee.png", "2_temple.png"))
NUM_VISITORS = 20
LOAD_SECONDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder):
    with SpaceServer(folder) as server:
        yield server
        assert server.process.poll() is None


@pytest.fixture(scope="module")
def client(server, folder):
    return Client(server.url, verbose=False, download_files=folder / "downloads")


@pytest.fixture(scope="module")
def demo():
    return JetDemo(SPACE / "model")


def pictures_of(gallery) -> list[Image.Image]:
    return [Image.open(item["image"]) for item in gallery]


def upload(server, path) -> dict:
    return server.upload(path)


def call(server, name: str, data: list) -> tuple[str, object]:
    return server.call(name, data)


def test_the_api_is_what_its_readme_says(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    signatures = {
        name: {field["parameter_name"]: field["python_type"]["type"] for field in endpoint["parameters"]}
        for name, endpoint in endpoints.items()
    }
    fit = "Literal['resize', 'crop']"
    assert signatures == {
        "/sample": {"num_images": "int", "temperature": "float", "seed": "int"},
        "/score": {"image": "filepath", "num_noise_draws": "int", "fit": fit},
        "/reconstruct": {"image": "filepath", "fit": fit},
        "/interpolate": {"image_a": "filepath", "image_b": "filepath", "steps": "int"},
    }


def test_samples_arrive_without_loss(client, demo):
    gallery = client.predict(num_images=3, temperature=0.8, seed=5, api_name="/sample")
    expected = demo.sample(3, 0.8, 5)
    for picture, image in zip(pictures_of(gallery), expected, strict=True):
        assert picture.format == "PNG"
        # Another process rounds otherwise once in a while.
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(image)).max() <= 1


def test_scores_reconstructions_and_interpolations(client, demo):
    score, heat_map = client.predict(handle_file(COFFEE), num_noise_draws=4, fit="crop", api_name="/score")
    expected = demo.score(COFFEE, 4, "crop").to_dict()
    assert score.keys() == expected.keys()
    for name in ("bits_per_dim", "log_likelihood", "png_bits_per_dim", "webp_bits_per_dim", "num_dims"):
        assert score[name] == pytest.approx(expected[name], rel=1e-5), name
    assert score["standard_error"] == pytest.approx(expected["standard_error"], rel=1e-2)
    picture = Image.open(heat_map)
    assert picture.format == "PNG" and picture.width > 600
    image, measured = client.predict(handle_file(COFFEE), "resize", api_name="/reconstruct")
    assert measured["bytes_equal"] is True and measured["max_abs_error"] < 1e-4
    seen = demo.fit(read_upload(COFFEE), "resize").pixels.permute(1, 2, 0).numpy()
    assert Image.open(image).format == "PNG" and np.array_equal(np.asarray(Image.open(image)), seen)
    gallery = client.predict(handle_file(COFFEE), handle_file(TEMPLE), 3, api_name="/interpolate")
    assert np.array_equal(np.asarray(pictures_of(gallery)[0]), seen) and len(gallery) == 3


def test_curl_gets_the_same(server, client):
    event, (score, picture) = call(server, "score", [upload(server, COFFEE), 4, "crop"])
    assert event == "complete"
    expected, _ = client.predict(handle_file(COFFEE), num_noise_draws=4, fit="crop", api_name="/score")
    assert score["bits_per_dim"] == pytest.approx(expected["bits_per_dim"], rel=1e-6)
    assert Image.open(io.BytesIO(httpx.get(picture["url"]).content)).format == "PNG"


def test_pictures_of_every_kind_are_scored(client, good):
    for name, path in good.items():
        score, _ = client.predict(handle_file(path), 1, "resize", api_name="/score")
        assert math.isfinite(score["bits_per_dim"]), name


@pytest.mark.parametrize(
    "name",
    [
        "text.png",
        "empty.png",
        "cut_off.png",
        "drawing.svg",
        "program.eps",
        "page.html",
        "bomb.png",
        "large.png",
        "line.png",
        "float.tiff",
    ],
)
def test_what_is_no_picture_is_answered_by_a_sentence(server, bad, name):
    path, message = bad[name]
    before = server.megabytes()
    event, answer = call(server, "score", [upload(server, path), 1, "resize"])
    assert event == "error" and message in answer["error"]
    assert "Traceback" not in answer["error"] and str(server.files) not in answer["error"]
    assert server.megabytes() < before + 100
    assert call(server, "sample", [1, 1.0, 0])[0] == "complete"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("sample", [10**9, 1.0, 0], "`num_images` must be a whole number from 1 to 36, got 1000000000"),
        ("sample", ["many", 1.0, 0], "`num_images` must be a whole number from 1 to 36, got 'many'"),
        ("sample", [1, 1e300, 0], "`temperature` must be a number from 0 to 2"),
        ("sample", [1, None, 0], "`temperature` must be a number from 0 to 2, got None"),
        ("sample", [1, 1.0, -1], "`seed` must be a whole number from 0 to 4294967295, got -1"),
        ("score", [None, 1, "crop"], "`image` is missing"),
        ("score", ["picture", 10**6, "crop"], "`num_noise_draws` must be a whole number from 1 to 32"),
        ("score", ["picture", 1, "stretch"], "`fit` must be one of resize, crop, got 'stretch'"),
        ("interpolate", ["picture", "picture", 10**6], "`steps` must be a whole number from 2 to 16"),
        ("interpolate", ["picture", None, 2], "`image_b` is missing"),
    ],
)
def test_numbers_are_bounded_on_the_server(server, name, data, message):
    data = [upload(server, COFFEE) if value == "picture" else value for value in data]
    event, answer = call(server, name, data)
    assert event == "error" and message in answer["error"]


def test_only_what_the_page_offers_can_be_downloaded(server):
    for path in ("/etc/passwd", SPACE / "app.py", SPACE / "model" / "model.safetensors", server.log, "app.py"):
        assert httpx.get(f"{server.url}/gradio_api/file={path}").status_code in (403, 404), path
    for path in ("file=http://127.0.0.1:1/", "file=https://example.com/", "proxy=https://example.com/"):
        answer = httpx.get(f"{server.url}/gradio_api/{path}")
        assert (answer.status_code, answer.text) == (403, "Addresses are not fetched.")
    for path in (f"{server.files}/../log.txt", f"{server.files}/%2e%2e/log.txt"):
        with pytest.raises(urllib.error.HTTPError, match=r"403|404"):
            urllib.request.urlopen(f"{server.url}/gradio_api/file={path}")


def test_huge_requests_are_cut_off(server):
    file = io.BytesIO(bytes(MAX_FILE_SIZE + 2**20))
    answer = httpx.post(f"{server.url}/gradio_api/upload", files={"files": ("a.png", file)}, timeout=60)
    assert answer.status_code == 413 and "at most" in answer.text

    # No length is given beforehand: the server counts.
    parts = (bytes(2**16) for _ in range(8))
    answer = httpx.post(f"{server.url}/gradio_api/call/sample", content=parts, timeout=60)
    assert answer.status_code == 413
    assert call(server, "sample", [1, 1.0, 0])[0] == "complete"


def test_clients_cannot_call_what_is_the_page_s_own(client):
    with pytest.raises(ValueError, match="Cannot find a function"):
        client.predict(1, 1.0, 0, api_name="/page_sample")
    with pytest.raises(AppError, match="`num_images` must be"):
        client.predict(0, 1.0, 0, api_name="/sample")


def test_twenty_visitors_at_once(server, record_property):
    """Each asks for one thing after the other for a minute; nobody is refused, and memory stays where it is."""
    requests = [
        ("sample", lambda picture, i: [16, 1.0, i]),
        ("score", lambda picture, i: [picture, 8, "resize"]),
        ("reconstruct", lambda picture, i: [picture, "crop"]),
        ("interpolate", lambda picture, i: [picture, picture, 8]),
    ]
    latencies, failures, memory, logged = [], [], [], server.logged()
    stop = threading.Event()

    def visit(visitor: int) -> None:
        try:
            picture, i = upload(server, (COFFEE, TEMPLE)[visitor % 2]), visitor
            while not stop.is_set():
                name, arguments = requests[i % len(requests)]
                start = time.monotonic()
                event, answer = call(server, name, arguments(picture, i))
                latencies.append(time.monotonic() - start)
                if event != "complete":
                    failures.append((name, answer))
                i += 1
        except Exception as error:
            failures.append(error)

    visitors = [threading.Thread(target=visit, args=(visitor,)) for visitor in range(NUM_VISITORS)]
    for thread in visitors:
        thread.start()
    for _ in range(LOAD_SECONDS):
        time.sleep(1)
        memory.append(server.megabytes())
    stop.set()
    for thread in visitors:
        thread.join()
    assert not failures
    assert len(latencies) > 2 * NUM_VISITORS
    # What is reached in the first half is what there is, but for the allocator's fragments.
    half = len(memory) // 2
    assert max(memory[half:]) < max(memory[:half]) + 80
    p50, p95 = np.percentile(latencies, [50, 95])
    record_property(
        "load",
        f"{NUM_VISITORS} visitors, {LOAD_SECONDS} s: {len(latencies)} answers, p50 {p50:.2f} s, p95 {p95:.2f} s; "
        f"memory {memory[0]:.0f} MB at first, at most {max(memory[:half]):.0f} MB by half-time, {max(memory):.0f} MB",
    )
    assert "Traceback" not in server.logged()[len(logged) :]
