"""Queues, storage, decoding and undocumented parts of Gradio, without a server."""

import asyncio
import contextlib
import os
import threading

import gradio as gr
import pytest
import uploads
from endpoints import Service
from fairness import CallLimits, Calls, FairQueue, RefusedCallError, client_of
from gradio.state_holder import SessionState
from gradio_internals import GuardedBlocks, forget_files, forget_unread, has_results, remember_configurations
from pictures import jpeg_of_scans, photograph
from space_server import SPACE
from storage import Quota, QuotaError, Storage, delete_abandoned
from uploads import UnreadableImageError, read_upload


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))


async def serve(limits: CallLimits, clients: list[tuple[str, str]], unread: tuple[int, ...] = ()) -> list[int | str]:
    """Admit calls of (client, session) to a queue in this order, and return their numbers in the order of service."""
    calls = Calls(limits)
    queue, served, gate = FairQueue(calls, slots=1, per_client=1), [], asyncio.Event()

    async def visit(number: int, client: str, session: str) -> None:
        try:
            with calls.admit(client, session, str(number), threading.Event()) as call:
                await gate.wait()
                async with queue.turn(call):
                    served.append(number)
                    await asyncio.sleep(0)
        except RefusedCallError as error:
            served.append(str(error))

    tasks = [asyncio.create_task(visit(number, *client)) for number, client in enumerate(clients)]
    await asyncio.sleep(0)
    with contextlib.ExitStack() as stack:
        for number in range(len(clients)):
            if number not in unread:
                stack.enter_context(calls.reading(str(number)))
        gate.set()
        await asyncio.gather(*tasks)
    assert calls.calls == [] and queue.running == [] and not queue.waiting
    return served


def test_clients_take_turns_and_so_do_their_sessions():
    flood, visitor = ("a", ""), ("b", "")
    assert asyncio.run(serve(CallLimits(), [flood] * 5 + [visitor] * 2)) == [0, 5, 1, 6, 2, 3, 4]
    pages = [("a", "x"), ("a", "x"), ("a", "x"), ("a", "y"), ("b", "z")]
    assert asyncio.run(serve(CallLimits(), pages)) == [0, 4, 3, 1, 2]


def test_one_client_cannot_take_all_slots():
    async def run() -> list[list[int]]:
        calls, served, release = Calls(CallLimits()), [], asyncio.Event()
        queue = FairQueue(calls, slots=3, per_client=2)

        async def visit(number: int, client: str) -> None:
            with calls.admit(client, "", str(number), threading.Event()) as call, calls.reading(str(number)):
                async with queue.turn(call):
                    served.append(number)
                    await release.wait()

        tasks = [asyncio.create_task(visit(number, client)) for number, client in enumerate("aaab")]
        while len(served) < 3:
            await asyncio.sleep(0)
        before = list(served)
        release.set()
        await asyncio.gather(*tasks)
        return [before, served]

    assert asyncio.run(run()) == [[0, 1, 3], [0, 1, 3, 2]]


def test_calls_without_a_reader_are_skipped_and_dropped():
    served = asyncio.run(serve(CallLimits(unread_seconds=0.1), [("a", "")] * 4, unread=(0, 2)))
    assert served[:2] == [1, 3]
    assert served[2:] == ["Nobody was waiting for the result of this call."] * 2


def test_the_calls_of_a_client_and_of_a_session_are_limited():
    limits = CallLimits(total=6, per_client=4, per_session=2)
    clients = [("a", "")] * 3 + [("a", str(n)) for n in range(3)] + [("b", str(n)) for n in range(3)]
    served = asyncio.run(serve(limits, clients))
    assert sorted(number for number in served if isinstance(number, int)) == [0, 1, 3, 4, 6, 7]
    assert [sentence for sentence in served if isinstance(sentence, str)] == [
        "You have 2 calls in line, and at most 2 may wait: try again soon.",
        "Your address has 4 calls in line, and at most 4 may wait: try again soon.",
        "This server has 6 calls in line, and at most 6 may wait: try again soon.",
    ]


