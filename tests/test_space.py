"""The demo's functions, without a server."""

import json
import math
import shutil
import subprocess
import sys
import threading

import app
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, tiny_model
from jet_demo import HeldOutScores, JetDemo, load_scores
from pictures import photograph
from PIL import Image
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
    score = demo.score(good["plain.png"], 5, "resize")
    result = score.to_dict()
    pixels = JetImageProcessor(size=SIZE).to_uint8(photograph())
    assert np.array_equal(score.fitted.pixels.numpy(), pixels)
    # The mean over many other draws of noise lies within a few standard errors of both.
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
    assert demo.score(good["plain.png"], 5, "resize").to_dict() == result
    assert demo.score(good["plain.png"], 1, "resize").to_dict()["standard_error"] is None


def test_a_crop_is_the_central_pixels_and_a_resize_the_averaged_square(demo, good):
    upload = read_upload(good["plain.png"])
    left, top = (upload.image.width - SIZE) // 2, (upload.image.height - SIZE) // 2
    expected = np.asarray(photograph().crop((left, top, left + SIZE, top + SIZE))).transpose(2, 0, 1)
    assert np.array_equal(demo.fit(upload, "crop").pixels.numpy(), expected)
    square = np.asarray(photograph().crop((4, 0, 44, 40)), dtype=np.float64)
    means = square.reshape(SIZE, 5, SIZE, 5, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(demo.fit(upload, "resize").pixels.numpy() - means).max() <= 0.5001
    with pytest.raises(ValueError, match="`fit` must be one of resize, crop, got 'stretch'"):
        demo.fit(upload, "stretch")


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_pictures_of_every_kind_are_those_of_their_plain_version(demo, good, fit):
    plain = demo.fit(read_upload(good["plain.png"]), fit).pixels.numpy().astype(int)
    gray = np.broadcast_to(np.asarray(photograph().convert("L")), (3, 40, 48)).transpose(1, 2, 0).astype(np.uint8)
    gray = demo.fit(type(read_upload(good["plain.png"]))(Image.fromarray(gray)), fit).pixels.numpy().astype(int)
    fitted = {name: demo.fit(read_upload(path), fit) for name, path in good.items()}
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
    assert "first frame" in fitted["animated.gif"].notes[0]
    for name in ("one_pixel.png", "thin.png"):
        assert "enlarged" in fitted[name].notes[0]
    assert fitted["plain.png"].notes == ()


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
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(bad, name):
    path, message = bad[name]
    with pytest.raises(UnreadableImageError, match=r"^`image_a` ") as caught:
        read_upload(path, "image_a")
    assert message in str(caught.value) and str(path.parent) not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None


def test_no_file_and_too_large_a_file(tmp_path):
    with pytest.raises(UnreadableImageError, match="`image` is missing"):
        read_upload(None)
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    with pytest.raises(UnreadableImageError, match=r"`image` must have at most 20 MB, got 20\.0 MB"):
        read_upload(tmp_path / "huge.png")


def test_samples_are_those_of_the_package_and_the_looks_end_with_them(demo):
    images = demo.sample(5, 0.7, 3)
    expected = sample_images(demo.model, demo.processor, 5, 0.7, 3)
    assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]
    looks = list(demo.sample_steps(5, 0.7, 3, num_looks=5))
    assert [done for done, _ in looks] == [0, 1, 2, 3, 4, 5]
    assert [image.tobytes() for image in looks[-1][1]] == [image.tobytes() for image in images]
    # JSON has no whole numbers of its own.
    assert demo.sample(1.0, 1, 3.0)[0].tobytes() == demo.sample(1, 1.0, 3)[0].tobytes()


def test_calls_at_once_do_not_disturb_each_other(demo):
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


def test_reconstruction_gives_the_bytes_back(demo, good):
    original, latents, decoded, measured = demo.reconstruct(good["plain.png"], "crop")
    assert measured["bytes_equal"] is True and 0 < measured["max_abs_error"] < 1e-4
    assert original.tobytes() == decoded.tobytes() != demo.show_latents(latents).tobytes()
    pixels = demo.fit(read_upload(good["plain.png"]), "crop").pixels.numpy().transpose(1, 2, 0)
    assert np.array_equal(np.asarray(original), pixels)


