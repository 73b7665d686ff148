"""The demo against visitors who mean no good, or send what the page never would: a real server, and raw requests."""

import http.server
import json
import os
import re
import select
import shutil
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pictures import jpeg_of_scans, photograph
from space_server import SPACE, SpaceServer


COFFEE = SPACE / "examples" / "1_coffee.png"
SHORT = "DELETE_CACHE = (0.5, 3); QUOTA = Quota(client_files=3, result_files=40)"
HALF_SENT = "REQUESTS = RequestLimits(idle_seconds=3, client_uploads=8, uploads=12)"
NOT_AN_UPLOAD = "must be a picture that was uploaded here within the last hour"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def server(folder):
    with SpaceServer(folder) as server:
        yield server
        assert server.process.poll() is None


@pytest.fixture(scope="module")
def private(folder) -> Path:
    """A picture on the server's disk that nobody uploaded."""
    photograph().save(folder / "private.png")
    return folder / "private.png"


@pytest.fixture(scope="module")
def elsewhere():
    """An address on another server, and the list of what has been asked there."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}/a.png", asked
        http_server.shutdown()


def functions_of(server) -> list[tuple[dict, list[dict]]]:
    """Return all events of the page that run something on the server, each with its input components."""
    config = httpx.get(f"{server.url}/config").json()
    components = {component["id"]: component for component in config["components"]}
    events = [event for event in config["dependencies"] if event["backend_fn"]]
    return [(event, [components[number] for number in event["inputs"]]) for event in events]


def send(server, event: dict, data: list) -> dict:
    """Run an event as the page does; return `{"error": ...}`, or the answer's data."""
    body = {"data": data, "fn_index": event["id"], "session_hash": uuid.uuid4().hex}
    if not event["queue"]:
        return server.post(f"run/{event['api_name']}", json=body).json()
    server.post("queue/join", json=body).raise_for_status()
    url = f"{server.url}/gradio_api/queue/data?session_hash={body['session_hash']}"
    messages = [json.loads(line[6:]) for line in httpx.get(url, timeout=120).text.splitlines() if line]
    return next(message["output"] for message in messages if message["msg"] == "process_completed")


def is_picture(component: dict) -> bool:
    return component["type"] == "image"


def good_values(server, components: list[dict]) -> list:
    """Return a value for each input that the page itself could send."""
    values = {"image": server.upload(COFFEE), "dataset": 0}
    return [values.get(component["type"], component["props"].get("value")) for component in components]


def check_sentence(server, error: str, name: str) -> None:
    assert f"`{name}`" in error and error.endswith(".") and "\n" not in error, error
    said, _, _shown = error.partition(", got ")
    assert not re.search(r"Traceback|Error\b|/tmp/|site-packages", said) and str(server.files) not in error, error


def test_every_function_answers_what_the_page_sends(server):
    for event, components in functions_of(server):
        answer = send(server, event, good_values(server, components))
        assert answer.get("error") is None and answer["data"], event["api_name"]


def test_no_input_of_any_function_reads_the_disk_or_fetches_addresses(server, private, elsewhere):
    """All inputs of all functions, whichever there are."""
    address, asked = elsewhere
    meta = {"meta": {"_type": "gradio.FileData"}}
    upload = server.upload(COFFEE)
    files = [
        {"path": str(private)},
        {"path": str(private), **meta},
        {"path": str(private.parent / "not there.png"), **meta},
        {"path": address, **meta},
        {"path": upload["path"] + "/../1_coffee.png", **meta},
        {"path": address, "url": address, "is_stream": True, **meta},
        {"url": address, **meta},
        {"url": "data:image/png;base64,aaaa", **meta},
        {"path": None, **meta},
        {"path": [upload["path"]], **meta},
        [upload],
        {"value": upload},
        str(private),
        address,
        "/proc/self/fd/1",
        7,
        True,
    ]
    checked = 0
    for event, components in functions_of(server):
        for slot, component in enumerate(components):
            name = component["props"].get("label") if component["type"] != "dataset" else "example"
            data = good_values(server, components)
            attempts = files[:-2] if not is_picture(component) else files
            for attempt in [*attempts, *([] if is_picture(component) else [upload])]:
                data[slot] = attempt
                answer = send(server, event, data)
                check_sentence(server, answer["error"], name)
                if is_picture(component):
                    # Whether the file exists cannot be told from the answer.
                    assert answer["error"].startswith(f"`{name}` {NOT_AN_UPLOAD}")
                checked += 1
    assert checked > 200
    assert asked == []