def test_a_call_ends_when_its_reader_leaves_and_a_new_call_displaces_an_unread_one(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fairness.time.monotonic", lambda: now[0])
    calls = Calls(CallLimits(per_session=1, unread_seconds=20, gone_seconds=2))
    with calls.admit("a", "", "first", threading.Event()) as first:
        with calls.reading("first"):
            now[0] = 100
            calls.check_wanted(first)
        now[0] = 101
        calls.check_wanted(first)
        now[0] = 103
        with pytest.raises(RefusedCallError, match="Nobody was waiting"):
            calls.check_wanted(first)
        with calls.admit("a", "", "second", threading.Event()) as second:
            assert first.stopped.is_set() and not second.stopped.is_set()
            with calls.reading("second"), pytest.raises(RefusedCallError):
                calls.admit("a", "", "third", threading.Event()).__enter__()
    assert calls.wanted_readers() == set()


def test_a_household_is_one_client():
    assert client_of("2001:db8:1:2:aaaa::1") == client_of("2001:db8:1:2:bbbb::2") != client_of("2001:db8:1:3::1")
    assert client_of("192.0.2.1") == "192.0.2.1" and client_of(None) == "" and client_of("testclient") == "testclient"


def test_the_model_computes_one_call_at_a_time_whatever_gradio_cancels():
    """A call that is canceled during its computation holds the model until the computation ends."""
    computing, most, release = [], [], threading.Event()

    def compute(number):
        computing.append(number)
        most.append(len(computing))
        release.wait(30)
        computing.remove(number)
        return number

    class Request(gr.Request):
        def __init__(self, session):
            super().__init__(session_hash=session, url=gr.Request(path="/queue/join"), client=gr.Request(host="a"))

    async def run():
        service = Service(None, CallLimits())
        endpoint = service.endpoint(compute)
        with service.calls.reading("x"):
            first = asyncio.create_task(endpoint(1, Request("x")))
            while not computing:
                await asyncio.sleep(0.01)
            first.cancel()
            second = asyncio.create_task(endpoint(2, Request("x")))
            await asyncio.sleep(0.1)
            release.set()
            assert await second == 2
        with contextlib.suppress(asyncio.CancelledError):
            await first
        assert first.cancelled() and not service.tasks

    asyncio.run(run())
    assert most == [1, 1]


def test_decoding_ends_in_time(tmp_path, monkeypatch):
    (tmp_path / "slow.jpg").write_bytes(jpeg_of_scans(4000, 3000))
    monkeypatch.setattr(uploads, "DECODE_SECONDS", 1)
    with pytest.raises(UnreadableImageError, match="`image` takes too much time or memory to decode"):
        read_upload(tmp_path / "slow.jpg")


def test_special_files_are_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(SPACE / "examples" / "1_coffee.png")
    sentences = set()
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, tmp_path / "nothing", "/dev/zero", "nul\0"):
        with pytest.raises(UnreadableImageError) as caught:
            read_upload(path)
        sentences.add(str(caught.value))
    assert len(sentences) == 1


def test_the_oldest_results_go_first_and_uploads_only_after_their_time(tmp_path):
    storage = Storage(1000, Quota(result_files=2, result_bytes=250))
    (example,) = storage.add_permanent([SPACE / "examples" / "4_smooth.png"], "examples")
    paths = {name: storage.folder / name / "a.png" for name in ("upload", "oldest", "old", "new", "link")}
    for name, path in paths.items():
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        if name == "upload":
            storage.add_uploads([str(path)], "a")
    deleted = []
    storage.sweep(deleted.extend)
    assert deleted == [str(paths["oldest"]), str(paths["old"])] and not paths["old"].parent.exists()
    assert storage.holds(str(paths["upload"])) and storage.holds(example) and not storage.holds(str(paths["new"]))
    storage.seconds = -1
    storage.sweep()
    assert not storage.holds(str(paths["upload"])) and storage.holds(example)
    assert [path.name for path in storage.folder.rglob("*") if path.is_file()] == ["4_smooth.png"]


