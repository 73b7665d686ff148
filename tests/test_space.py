"""Functions of the demo, without a server."""

import ast
import functools
import http.server
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import types
from pathlib import Path

import app
import numpy as np
import pytest
import torch
import yaml
import zero_gpu
from components import ChoiceInput, ChoiceMenu, NumberField, NumberInput, check_input, image_input
from conftest import ROOT, tiny_model
from jet_demo import HeldOutScores, JetDemo, load_scores
from packaging.requirements import Requirement
from pictures import photograph
from storage import Quota, Storage
from uploads import MAX_FILE_SIZE, UnreadableImageError, read_upload

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.baselines import codec_bits_per_dim
from jet_hf.analysis.sampling import sample_images


SPACE = ROOT / "space"
SIZE = 8
SCORES = [3.0, 4.0, 5.0, 20.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="module")
def demo(folder):
    tiny_model().save_pretrained(folder / "model")
    JetImageProcessor(size=SIZE).save_pretrained(folder / "model")
    content = {"dataset": "things", "split": "test", "num_images": 4, "num_noise_samples": 1, "bits_per_dim": SCORES}
    (folder / "model" / "held_out_scores.json").write_text(json.dumps(content))
    return JetDemo(folder / "model")


def test_a_score_is_the_model_s_and_its_parts_add_up(demo, good):
    image = demo.load(good["plain.png"])
    score = demo.score(image, 5)
    result = score.to_dict()
    pixels = JetImageProcessor(size=SIZE).to_uint8(photograph())
    assert np.array_equal(image.pixels.numpy(), pixels)
    # The mean over many other noise draws lies within a few standard errors of both.
    with torch.no_grad():
        pixel_values = torch.from_numpy(pixels).expand(2000, *pixels.shape) / 127.5 - 1
        draws = demo.model(pixel_values, generator=torch.Generator().manual_seed(1)).bits_per_dim.double()
    assert abs(result["bits_per_dim"] - draws.mean().item()) < 4 * draws.std().item() / math.sqrt(5)
    assert result["standard_error"] == pytest.approx(score.draws.std(ddof=1) / math.sqrt(5))
    assert 0.2 < result["standard_error"] / (draws.std().item() / math.sqrt(5)) < 3
    assert result["num_dims"] == 3 * SIZE * SIZE and result["num_noise_draws"] == 5
    assert result["log_likelihood"] == pytest.approx(-result["bits_per_dim"] * result["num_dims"] * math.log(2))
    assert result["png_bits_per_dim"] == codec_bits_per_dim(pixels[None], "png")[0]
    assert result["webp_bits_per_dim"] == codec_bits_per_dim(pixels[None], "webp")[0]
    maps = [np.array(result[f"{term}_bits_per_dim_of_patches"]) for term in ("latent", "log_det")]
    assert [values.shape for values in maps] == [(4, 4), (4, 4)]
    assert sum(maps).mean() == pytest.approx(result["bits_per_dim"], abs=1e-5)
    assert 3 < result["bits_per_dim"] < 20
    assert result["share_of_held_out_above"] == np.mean(np.array(SCORES) > result["bits_per_dim"])
    assert json.loads(json.dumps(result)) == result
    assert demo.score(image, 5).to_dict() == result
    assert demo.score(image, 1).to_dict()["standard_error"] is None