def test_edits_do_nothing_at_their_zero_and_all_at_their_one(demo, good):
    first, second = good["plain.png"], good["bilevel.png"]
    own, other = (demo.reconstruct(path, "resize")[0].tobytes() for path in (first, second))
    latents = demo.reconstruct(first, "resize")[1]
    assert demo.edit(latents, None, "resize", 0, 0, 6, 0).tobytes() == own
    assert demo.edit(latents, second, "resize", 1, 0, 6, 0).tobytes() == other
    assert demo.edit(latents, second, "resize", 0.5, 0, 6, 0).tobytes() not in (own, other)
    fresh = demo.edit(latents, None, "resize", 0, 1, 6, 7)
    assert np.abs(np.asarray(fresh).astype(int) - np.asarray(demo.sample(1, 1.0, 7)[0])).max() <= 1
    assert demo.edit(latents, None, "resize", 0, 0, 0, 0).tobytes() == demo.sample(1, 0.0, 0)[0].tobytes()
    assert demo.edit(latents, None, "resize", 0, 0, 1, 0).tobytes() not in (own, demo.sample(1, 0.0, 0)[0].tobytes())
    with pytest.raises(UnreadableImageError, match="`second image` is missing"):
        demo.edit(latents, None, "resize", 0.5, 0, 6, 0)


def test_interpolation_goes_from_one_to_the_other(demo, good):
    images = demo.interpolate(good["plain.png"], good["bilevel.png"], 4)
    ends = [demo.reconstruct(good[name], "resize")[0].tobytes() for name in ("plain.png", "bilevel.png")]
    assert [images[0].tobytes(), images[-1].tobytes()] == ends and len(images) == 4
    with pytest.raises(UnreadableImageError, match="`image_b` is missing"):
        demo.interpolate(good["plain.png"], None, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda demo: demo.sample(0, 1.0, 0), "`num_images` must be a whole number from 1 to 36, got 0"),
        (lambda demo: demo.sample(37, 1.0, 0), "from 1 to 36, got 37"),
        (lambda demo: demo.sample(1.5, 1.0, 0), "from 1 to 36, got 1.5"),
        (lambda demo: demo.sample(True, 1.0, 0), "from 1 to 36, got True"),
        (lambda demo: demo.sample("4", 1.0, 0), "from 1 to 36, got '4'"),
        (lambda demo: demo.sample(None, 1.0, 0), "from 1 to 36, got None"),
        (lambda demo: demo.sample(1, -0.1, 0), "`temperature` must be a number from 0 to 2, got -0.1"),
        (lambda demo: demo.sample(1, math.nan, 0), "`temperature` must be a number from 0 to 2, got nan"),
        (lambda demo: demo.sample(1, [1], 0), r"`temperature` must be a number from 0 to 2, got \[1\]"),
        (lambda demo: demo.sample(1, 1.0, -1), "`seed` must be a whole number from 0 to 4294967295, got -1"),
        (lambda demo: demo.sample(1, 1.0, 2**32), "`seed` must be"),
        (lambda demo: demo.sample(1, 1.0, math.inf), "`seed` must be"),
        (lambda demo: demo.score(None, 0, "crop"), "`num_noise_draws` must be a whole number from 1 to 32, got 0"),
        (lambda demo: demo.score(None, 33, "crop"), "`num_noise_draws` must be"),
        (lambda demo: demo.interpolate(None, None, 1), "`steps` must be a whole number from 2 to 16, got 1"),
        (lambda demo: demo.interpolate(None, None, 17), "`steps` must be"),
        (lambda demo: demo.edit(None, None, "crop", 1.1, 0, 6, 0), "`mix` must be a number from 0 to 1, got 1.1"),
        (lambda demo: demo.edit(None, None, "crop", 0, -1, 6, 0), "`noise` must be"),
        (lambda demo: demo.edit(None, None, "crop", 0, 0, 7, 0), "`truncation` must be"),
    ],
)
def test_every_number_is_bounded(demo, call, message):
    with pytest.raises(ValueError, match=message):
        call(demo)


def test_a_model_with_classes_samples_those_and_does_the_rest_without(folder, good):
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
    with pytest.raises(ValueError, match="`label` must be a whole number from -1 to 2, got 3"):
        demo.sample(2, 0.5, 4, 3)
    _, latents, _, measured = demo.reconstruct(good["plain.png"], "crop")
    assert measured["bytes_equal"] and demo.score(good["plain.png"], 2, "crop").bits_per_dim > 0
    assert demo.edit(latents, good["plain.png"], "crop", 0.5, 0, 6, 0).size == (SIZE, SIZE)
    assert len(demo.interpolate(good["plain.png"], good["plain.png"], 3)) == 3
    names = [endpoint["parameters"] for name, endpoint in api_of(demo).items() if name == "/sample"]
    assert [parameter["parameter_name"] for parameter in names[0]] == ["num_images", "temperature", "seed", "label"]
    dropdowns = [block for block in app.build_app(demo).blocks.values() if block.get_block_name() == "dropdown"]
    assert [block.visible for block in dropdowns] == [True]


