"""Training from a stream: the image at each index, for every sharding and after every resume."""

import io
import logging
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jet_hf import JetImageProcessor
from jet_hf.data import (
    BatchSharding,
    DataSource,
    ReadOptions,
    UndecodableImagesError,
    UnknownSplitError,
    stream_batches,
)


NUM_IMAGES, BATCH_SIZE = 21, 8
PROCESSOR = JetImageProcessor(size=2)


def encode(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (number, number, number)).save(file, "PNG")
    return file.getvalue()


def write_images(path, images: list[bytes | None], num_files: int = 3) -> DataSource:
    """Parquet files of encoded images."""
    path.mkdir(exist_ok=True)
    for i, part in enumerate(np.array_split(np.arange(len(images)), num_files)):
        files = [{"bytes": images[j], "path": f"{j:02d}.png"} for j in part]
        pq.write_table(pa.table({"image": files, "label": part}), path / f"train-{i:05d}-of-{num_files:05d}.parquet")
    return DataSource(path=str(path), streaming=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), [encode(i) for i in range(NUM_IMAGES)])


def stream(source, num_processes: int = 1, num_micro_batches: int = 1, num_steps: int = 9, **options) -> list[int]:
    """The number of the image at each index of a run's stream, merged from all processes."""
    steps = range(options.pop("start_step", 0), num_steps)
    buffer_size = options.pop("shuffle_buffer_size", 6)
    found = {}
    for process_index in range(num_processes):
        sharding = BatchSharding(BATCH_SIZE, num_micro_batches, process_index, num_processes)
        batches = stream_batches(source, "train", PROCESSOR, ReadOptions(**options), sharding, steps, buffer_size)
        count = 0
        for batch in batches:
            count += 1
            assert batch.pixels.dtype == torch.uint8 and batch.pixels.shape == (sharding.size, 3, 2, 2)
            assert batch.indices.dtype == torch.int64 and (batch.pixels == batch.pixels[:, :1, :1, :1]).all()
            assert not found.keys() & set(batch.indices.tolist())
            found |= dict(zip(batch.indices.tolist(), batch.pixels[:, 0, 0, 0].tolist(), strict=True))
        assert count == len(batches) == len(steps) * num_micro_batches
    assert sorted(found) == list(range(steps.start * BATCH_SIZE, num_steps * BATCH_SIZE))
    return [found[index] for index in sorted(found)]


@pytest.fixture(scope="module")
def uninterrupted(source):
    """The images of nine steps in one process: three epochs and the start of a fourth."""
    return stream(source)


def test_every_epoch_contains_every_image_once_in_a_different_order(source, uninterrupted):
    epochs = [uninterrupted[start : start + NUM_IMAGES] for start in (0, 21, 42)]
    assert all(sorted(epoch) == list(range(NUM_IMAGES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(NUM_IMAGES)]}) == 4
    assert len(set(uninterrupted[63:])) == 9
    assert stream(source, num_steps=2, seed=1) != uninterrupted[:16]
    assert stream(source, num_steps=3, shuffle_buffer_size=1) == [*range(NUM_IMAGES), 0, 1, 2]


@pytest.mark.parametrize(("num_processes", "num_micro_batches"), [(2, 1), (1, 4)])
def test_the_order_depends_on_neither_processes_nor_micro_batches(
    source, uninterrupted, num_processes, num_micro_batches
):
    assert stream(source, num_processes, num_micro_batches) == uninterrupted


@pytest.mark.parametrize(("start_step", "num_processes", "num_micro_batches"), [(3, 2, 2), (8, 1, 1)])
def test_a_resumed_run_gets_the_rest_of_the_stream(
    source, uninterrupted, start_step, num_processes, num_micro_batches
):
    rest = stream(source, num_processes, num_micro_batches, start_step=start_step)
    assert rest == uninterrupted[start_step * BATCH_SIZE :]