def test_uploads_have_a_quota_for_each_client_and_for_all(tmp_path):
    storage = Storage(1000, Quota(client_bytes=300, client_files=3, upload_bytes=500, upload_files=4))

    def add(client: str, number: int) -> None:
        storage.check_room(client, 100)
        path = storage.folder / f"{client}{number}.png"
        path.write_bytes(bytes(100))
        storage.add_uploads([str(path)], client)

    for number in range(3):
        add("a", number)
    with pytest.raises(QuotaError, match=r"^You have uploaded 3 files of 0 MB, and at most 3 files of 0 MB are kept"):
        add("a", 3)
    with pytest.raises(QuotaError, match=r"^You have uploaded 0 files"):
        storage.check_room("b", 301)
    add("b", 0)
    with pytest.raises(QuotaError, match=r"^Visitors have uploaded 4 files"):
        add("c", 0)
    # Many files may come in one request. Files that are too many are deleted, unless they were uploaded before.
    paths = [storage.folder / f"b{number}.png" for number in range(4)]
    for path in paths[1:]:
        path.write_bytes(bytes(100))
    with pytest.raises(QuotaError, match=r"^You have uploaded 1 files"):
        storage.add_uploads([str(path) for path in paths], "b")
    assert [path.exists() for path in paths] == [True, False, False, False]
    # A file outside of the folder is not registered.
    storage = Storage(1000, Quota())
    outside = tmp_path / "outside.png"
    photograph().save(outside)
    storage.add_uploads([str(outside)], "d")
    assert not storage.holds(str(outside))


def test_a_folder_of_others_is_left_alone(tmp_path):
    """`GRADIO_TEMP_DIR` may contain other files."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.png").write_bytes(b"precious")
    storage = Storage(-1, Quota(result_files=0))
    (storage.folder / "a.png").write_bytes(b"result")
    storage.sweep()
    assert list(storage.folder.iterdir()) == [] and (tmp_path / "files" / "thesis.png").exists()
    folder = storage.folder
    del storage
    assert not folder.exists()


def test_folders_of_killed_servers_are_deleted(tmp_path):
    running = Storage(1000, Quota())
    parent = running.folder.parent
    (parent / "jet-demo-killed" / "uploads").mkdir(parents=True)
    (parent / "jet-demo-killed" / "uploads" / "a.png").write_bytes(b"upload")
    (tmp_path / "elsewhere").mkdir()
    (parent / "jet-demo-link").symlink_to(tmp_path / "elsewhere")
    (parent / "jet-demo-notes.txt").write_text("no folder")
    started = Storage(1000, Quota())
    left = {"jet-demo-link", "jet-demo-notes.txt", running.folder.name, started.folder.name}
    assert {path.name for path in parent.iterdir()} == left and (tmp_path / "elsewhere").exists()


def test_servers_that_start_at_once_leave_each_other_their_folders(tmp_path):
    parent, done = Storage(1000, Quota()).folder.parent, threading.Event()

    def start_others() -> None:
        while not done.is_set():
            delete_abandoned(parent)

    others = threading.Thread(target=start_others)
    others.start()
    started = [Storage(1000, Quota()) for _ in range(300)]
    done.set()
    others.join()
    assert all(storage.folder.is_dir() for storage in started)


def test_gradio_still_keeps_files_and_results_that_the_demo_forgets():
    with GuardedBlocks() as page:
        gr.Button().click(lambda: None)
    page.queue()
    page.upload_file_set.update(["gone.png", "there.png"])
    forget_files(page, ["gone.png"])
    assert page.upload_file_set == {"there.png"}
    queue = page._queue
    for session in ("read", "unread"):
        queue.pending_event_ids_session[session] = {session}
        queue.pending_messages_per_session[session] = asyncio.Queue()
    unread = forget_unread(page, {"read"}, set())
    assert unread == {"unread"} and has_results(page, "unread")
    forget_unread(page, {"read"}, unread)
    assert set(queue.pending_event_ids_session) == {"read"}
    assert has_results(page, "read") and not has_results(page, "unread")


def test_sessions_get_equal_configurations_and_share_no_values():
    with GuardedBlocks() as page:
        box = gr.Textbox("hello", label="Text")
        box.submit(lambda text: text, box, gr.Gallery(columns=3))
    derived = SessionState(page).config_values
    remember_configurations(page)
    one, other = SessionState(page), SessionState(page)
    one._update_value_in_config(box._id, "mine")
    assert one.config_values[box._id]["props"]["value"] == "mine"
    assert other.config_values == SessionState(page).config_values == derived