def test_a_crop_takes_the_central_pixels_and_a_resize_averages_the_square(demo, good):
    path, image = good["plain.png"], photograph()
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    expected = np.asarray(image.crop((left, top, left + SIZE, top + SIZE))).transpose(2, 0, 1)
    assert np.array_equal(demo.load(path, "crop").pixels.numpy(), expected)
    square = np.asarray(image.crop((4, 0, 44, 40)), dtype=np.float64)
    means = square.reshape(SIZE, 5, SIZE, 5, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(demo.load(path, "resize").pixels.numpy() - means).max() <= 0.5001


def test_images_of_every_kind_equal_their_plain_version(demo, good, tmp_path, monkeypatch):
    monkeypatch.setattr("jet_demo.read_upload", functools.cache(read_upload))  # each file is decoded once
    photograph().convert("L").convert("RGB").save(tmp_path / "gray.png")
    for fit in ("resize", "crop"):
        plain = demo.load(good["plain.png"], fit).pixels.numpy().astype(int)
        gray = demo.load(tmp_path / "gray.png", fit).pixels.numpy().astype(int)
        fitted = {name: demo.load(path, fit) for name, path in good.items()}
        for name, result in fitted.items():
            assert result.pixels.shape == (3, SIZE, SIZE) and result.pixels.dtype == torch.uint8, name
        for name, expected, tolerance in (
            ("no_name", plain, 0),
            ("rotated.jpg", plain, 6),
            ("junk_exif.jpg", plain, 6),
            ("broken_exif.jpg", plain, 6),
            ("16bit.png", gray, 1),
            ("gray_alpha.png", gray, 1),
            ("cmyk.jpg", plain, 40),
        ):
            assert np.abs(fitted[name].pixels.numpy() - expected).max() <= tolerance, name
        assert "only the first" in fitted["animated.gif"].notes[0]
        for name in ("one_pixel.png", "thin.png"):
            assert "enlarged" in fitted[name].notes[0]
        assert fitted["plain.png"].notes == ()


def test_files_that_are_no_usable_images_are_refused_with_a_sentence(demo, bad, tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    refused = bad | {"huge.png": (tmp_path / "huge.png", "must have at most 20 MB, got 20.0 MB")}
    for path, message in refused.values():
        with pytest.raises(UnreadableImageError, match=r"^`image_a` ") as caught:
            demo.load(path, name="image_a")
        assert message in str(caught.value) and str(path.parent) not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__cause__ is None


def test_samples_equal_those_of_the_package_and_the_steps_end_with_them(demo):
    images = demo.sample(5, 0.7, 3)
    expected = sample_images(demo.model, demo.processor, 5, 0.7, 3)
    assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]
    looks = list(demo.sample_steps(5, 0.7, 3, num_looks=5))
    assert [done for done, _ in looks] == [0, 1, 2, 3, 4, 5]
    assert [image.tobytes() for image in looks[-1][1]] == [image.tobytes() for image in images]


def test_simultaneous_calls_do_not_affect_each_other(demo):
    alone = [[image.tobytes() for image in demo.sample(3, 1.0, seed)] for seed in range(6)]
    together = [None] * 6

    def call(seed):
        together[seed] = [image.tobytes() for image in demo.sample(3, 1.0, seed)]

    before = torch.random.get_rng_state()
    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_reconstruction_equals_the_original(demo, good):
    image = demo.load(good["plain.png"], "crop")
    original, latents, decoded, measured = demo.reconstruct(image)
    assert measured["bytes_equal"] is True and 0 < measured["max_abs_error"] < 1e-4
    assert original.tobytes() == decoded.tobytes() != demo.show_latents(latents).tobytes()
    assert np.array_equal(np.asarray(original), image.pixels.numpy().transpose(1, 2, 0))


def test_edits_change_nothing_at_zero_and_everything_at_one(demo, good):
    first, second = (demo.load(good[name]) for name in ("plain.png", "bilevel.png"))
    own, other = (demo.reconstruct(image)[0].tobytes() for image in (first, second))
    latents = demo.reconstruct(first)[1]

    def edited(**fields) -> bytes:
        return demo.edit(latents, **fields).tobytes()

    assert edited() == own
    assert edited(other=second, mix=1) == other
    assert edited(other=second, mix=0.5) not in (own, other)
    fresh = demo.edit(latents, noise=1, seed=7)
    assert np.abs(np.asarray(fresh).astype(int) - np.asarray(demo.sample(1, 1.0, 7)[0])).max() <= 1
    assert edited(truncation=0) == demo.sample(1, 0.0, 0)[0].tobytes()
    assert edited(truncation=1) not in (own, edited(truncation=0))
    images = demo.interpolate(first, second, 4)
    assert [images[0].tobytes(), images[-1].tobytes()] == [own, other] and len(images) == 4


def test_inputs_check_their_values(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    storage = Storage(1000, Quota())
    whole = NumberInput(1, 36, 4, precision=0, label="num_images")
    real = NumberInput(0, 2, 1, label="temperature")
    seed = NumberField(0, precision=0, minimum=0, maximum=2**32 - 1, label="seed")
    fit = ChoiceInput(["resize", "crop"], label="fit")
    label = ChoiceMenu([("all in turn", -1), ("cat", 0)], label="Class")
    image, optional = image_input("image", storage), image_input("other", storage, optional=True)
    for component, value, expected in (
        (whole, 36, 36), (whole, 4.0, 4), (real, 2, 2.0), (seed, 2**32 - 1, 2**32 - 1), (fit, "crop", "crop"),
        (label, -1, -1), (optional, None, None),
    ):  # fmt: skip
        checked = check_input(component, value)
        assert checked == expected and type(checked) is type(expected)
    for component, value, message in (
        *((whole, value, f"`num_images` must be a whole number from 1 to 36, got {shown}") for value, shown in (
            (0, "0"), (37, "37"), (1.5, "1.5"), (True, "True"), ("4", "'4'"), (None, "None"), ({}, "an object"),
        )),
        *((real, value, f"`temperature` must be a number from 0 to 2, got {shown}") for value, shown in (
            (-0.1, "-0.1"), (math.nan, "nan"), (1e300, "1e+300"), ([1], "[1]"), ([[1]], "a list"),
        )),
        *((seed, value, "`seed` must be a whole number from 0 to 4294967295, got") for value in (
            -1, 2**32, math.inf, 10**4000, "7" * 1000,
        )),
        *((fit, value, "`fit` must be one of resize, crop, got") for value in ("stretch", None, True, ["crop"], {})),
        (label, 1, "`Class` must be one of -1, 0, got 1"),
        (image, None, "`image` is missing: upload, paste or choose an image first"),
        (image, "cat.png", "`image` must be a file that was uploaded here within the last hour"),
        (optional, {"path": "cat.png"}, "`other` must be a file that was uploaded here within the last hour"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            check_input(component, value)
        assert str(caught.value).startswith(message) and str(caught.value).endswith(".")
        assert len(str(caught.value)) < 200


def test_a_class_conditional_model_samples_classes_and_does_the_rest_without_labels(folder, good):
    model = tiny_model(num_classes=3)
    model.save_pretrained(folder / "classes")
    JetImageProcessor(size=SIZE).save_pretrained(folder / "classes")
    demo = JetDemo(folder / "classes")
    assert demo.classes == ["class 0", "class 1", "class 2"]
    demo.model.config.id2label = {0: "cat", 1: "dog", 2: "owl"}
    assert demo.classes == ["cat", "dog", "owl"]
    generator = torch.Generator().manual_seed(4)
    expected = model.sample(2, 0.5, generator, labels=torch.tensor([1, 1]))
    for given, wanted in zip(demo.sample(2, 0.5, 4, 1), demo.processor.post_process(expected), strict=True):
        assert np.array_equal(given, wanted)
    *_, (_, last) = demo.sample_steps(2, 0.5, 4, 3, label=1)
    assert np.array_equal(last[1], demo.sample(2, 0.5, 4, 1)[1])
    assert not np.array_equal(demo.sample(2, 0.5, 4)[0], demo.sample(2, 0.5, 4, 1)[0])
    image = demo.load(good["plain.png"], "crop")
    _, latents, _, measured = demo.reconstruct(image)
    assert measured["bytes_equal"] and demo.score(image, 2).bits_per_dim > 0
    assert demo.edit(latents, image, mix=0.5).size == (SIZE, SIZE)
    assert len(demo.interpolate(image, image, 3)) == 3
    page = app.build_app(demo)
    parameters = page.get_api_info()["named_endpoints"]["/sample"]["parameters"]
    names = [parameter["parameter_name"] for parameter in parameters]
    assert names == ["num_images", "temperature", "seed", "label", "model"]
    with pytest.raises(ValueError, match="`label` must be a class of the model, which has 3, got 3"):
        demo.sample(1, 1, 0, 3)
    # The class of an address stays when the address also names the model.
    (classes_of,) = [function.fn for function in page.fns.values() if function.name == "classes_of"]
    assert [classes_of(demo.title, label).value for label in (2, 3)] == [2, -1]
    menus = [block for block in page.blocks.values() if block.get_block_name() == "dropdown"]
    assert {menu.label: menu.visible for menu in menus} == {"Model": False, "Class": True}


def test_a_gray_model_without_held_out_scores(folder, good):
    tiny_model(num_channels=1).save_pretrained(folder / "gray")
    JetImageProcessor(size=SIZE, num_channels=1).save_pretrained(folder / "gray")
    demo = JetDemo(folder / "gray")
    result = demo.score(demo.load(good["alpha.webp"]), 2).to_dict()
    assert result["num_dims"] == SIZE * SIZE and result["share_of_held_out_above"] is None
    assert demo.reconstruct(demo.load(good["plain.png"]))[3]["bytes_equal"]


def test_only_safetensors_are_loaded_and_scores_must_be_scores(folder, demo):
    pickled = folder / "pickled"
    shutil.copytree(folder / "model", pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(demo.model.state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        JetDemo(pickled)
    assert isinstance(load_scores(str(folder / "model")), HeldOutScores)
    for text in ("[]", "{}", '{"dataset": "d", "num_images": 0, "bits_per_dim": []}', "no JSON"):
        (pickled / "held_out_scores.json").write_text(text)
        with pytest.raises(ValueError, match=r"held_out_scores\.json"):
            load_scores(str(pickled))


def test_the_shipped_model_is_small_and_matches_its_card():
    files = [path for path in (SPACE / "model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6
    assert not [path for path in files if path.suffix in (".bin", ".pkl", ".pt", ".py")]
    card = (SPACE / "model" / "README.md").read_text()
    metrics = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["metrics"]
    (metric,) = (metric for metric in metrics if metric["type"] == "bits_per_dim")
    assert f"{metric['value']:.4f} ± {metric['args']['standard_error']:.4f}" in card
    recipe = yaml.safe_load((ROOT / "recipes" / "space.yaml").read_text())
    model = JetForDensityEstimation.from_pretrained(SPACE / "model")
    assert {name: recipe[name] for name in recipe if hasattr(model.config, name)} == {
        name: getattr(model.config, name) for name in recipe if hasattr(model.config, name)
    }
    held_out = load_scores(str(SPACE / "model"))
    assert held_out.bits_per_dim.mean() == pytest.approx(metric["value"], abs=0.03)
    # A held-out photograph takes far fewer bits than static, and a smooth image takes fewer still.
    demo = JetDemo(SPACE / "model")
    examples = (SPACE / "examples").glob("*.png")
    bits = {path.stem: demo.score(demo.load(path), 4).bits_per_dim for path in examples}
    assert bits["4_smooth"] < bits["1_coffee"] < 8 < bits["5_static"]


def test_the_readme_matches_the_files():
    readme = (SPACE / "README.md").read_text()
    front = yaml.safe_load(readme.split("---")[1])
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert front["sdk"] == "gradio" and front["sdk_version"] == pins["gradio"]
    assert (SPACE / front["app_file"]).is_file() and len(front["short_description"]) <= 60
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front["colorFrom"], front["colorTo"]} <= colors
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    wanted = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert wanted == {name: pins[name] for name in wanted}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {Requirement(line).name for line in project["dependencies"] + extras["space"] + extras["codec"]}
    assert {*wanted, "gradio"} == needed - {"jet_hf"}
    for path in (SPACE / "examples").glob("*.png"):
        assert f"examples/{path.name}" in readme or path.stem in ("4_smooth", "5_static")


def test_the_dockerfile_passes_its_linter_and_its_health_check_tells_whether_the_server_answers():
    file = SPACE / "Dockerfile"
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([hadolint, "--failure-threshold", "style", file], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
    instructions = file.read_text().replace("\\\n", " ").splitlines()
    health, start = (line.split("CMD ")[1] for line in instructions if "CMD [" in line)
    assert json.loads(start) == ["python", "app.py"]
    _, *check = json.loads(health)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/robots.txt" else 404)
            self.end_headers()

    def is_healthy(port: int) -> bool:
        environment = os.environ | {"GRADIO_SERVER_PORT": str(port)}
        return subprocess.run([sys.executable, *check], env=environment, capture_output=True).returncode == 0

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert is_healthy(server.server_port)
        server.shutdown()
    assert not is_healthy(server.server_port)


def test_every_call_borrows_a_gpu_and_few_sessions_are_kept(demo, monkeypatch):
    """Uses a double of the package `spaces`, which exists on the Hub's machines only."""
    spaces, borrowers, options = types.ModuleType("spaces"), [], {}
    spaces.GPU = lambda function: borrowers.append(function.__name__) or function
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "spaces", spaces)
        assert importlib.reload(zero_gpu).borrows_gpu is spaces.GPU
    importlib.reload(zero_gpu)
    imports = [node for node in ast.parse((SPACE / "app.py").read_text()).body if isinstance(node, ast.Import)]
    assert imports[0].names[0].name == "zero_gpu", "torch may be imported before the package `spaces`"
    monkeypatch.setattr("endpoints.borrows_gpu", spaces.GPU)
    # Gradio's own limit of 10,000 sessions takes gigabytes, because each call of a program is a session.
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **given: options.update(given))
    app.launch(app.build_app(demo))
    public = ["compress", "decompress", "denoise", "interpolate", "reconstruct", "sample", "score"]
    of_page = ["compress", "decompress", "reconstruct", "sample", "score", "step_to", "walk"]
    assert sorted(borrowers) == sorted(public + of_page)
    assert options["state_session_capacity"] <= 100 and options["run_history"] is False


def test_a_missing_model_ends_the_server_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("app.signal.signal", lambda *_: None)
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code.startswith("error: MODEL_ID: ") and "\n" not in caught.value.code