def test_a_resumed_run_does_not_decode_the_consumed_images(tmp_path):
    source = write_images(tmp_path, [b"broken" if i < 16 else encode(i) for i in range(24)])
    options = {"num_steps": 3, "start_step": 2, "shuffle_buffer_size": 1, "max_undecodable_share": 0}
    assert stream(source, **options) == list(range(16, 24))


# The third batch ends with the first epoch's last image, 20, and the second epoch's 0, 1 and 2.
BROKEN = {
    "two in a row": ([5, 6], {5: 4, 6: 4}),
    "the first and the last of a batch": ([8, 15], {8: 14, 15: 14}),
    "across an epoch's end": ([0, 20], {0: 7, 20: 19, 21: 19}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_undecodable_image_is_named_and_replaced_by_the_one_before_it(tmp_path, case, capfd):
    broken, replaced = BROKEN[case]
    source = write_images(tmp_path / "images", [b"broken" if i in broken else encode(i) for i in range(NUM_IMAGES)])
    options = {"num_steps": 3, "shuffle_buffer_size": 1, "max_undecodable_share": 0.5}
    expected = [replaced.get(index, index % NUM_IMAGES) for index in range(24)]
    logging.getLogger("jet_hf").addHandler(handler := logging.StreamHandler())
    try:
        assert stream(source, **options) == expected
    finally:
        logging.getLogger("jet_hf").removeHandler(handler)
    lines = [line for line in capfd.readouterr().err.splitlines() if "cannot be decoded" in line]
    assert len(lines) == sum(index % NUM_IMAGES in broken for index in range(24))
    if case == "two in a row":
        assert re.search(r"cannot be decoded .*\(1 of 6\): 05\.png: Pillow does not recognize", lines[0])
    assert stream(source, 2, 2, **options) == expected


@pytest.mark.parametrize(
    ("broken", "share", "message"),
    [
        ([5], 0.0, r"1 of 6 images of split 'train' of .*the allowed share of 0: .*the first are: .*05\.png"),
        (range(1, 21, 2), 0.3, r"11 of \d+ images of .*the allowed share of 0\.3"),
        (range(5, 21), 1.0, r"none of 8 consecutive images of split 'train' of .* can be decoded"),
    ],
)
def test_too_many_undecodable_images_stop_the_run(tmp_path, broken, share, message):
    source = write_images(tmp_path, [b"broken" if i in broken else encode(i) for i in range(NUM_IMAGES)])
    with pytest.raises(UndecodableImagesError, match=message):
        stream(source, shuffle_buffer_size=1, max_undecodable_share=share)
    assert not multiprocessing.active_children()


def test_ending_the_iteration_early_ends_the_worker(source):
    batches = iter(stream_batches(source, "train", PROCESSOR, ReadOptions(), BatchSharding(BATCH_SIZE), range(10**6)))
    next(batches)
    (worker,) = multiprocessing.active_children()
    batches.close()
    worker.join(timeout=30)
    assert not worker.is_alive()


def test_a_stream_leaves_the_random_state_of_torch_untouched(source):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    stream(source, num_steps=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_map_style_sources_are_streamed_too(source, tmp_path):
    features = datasets.Features({"pixels": datasets.Array3D((3, 2, 2), "uint8")})
    rows = {"pixels": [np.full((3, 2, 2), i, np.uint8) for i in range(NUM_IMAGES)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    saved = DataSource(path=str(tmp_path / "saved"))
    images = stream(saved)
    assert sorted(images[:21]) == sorted(images[21:42]) == list(range(NUM_IMAGES))
    assert stream(saved, 2, 2) == images and images[:21] != images[21:42]
    for each in (saved, source):
        assert set(stream(each, num_steps=3, max_images=5)) == set(range(5))


def nothing():
    yield from ()


@pytest.mark.parametrize("map_style", [False, True])
def test_a_stream_without_images_is_an_error(source, monkeypatch, map_style):
    features = datasets.Features({"image": datasets.Image(decode=False)})
    empty = datasets.IterableDataset.from_generator(nothing, features=features)
    if map_style:
        empty = datasets.Dataset.from_dict({"image": []}, features)
    monkeypatch.setattr("jet_hf.data.streaming.open_split", lambda *_, **__: empty)
    with pytest.raises(ValueError, match=r"^split 'train' of .* holds no images\.$"):
        stream(source)


def test_a_file_without_rows_is_named(tmp_path):
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"^split 'train' of .* cannot be read: "):
        stream(DataSource(path=str(tmp_path)))


def test_errors_that_are_known_from_the_start_are_raised_at_once(source):
    with pytest.raises(UnknownSplitError, match="no split 'validation'; it has train"):
        stream_batches(source, "validation", PROCESSOR, ReadOptions(), BatchSharding(BATCH_SIZE), range(1))
    wrong = DataSource(path=source.path, image_column="label")
    with pytest.raises(ValueError, match="`image_column` 'label' holds no images"):
        stream_batches(wrong, "train", PROCESSOR, ReadOptions(), BatchSharding(BATCH_SIZE), range(1))


def test_a_shuffled_stream_replaces_undecodable_images_alike_in_all_processes(tmp_path):
    broken = (0, 1, 5, 8, 15, 20)
    source = write_images(tmp_path / "images", [b"broken" if i in broken else encode(i) for i in range(NUM_IMAGES)])
    images = stream(source, max_undecodable_share=0.5)
    assert not set(broken) & set(images)
    assert stream(source, 2, 2, max_undecodable_share=0.5) == images
    assert stream(source, start_step=5, max_undecodable_share=0.5) == images[5 * BATCH_SIZE :]


def test_arrays_are_streamed_from_files(tmp_path):
    shape = (NUM_IMAGES, 3, 4, 4)  # pixels already: otherwise 4 channels could be meant
    rows = np.broadcast_to(np.arange(NUM_IMAGES, dtype=np.uint8)[:, None, None, None], shape)
    features = datasets.Features({"image": datasets.Array3D(shape[1:], "uint8")})
    datasets.Dataset.from_dict({"image": list(rows)}, features=features).to_parquet(tmp_path / "train.parquet")
    source = DataSource(path=str(tmp_path / "train.parquet"))
    sharding, processor = BatchSharding(BATCH_SIZE), JetImageProcessor(size=4)
    batches = list(stream_batches(source, "train", processor, ReadOptions(), sharding, range(6), 6))
    images = torch.cat([batch.pixels[:, 0, 0, 0] for batch in batches]).tolist()
    assert sorted(images[:21]) == sorted(images[21:42]) == list(range(NUM_IMAGES)) and images[:21] != images[21:42]
    with pytest.raises(ValueError, match="does not show which side is its channels"):
        list(stream_batches(source, "train", JetImageProcessor(size=2), ReadOptions(), sharding, range(1)))


def test_a_terminated_job_still_gets_batches(source, uninterrupted):
    batches = iter(stream_batches(source, "train", PROCESSOR, ReadOptions(), BatchSharding(BATCH_SIZE), range(9), 6))
    images = next(batches).pixels[:, 0, 0, 0].tolist()
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)  # which every process of a preempted job receives
    for batch in batches:
        images += batch.pixels[:, 0, 0, 0].tolist()
    assert images == uninterrupted


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def report_worker(source: DataSource, connection) -> None:
    """Read a stream for ever, and send the id of the process that decodes it."""
    for _ in stream_batches(source, "train", PROCESSOR, ReadOptions(), BatchSharding(8), range(10**9)):
        (worker,) = multiprocessing.active_children()
        connection.send(worker.pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_killed_run_leaves_no_process(source):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    run = multiprocessing.get_context("fork").Process(target=report_worker, args=(source, sender))
    run.start()
    try:
        assert receiver.poll(60)
        worker = receiver.recv()
        assert is_running(worker)
    finally:
        run.kill()
        run.join()
    deadline = time.monotonic() + 60
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)