def test_neither_addresses_nor_other_fields_of_a_picture_have_an_effect(server, elsewhere):
    address, asked = elsewhere
    picture = server.upload(COFFEE) | {"url": address, "orig_name": address, "is_stream": True, "size": -1}
    event, (_, measured) = server.call("reconstruct", [picture, "crop"])
    assert event == "complete" and measured["bytes_equal"] and asked == []


def test_what_stands_in_an_upload_s_place_is_not_read(server, private, tmp_path):
    """Links, also of a folder on the way, pipes, and devices; none of them holds up the next visitor."""
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
    # A file among the uploads that was not received as one.
    picture = server.upload(COFFEE)
    copy = Path(picture["path"]).with_name("copy.png")
    shutil.copy(private, copy)
    refused.append(server.call("reconstruct", [picture | {"path": str(copy)}, "crop"]))
    for path in ("/proc/self/fd/0", "/proc/self/fd/1", "/dev/zero", "/dev/stdin"):
        refused.append(server.call("reconstruct", [{"path": path}, "crop"]))
    sentences = {(event, answer["error"]) for event, answer in refused}
    assert len(refused) == 11 and len(sentences) == 1
    ((event, sentence),) = sentences
    assert event == "error" and NOT_AN_UPLOAD in sentence


def test_a_result_is_no_upload(server):
    _, (gallery,) = server.call("sample", [1, 1.0, 0])
    event, answer = server.call("reconstruct", [gallery[0]["image"], "crop"])
    assert event == "error" and NOT_AN_UPLOAD in answer["error"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("score", [], "`score` must get 3 values (`image`, `num_noise_draws`, `fit`), got 0."),
        ("score", [None], "`score` must get 3 values (`image`, `num_noise_draws`, `fit`), got 1."),
        ("sample", [1, 1.0, 0, 0], "`sample` must get 3 values (`num_images`, `temperature`, `seed`), got 4."),
        ("sample", [{}, 1.0, 0], "`num_images` must be a whole number from 1 to 36, got an object."),
        ("sample", [1, [[1.0]], 0], "`temperature` must be a number from 0 to 2, got a list."),
        ("sample", [1, 1.0, "7" * 100_000], "`seed` must be a whole number from 0 to 4294967295, got '7777"),
        ("sample", [1, 1.0, 10**4000], "`seed` must be a whole number from 0 to 4294967295, got 1000"),
        ("score", ["cat.png", 1, "crop"], f"`image` {NOT_AN_UPLOAD}"),
        ("score", ["picture", 1, ["crop"]], "`fit` must be one of resize, crop, got ['crop']."),
        ("score", ["picture", 1, None], "`fit` must be one of resize, crop, got None."),
        ("interpolate", [None, "picture", 2], "`image_a` is missing: upload, paste or pick a picture first."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_of_the_wrong_kind_are_answered_by_a_sentence(server, name, data, message):
    data = [server.upload(COFFEE) if value == "picture" else value for value in data]
    event, answer = server.call(name, data)
    assert event == "error" and answer["error"].startswith(message)
    assert answer["error"].endswith(".") and len(answer["error"]) < 200


def test_the_page_names_fields_by_their_labels(server):
    """Each input of the page, with a value that it cannot have."""
    for event, components in functions_of(server):
        for slot, component in enumerate(components):
            data = good_values(server, components)
            data[slot] = {"no": "value"}
            name = "example" if component["type"] == "dataset" else component["props"]["label"]
            check_sentence(server, send(server, event, data)["error"], name)
    (edit,) = (event for event, _ in functions_of(server) if event["api_name"] == "page_reconstruct")
    data = [server.upload(COFFEE), None, "crop", 0.5, 0, 6, 0]
    check_sentence(server, send(server, edit, data)["error"], "Second image, to mix in")


@pytest.mark.parametrize(
    ("route", "content", "status"),
    [
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
        ("queue/join", b'{"data": [], "fn_index": 1}', 422),
        ("queue/join", b'{"data": [], "fn_index": 1, "session_hash": ["a"]}', 422),
        ("cancel", b'{"fn_index": {}}', 422),
        ("upload", b"no form", 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_requests_of_the_wrong_shape_are_answered_by_a_sentence(server, route, content, status):
    answer = server.post(route, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    detail = answer.json()["detail"]
    assert isinstance(detail, str) and detail.endswith(".") and len(detail) < 200


def test_values_may_come_by_name(server):
    posted = server.post("call/v2/sample", json={"num_images": 2, "temperature": 1, "seed": 0})
    url = f"{server.url}/gradio_api/call/v2/sample/{posted.json()['event_id']}"
    assert "event: complete" in httpx.get(url, timeout=60).text


def test_routes_that_the_demo_does_not_need_are_closed(server, private):
    before = set(server.files.rglob("*"))
    session = uuid.uuid4().hex
    send(
        server,
        *next((event, [1, 1, 0, -1]) for event, _ in functions_of(server) if event["api_name"] == "page_sample"),
    )
    for path in ("deep_link", f"deep_link?session_hash={session}", "dev/reload", "stream/a/b/1/playlist-file"):
        assert httpx.get(f"{server.url}/gradio_api/{path}").status_code == 404, path
    for path in ("component_server", "process_recording", "stream/a", "vibe-edit", "run-history/connect", "login"):
        answer = server.post(path, json={"data": [], "fn_name": "ls", "component_id": 1, "session_hash": session})
        assert answer.status_code == 404, path
    recording = {"video": ("a.webm", b"0" * 1000)}
    assert server.post("process_recording", files=recording).status_code == 404
    for path in (f"file={private}", f"file={private.parent}/not there.png", f"file/{private}"):
        assert httpx.get(f"{server.url}/gradio_api/{path}").status_code in (403, 404), path
    grown = {path for path in set(server.files.rglob("*")) - before if path.is_file() and path.suffix != ".png"}
    assert not grown


def test_slow_pictures_hold_up_their_sender_alone(server, tmp_path):
    """Each of these decodes for minutes; a visitor is served while the first ones are still at it."""
    (tmp_path / "slow.jpg").write_bytes(jpeg_of_scans(4000, 3000))
    slow = server.upload(tmp_path / "slow.jpg", "198.51.100.1")
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(server.call, "score", [slow, 1, "crop"], "198.51.100.1") for _ in range(3)]
        picture = server.upload(COFFEE)
        assert server.call("score", [picture, 1, "crop"])[0] == "complete"
        assert not any(answer.done() for answer in answers)
        answers = [answer.result() for answer in answers]
    for event, answer in answers:
        assert event == "error" and answer["error"].startswith("`image` takes too much time or memory to decode")


def test_a_flood_does_not_keep_a_visitor_waiting(server):
    """120 calls that nobody fetches, and 200 that are fetched, of other addresses: the visitor is among the next."""
    for number in range(120):
        answer = server.post("call/sample", f"203.0.113.{number % 4}", json={"data": [36, 1.0, number]})
        assert answer.status_code == 200
    served, done = [], threading.Event()

    def flood(number: int) -> None:
        if not done.is_set():
            served.append(server.call("sample", [36, 1.0, number], "198.51.100.7"))

    with ThreadPoolExecutor(40) as pool:
        for number in range(200):
            pool.submit(flood, number)
        deadline = time.monotonic() + 60
        while not any(event == "complete" for event, _ in list(served)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(3):
            before = sum(event == "complete" for event, _ in list(served))
            assert server.call("sample", [1, 1.0, 0], "192.0.2.1")[0] == "complete"
            # One that was being computed, one whose turn had come, and what the answer's way takes.
            assert sum(event == "complete" for event, _ in list(served)) - before <= 4
        done.set()
    # The flood is told why it is not served.
    refusals = {answer["error"] for event, answer in served if event == "error"}
    assert all(re.match(r"You have 24 calls in line, and at most 24 may wait", sentence) for sentence in refusals)
    assert refusals


def test_a_flood_of_page_loads_lets_a_visitor_s_page_through(server):
    address = server.url.removeprefix("http://").split(":")
    connections = []
    for _ in range(150):
        connections.append(socket.create_connection(address))
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 198.51.100.8\r\nConnection: close\r\n\r\n"
        connections[-1].sendall(request)
    page = httpx.get(server.url, headers={"X-Forwarded-For": "192.0.2.8"}, timeout=60)
    answered, _, _ = select.select(connections, [], [], 0)
    assert page.status_code == 200 and len(answered) < 100
    for connection in connections:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        connection.close()


def test_calls_whose_clients_have_gone_are_not_computed(server):
    """24 calls, all that one client may have in line, whose readers disconnect: the client's next call is served."""
    client = "198.51.100.77"
    events = [server.post("call/sample", client, json={"data": [36, 1.0, number]}) for number in range(24)]
    address = server.url.removeprefix("http://").split(":")
    connections = []
    for event in events:
        connections.append(socket.create_connection(address))
        request = f"GET /gradio_api/call/sample/{event.json()['event_id']} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connections[-1].sendall(request.encode())
    for connection in connections:
        connection.recv(100)  # the head of the answer: the stream is open
    event, answer = server.call("sample", [1, 1.0, 0], client)
    assert event == "error" and answer["error"].startswith("You have 2")
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + 60
    while (answer := server.call("sample", [1, 1.0, 0], client))[0] != "complete":
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    gone = httpx.get(f"{server.url}/gradio_api/call/sample/{events[-1].json()['event_id']}")
    assert gone.status_code == 404 and gone.json()["detail"].startswith("There is no such call")


def half_sent(server, client: str) -> socket.socket:
    """An upload whose body never ends, with a part of the file in it."""
    connection = socket.create_connection(server.url.removeprefix("http://").split(":"))
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(10_000)
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {client}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n"
    )
    connection.sendall(head.encode() + part)
    return connection


def test_half_sent_uploads_do_not_pile_up(folder):
    (folder / "half").mkdir()
    with SpaceServer(folder / "half", HALF_SENT) as server:
        connections = [half_sent(server, f"198.51.100.{number % 3}") for number in range(300)]
        assert re.match(rb"HTTP/1.1 (429|503)", answer_of(connections[-1]))
        assert len(server.received()) <= 12
        # Uploads that have come to a halt make room for one that has not, before their time is over.
        picture = upload_in_the_end(server)
        assert server.call("score", [picture, 1, "crop"])[0] == "complete"
        halted = [answer_of(connection) for connection in connections[:6]]
        assert all(b"had come to a halt" in answer for answer in halted), halted
        wait_for_half_files(server)
        # A client that closes the connection leaves nothing either.
        for connection in [half_sent(server, "198.51.100.9") for _ in range(8)]:
            connection.close()
        wait_for_half_files(server)
        assert server.call("score", [picture, 1, "crop"])[0] == "complete"
        for connection in connections:
            connection.close()
        assert "Traceback" not in server.logged()


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


def test_files_go_after_their_time_and_have_a_quota(folder, good):
    (folder / "short").mkdir()
    with SpaceServer(folder / "short", SHORT) as server:
        # More results than the quota: the oldest go before their time.
        pictures = [server.upload(good["plain.png"], "192.0.2.1")]
        for seed in range(3):
            assert server.call("sample", [36, 1.0, seed])[0] == "complete"
        assert server.call("score", [pictures[0], 1, "resize"])[0] == "complete"
        # A client's quota.
        for name in ("alpha.webp", "16bit.png"):
            pictures.append(server.upload(good[name], "192.0.2.1"))
        answer = server.post("upload", "192.0.2.1", files={"files": b"one more"})
        assert answer.status_code == 429
        assert answer.json()["detail"].startswith("You have uploaded 3 files of 0 MB, and at most 3 files of 200 MB")
        assert server.upload(good["no_name"], "192.0.2.2")
        deadline = time.monotonic() + 60
        while left := server.received():
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
        # A picture that is gone is asked for again, in words, and there is room again.
        event, answer = server.call("score", [pictures[0], 1, "resize"])
        assert event == "error" and NOT_AN_UPLOAD in answer["error"]
        picture = server.upload(good["plain.png"], "192.0.2.1")
        assert server.call("score", [picture, 1, "resize"])[0] == "complete"
        # The examples stay.
        example = next(path for path in server.files.rglob("1_coffee.png") if "examples" in path.parts)
        event, _ = server.call("score", [{"path": str(example)}, 1, "resize"])
        assert event == "complete"


def test_results_do_not_fill_the_disk_under_load(folder):
    (folder / "load").mkdir()
    settings = "DELETE_CACHE = (0.2, 3600); QUOTA = Quota(result_files=40)"
    with SpaceServer(folder / "load", settings) as server:
        for seed in range(6):
            event, (gallery,) = server.call("sample", [36, 1.0, seed])
            assert event == "complete"
        deadline = time.monotonic() + 60
        while len(server.received()) > 40:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # The newest are the ones that stay.
        assert all(httpx.get(item["image"]["url"]).status_code == 200 for item in gallery)
    # A server that ends leaves nothing.
    assert server.process.returncode == 0 and not any(path.is_file() for path in server.files.rglob("*"))