def test_what_the_server_keeps_of_sessions_is_bounded(demo, monkeypatch):
    """Gradio's own bound, of 10,000 sessions, comes to gigabytes where each call of a program is one."""
    options = {}
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **given: options.update(given))
    app.launch(app.build_app(demo))
    assert options["state_session_capacity"] <= 100 and options["run_history"] is False


def api_of(demo: JetDemo) -> dict:
    return app.build_app(demo).get_api_info()["named_endpoints"]


def test_a_gray_model_and_one_without_held_out_scores(folder, good):
    tiny_model(num_channels=1).save_pretrained(folder / "gray")
    JetImageProcessor(size=SIZE, num_channels=1).save_pretrained(folder / "gray")
    demo = JetDemo(folder / "gray")
    result = demo.score(good["alpha.webp"], 2, "resize").to_dict()
    assert result["num_dims"] == SIZE * SIZE and result["share_of_held_out_above"] is None
    assert demo.reconstruct(good["plain.png"], "resize")[3]["bytes_equal"]


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


def test_the_shipped_model_is_small_and_what_its_card_says():
    files = [path for path in (SPACE / "model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6
    assert not [path for path in files if path.suffix in (".bin", ".pkl", ".pt", ".py")]
    card = (SPACE / "model" / "README.md").read_text()
    metric = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["metrics"][0]
    assert f"{metric['value']:.4f} ± {metric['args']['standard_error']:.4f}" in card
    recipe = yaml.safe_load((ROOT / "recipes" / "space.yaml").read_text())
    model = JetForDensityEstimation.from_pretrained(SPACE / "model")
    assert {name: recipe[name] for name in recipe if hasattr(model.config, name)} == {
        name: getattr(model.config, name) for name in recipe if hasattr(model.config, name)
    }
    held_out = load_scores(str(SPACE / "model"))
    assert held_out.bits_per_dim.mean() == pytest.approx(metric["value"], abs=0.03)
    # It has learnt: a held-out photograph takes far fewer bits than static, and a smooth picture fewer still.
    demo = JetDemo(SPACE / "model")
    bits = {path.stem: demo.score(path, 4, "resize").bits_per_dim for path in (SPACE / "examples").glob("*.png")}
    assert bits["4_smooth"] < bits["1_coffee"] < 8 < bits["5_static"]


def test_the_space_is_described_as_its_files_are():
    readme = (SPACE / "README.md").read_text()
    front = yaml.safe_load(readme.split("---")[1])
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert front["sdk"] == "gradio" and front["sdk_version"] == pins["gradio"]
    assert (SPACE / front["app_file"]).is_file() and len(front["short_description"]) <= 60
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front["colorFrom"], front["colorTo"]} <= colors
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    wanted = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert wanted == {name: pins[name] for name in wanted} and {"torch", "transformers"} <= set(wanted)
    for path in (SPACE / "examples").glob("*.png"):
        assert f"examples/{path.name}" in readme or path.stem in ("4_smooth", "5_static")


def test_a_space_with_borrowed_gpus_borrows_one_for_every_call(tmp_path):
    """With a stand-in for the package `spaces`, which exists on the Hub's machines only."""
    (tmp_path / "spaces.py").write_text(
        "borrowers = []\ndef GPU(f):\n    borrowers.append(f.__name__)\n    return f\n"
    )
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import spaces, zero_gpu; assert 'torch' not in sys.modules\n"
        "import app; from jet_demo import JetDemo; app.build_app(JetDemo(app.SPACE / 'model'))\n"
        "print('borrowers', *sorted(spaces.borrowers))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(SPACE)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = "interpolate interpolate reconstruct reconstruct sample sample score score"
    assert printed.splitlines()[-1] == f"borrowers {names}"


def test_a_model_that_is_not_there_ends_in_one_line(tmp_path):
    command = [sys.executable, str(SPACE / "app.py")]
    environment = {"PATH": "/usr/bin", "MODEL_ID": str(tmp_path), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 1
    assert finished.stderr.strip().splitlines()[-1].startswith("error: MODEL_ID: ")
    assert "Traceback" not in finished.stderr
