"""Models of images with Gaussian noise: loss, score, denoised samples and training, and no bits per dimension."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from conftest import random_bytes, random_images, tiny_config, tiny_model
from PIL import Image
from script_runner import run_script
from test_model_card import RECORD, facts
from train_process import rows, train_here, write_images

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.evaluation import evaluate
from jet_hf.analysis.inference import prepare_for_inference
from jet_hf.analysis.sampling import draw_latents, reconstruct, sample_images
from jet_hf.data import Batch
from jet_hf.hub import add_evaluation, write_model_card
from jet_hf.training import Trainer
from jet_hf.utils.noise import normal_noise, uniform_noise


SIGMA = 0.2
RANGE = (0.05, 0.4)
LEVELS = torch.tensor([0.05, 0.3])
FEW = {"num_coupling_layers": 3, "coupling_kinds": ["channels", "spatial"]}


def noisy_model(std: float = 0.1, **fields) -> JetForDensityEstimation:
    return tiny_model(std, **(FEW | {"noise_std": SIGMA} | fields))


def normals(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def test_the_loss_is_the_negative_log_density_of_noisy_images():
    model = noisy_model()
    x, noise = random_images(3, model.config), normals(3, 3, 8, 8)
    output = model(x, noise=noise)
    nats = -model.distribution().log_prob(x + SIGMA * noise) / 192
    torch.testing.assert_close(output.noisy_nats_per_dim, nats)
    torch.testing.assert_close(output.loss, nats.mean())
    assert list(output) == ["loss", "noisy_nats_per_dim", "latents", "log_det"]
    assert output.bits_per_dim is None and output.log_likelihood is None
    drawn = normals(3, 3, 8, 8, seed=5)
    with_generator = model(x, generator=torch.Generator().manual_seed(5))
    assert torch.equal(model(x, noise=drawn).loss, with_generator.loss)
    with pytest.raises(ValueError, match="`noise` must be finite"):
        model(x, noise=torch.full_like(x, math.nan))


def test_a_new_model_has_the_score_of_a_standard_normal():
    torch.manual_seed(0)
    model = JetForDensityEstimation(tiny_config(noise_std=SIGMA))
    y = 2 * normals(3, 3, 8, 8)
    torch.testing.assert_close(model.score(y), -y)
    torch.testing.assert_close(model.denoise(y), (1 - SIGMA**2) * y)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_classes": 3},
        {"context_size": 5, "use_actnorm": True},
        {"num_classes": 3, "noise_std": RANGE},
        {"context_size": 5, "noise_std": RANGE},
    ],
)
def test_the_score_is_the_slope_of_the_log_density(fields):
    model = noisy_model(0.3, **fields).double()
    y, step = normals(2, 3, 8, 8, dtype=torch.float64), 1e-5
    conditions = {"labels": torch.tensor([1, 3])} if "num_classes" in fields else {}
    if "context_size" in fields:
        mask = torch.tensor([[True, True], [True, False]])
        conditions = {"context": normals(2, 2, 5, dtype=torch.float64), "context_mask": mask}
    levels = torch.full((2,), SIGMA, dtype=torch.float64)
    if "noise_std" in fields:
        levels = conditions["noise_std"] = LEVELS.double()

    def log_prob(images: torch.Tensor) -> torch.Tensor:
        latents, log_det = model.encode(images, **conditions)
        return torch.distributions.Normal(0.0, 1.0).log_prob(latents).sum(dim=(1, 2, 3)) + log_det

    score = model.score(y, **conditions).detach()
    assert (score + y).abs().max() > 1, "the model is not the identity"
    with torch.no_grad():
        for seed in range(5):
            direction = normals(2, 3, 8, 8, seed=seed, dtype=torch.float64)
            slopes = (log_prob(y + step * direction) - log_prob(y - step * direction)) / (2 * step)
            torch.testing.assert_close((score * direction).sum(dim=(1, 2, 3)), slopes, rtol=1e-7, atol=1e-7)
        expected = y + levels.view(-1, 1, 1, 1) ** 2 * score
        torch.testing.assert_close(model.denoise(y, **conditions), expected, rtol=1e-12, atol=1e-12)


def test_scores_leave_no_trace_and_work_without_gradients():
    model, y = noisy_model(), normals(2, 3, 8, 8)
    score = model.score(y)
    assert not y.requires_grad and all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        detached = model.score(y)
    assert torch.equal(detached, score) and not detached.requires_grad
    with torch.inference_mode():
        assert torch.equal(model.score(y.clone()), score) and model.sample(2).isfinite().all()
    model.train().gradient_checkpointing_enable()
    torch.testing.assert_close(model.score(y), score)
    torch.testing.assert_close(model.bfloat16().eval().score(y), score, rtol=0.1, atol=0.2)
    assert model.score(y).dtype == torch.float32


def test_gradients_of_scores_with_eager_attention():
    """Against differences, in the image and in a weight."""
    model = noisy_model(0.3, attn_implementation="eager").double()
    y = normals(1, 3, 8, 8, dtype=torch.float64).requires_grad_()
    direction, step = normals(1, 3, 8, 8, seed=4, dtype=torch.float64), 1e-5
    weight = model.jet.couplings[0].conditioner.out_proj.bias
    by_image, by_weight = torch.autograd.grad((model.score(y) * direction).sum(), [y, weight])

    @torch.no_grad()
    def projected(shift: float) -> torch.Tensor:
        return (model.score(y + shift * direction) * direction).sum()

    curvature = (projected(step) - projected(-step)) / (2 * step)
    torch.testing.assert_close((by_image * direction).sum(), curvature, rtol=1e-6, atol=1e-6)
    values = []
    for shift in (step, -step):
        with torch.no_grad():
            weight[0] += shift
            values.append(projected(0.0))
            weight[0] -= shift
    torch.testing.assert_close(by_weight[0], (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_compiled_scores_and_samples():
    model = noisy_model(num_coupling_layers=1, image_size=4, noise_std=RANGE)
    y, steps = normals(2, 3, 4, 4), {"noise_std": 0.4, "denoising_steps": 2}
    with torch.no_grad():
        score, denoised = model.score(y, noise_std=LEVELS), model.denoise(y, **steps)
        torch._dynamo.reset()
        compiled = torch.compile(model.denoise, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(y, **steps), denoised, rtol=1e-5, atol=1e-5)
    model.compile_couplings(backend="aot_eager")
    torch.testing.assert_close(model.score(y, noise_std=LEVELS), score, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


@torch.no_grad()
def test_samples_are_denoised_by_default():
    model = noisy_model(num_classes=3)
    labels, latents = torch.tensor([0, 2]), normals(2, 3, 8, 8, seed=0)

    def sample(**options) -> torch.Tensor:
        return model.sample(2, labels=labels, generator=torch.Generator().manual_seed(0), **options)

    noisy, _ = model.decode(latents, labels=labels)
    assert torch.equal(sample(denoise=False), noisy)
    assert torch.equal(sample(), model.denoise(noisy, labels=labels)) and torch.equal(sample(denoise=True), sample())
    assert (sample() - noisy).abs().max() > 1e-3
    guided, _ = model.decode(latents, labels=labels, guidance_scale=2, guidance="variance_aware")
    # The noise is removed under the model's own density.
    expected = model.denoise(guided, labels=labels)
    assert torch.equal(sample(guidance_scale=2, guidance="variance_aware"), expected)
    plain = tiny_model(**FEW)
    assert torch.equal(
        plain.sample(2, generator=torch.Generator().manual_seed(0)), plain.decode(normals(2, 3, 8, 8, seed=0))[0]
    )


@torch.no_grad()
def test_denoised_samples_are_rounded_to_the_nearest_level():
    model, processor = noisy_model(num_levels=17), JetImageProcessor(size=8, num_levels=17)
    images = sample_images(model, processor, 3, seed=1, batch_size=2)
    (latents,) = draw_latents(model, 3, seed=1, batch_size=3)
    values = model.denoise(model.decode(latents)[0])
    levels = ((values + 1) * 8).round().clamp(0, 16).byte()
    shown = np.stack([np.asarray(image) for image in images])
    np.testing.assert_allclose(shown, (levels * (255 / 16)).permute(0, 2, 3, 1), atol=0.51)
    with pytest.raises(ValueError, match=r"the processor must have the model's `num_levels` 17, got 256"):
        sample_images(model, JetImageProcessor(size=8), 1)
    with pytest.raises(ValueError, match="`denoise` needs a model that was trained with Gaussian noise"):
        sample_images(tiny_model(), JetImageProcessor(size=8), 1, denoise=True)
    assert reconstruct(model, random_images(2, model.config)).bytes_equal


def test_normal_noise_is_that_of_the_image_and_normal():
    indices = torch.tensor([0, 5, 2**40])
    noise = normal_noise(1, indices, (3, 64, 64))
    assert noise.dtype == torch.float32 and noise.isfinite().all()
    assert torch.equal(normal_noise(1, indices[1:2], (3, 64, 64))[0], noise[1])
    # The quantiles of the uniform noise, to float32.
    uniform = uniform_noise(1, indices, (3, 64, 64)).double() + 2**-25
    torch.testing.assert_close(torch.special.ndtr(noise.double()), uniform, rtol=0, atol=1e-7)
    count = noise.numel()
    assert noise.mean().abs() < 4 / math.sqrt(count) and noise.var().item() == pytest.approx(1, abs=0.03)
    extremes = torch.tensor([0.0, 0.5 - 2**-24, 0.5, 1 - 2**-24])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jet_hf.utils.noise.uniform_noise", lambda *_: extremes)
        low, below, above, high = normal_noise(0, indices, (4,)).tolist()
    assert low == -high == pytest.approx(-5.42, abs=0.01) and below == -above == pytest.approx(0, abs=1e-6)


def test_a_score_of_a_learned_density_points_to_its_images():
    """A flow learns two gray images, one of each class; denoising leads back to them, and samples are like them."""
    torch.manual_seed(0)
    fields = {"image_size": 4, "num_channels": 2, "num_coupling_layers": 6, "noise_std": 0.3, "num_classes": 2}
    config = tiny_config(**FEW | fields)
    model = JetForDensityEstimation(config)
    trainer = Trainer(model, 60, learning_rate=1e-2, label_dropout=0.0)
    labels = torch.arange(32) % 2
    pixels = (96 + 63 * labels).byte()[:, None, None, None].expand(32, 2, 4, 4)
    losses = [trainer.step([Batch(pixels, torch.arange(32) + 32 * i, labels)]).loss for i in range(60)]
    # The least possible loss is the entropy of the noise, 0.215 nats per dimension.
    assert losses[0] > 0.9 and losses[-1] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.3**2), abs=0.05)
    model.eval()
    x = (pixels / 127.5 - 1)[:8]
    noisy = x + 0.3 * normals(*x.shape)
    with torch.no_grad():
        denoised = model.denoise(noisy, labels=labels[:8])
        samples = model.sample(8, labels=labels[:8], generator=torch.Generator().manual_seed(0))
    assert (denoised - x).abs().mean() < 0.3 * (noisy - x).abs().mean()
    assert (samples - x).abs().mean() < 0.1


# Models of a range of noise levels


@torch.no_grad()
def test_the_noise_level_is_an_input_and_the_weight_of_an_image():
    model = noisy_model(noise_std=RANGE)
    x, noise = random_images(2, model.config), normals(2, 3, 8, 8)
    output = model(x, noise=noise, noise_std=LEVELS)
    nats = torch.cat(
        [
            -model.distribution(noise_std=level).log_prob(x[i : i + 1] + level * noise[i : i + 1]) / 192
            for i, level in enumerate(LEVELS.tolist())
        ]
    )
    torch.testing.assert_close(output.noisy_nats_per_dim, nats)
    torch.testing.assert_close(output.loss, (nats * LEVELS).mean() / 0.225)
    assert torch.equal(output.noise_std, LEVELS)
    assert (output.latents - model.encode(x + LEVELS.view(-1, 1, 1, 1) * noise, noise_std=0.2)[0]).abs().max() > 1e-3
    many = random_images(1000, model.config)
    drawn = [model(many, generator=torch.Generator().manual_seed(seed)).noise_std for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].min() >= 0.05 and drawn[0].max() <= 0.4, "uniform, with the mean and deviation of that"
    assert drawn[0].mean().item() == pytest.approx(0.225, abs=0.012)
    assert drawn[0].std().item() == pytest.approx(0.35 / math.sqrt(12), abs=0.008)


def test_a_new_model_is_denoised_along_known_factors():
    """Its score is -y: a step from s to t shrinks the part of the image `(1 - s ** 2) * y`, and that of the noise."""
    torch.manual_seed(0)
    model, y = JetForDensityEstimation(tiny_config(noise_std=RANGE)).double(), normals(2, 3, 8, 8, dtype=torch.float64)
    noise = normals(3, 2, 3, 8, 8, seed=5, dtype=torch.float64)
    torch.testing.assert_close(
        model.denoise(y, noise_std=LEVELS.double()), (1 - LEVELS.double() ** 2).view(-1, 1, 1, 1) * y
    )
    levels = [0.4, 0.2, 0.1, 0.05]
    factor, stochastic = math.prod(1 - s**2 * (1 - t / s) for s, t in itertools.pairwise(levels)), y
    for (s, t), step_noise in zip(itertools.pairwise(levels), noise, strict=True):
        kept, variance = 1 - s**2 * (1 - (t / s) ** 2), t**2 * (1 - (t / s) ** 2)
        stochastic = kept * stochastic + math.sqrt(variance) * step_noise
    last = 1 - 0.05**2
    steps = {"noise_std": 0.4, "denoising_steps": 4}
    torch.testing.assert_close(model.denoise(y, **steps), last * factor * y)
    torch.testing.assert_close(model.denoise(y, **steps, noise=noise), last * stochastic)
    # From the smallest level on, all steps but the last stay where they are.
    at_rest = {"noise_std": 0.05, "denoising_steps": 3}
    torch.testing.assert_close(model.denoise(y, **at_rest), last * y)
    torch.testing.assert_close(model.denoise(y, **at_rest, noise=noise[:2]), last * y)


@torch.no_grad()
def test_samples_start_at_the_largest_noise_level():
    model = noisy_model(noise_std=RANGE, num_classes=3)
    labels, latents = torch.tensor([0, 2]), normals(2, 3, 8, 8, seed=0)

    def sample(**options) -> torch.Tensor:
        return model.sample(2, labels=labels, generator=torch.Generator().manual_seed(0), **options)

    noisy, _ = model.decode(latents, labels=labels, noise_std=0.4)
    assert torch.equal(sample(denoise=False), noisy)
    assert torch.equal(sample(), model.denoise(noisy, labels=labels, noise_std=0.4)) and torch.equal(
        sample(denoising_steps=1, stochastic=True), sample()
    )
    steps = {"labels": labels, "noise_std": 0.4, "denoising_steps": 3}
    assert torch.equal(sample(denoising_steps=3), model.denoise(noisy, **steps))
    generator = torch.Generator().manual_seed(0)
    torch.randn(2, 3, 8, 8, generator=generator)
    noise = torch.randn(2, 2, 3, 8, 8, generator=generator)
    assert torch.equal(sample(denoising_steps=3, stochastic=True), model.denoise(noisy, **steps, noise=noise))
    lower, _ = model.decode(latents, labels=labels, noise_std=LEVELS)
    assert torch.equal(sample(noise_std=LEVELS, denoise=False), lower) and not torch.equal(lower, noisy)
    # Without guidance there is no label, but the noise level remains.
    unguided, _ = model.decode(latents, labels=labels, noise_std=LEVELS, guidance_scale=0)
    torch.testing.assert_close(unguided, model.decode(latents, labels=torch.tensor([3, 3]), noise_std=LEVELS)[0])


@torch.no_grad()
def test_stochastic_samples_do_not_depend_on_the_batch_size():
    model, processor = noisy_model(noise_std=RANGE), JetImageProcessor(size=8)
    options = {"seed": 1, "denoising_steps": 3}
    images = [
        np.stack([np.asarray(image) for image in sample_images(model, processor, 5, **options, **others)]).astype(int)
        for others in ({"stochastic": True, "batch_size": 2}, {"stochastic": True}, {})
    ]
    assert np.abs(images[0] - images[1]).max() <= 1 and np.abs(images[1] - images[2]).max() > 1
    assert reconstruct(model, random_images(2, model.config)).bytes_equal


def test_a_learned_density_uses_the_noise_level():
    """
    Of images of standard deviation S, a level s leaves `S ** 2 / (S ** 2 + s ** 2) * y`. One step from the largest
    level therefore gives too little contrast, which more steps restore.
    """
    torch.manual_seed(0)
    deviation, levels = 0.2, (0.1, 0.6)
    fields = {"image_size": 4, "num_channels": 2, "num_coupling_layers": 6, "coupling_kinds": ["channels", "spatial"]}
    model = JetForDensityEstimation(tiny_config(**fields, noise_std=levels))
    trainer, generator = Trainer(model, 100, learning_rate=0.02), torch.Generator().manual_seed(1)
    for step in range(100):
        pixels = 127.5 * (1 + deviation * torch.randn(64, 2, 4, 4, generator=generator))
        batch = Batch(pixels.round().clamp(0, 255).byte(), torch.arange(64) + 64 * step, None)
        metrics = trainer.step([batch])
    assert metrics.loss == pytest.approx(metrics.loss_prior + metrics.loss_log_det, abs=1e-5)
    model.eval()
    x, noise = deviation * normals(256, 2, 4, 4), normals(256, 2, 4, 4, seed=4)
    with torch.no_grad():
        for level, wrong in (levels, levels[::-1]):
            y, share = x + level * noise, deviation**2 / (deviation**2 + level**2)
            least = (share * y - x).square().mean()
            assert (model.denoise(y, noise_std=level) - x).square().mean() < 1.2 * least
            assert (model.denoise(y, noise_std=wrong) - x).square().mean() > 3 * least
        stds = [
            model.sample(256, denoising_steps=steps, stochastic=stochastic, generator=generator).std().item()
            for steps, stochastic in ((1, False), (8, False), (8, True))
        ]
    expected = [0.0632, 0.1710, 0.1624]  # the recursion of the variance under the exact score
    assert stds == pytest.approx(expected, abs=0.04)


# No bits per dimension


REFUSAL = r"^this model was trained with Gaussian noise \(`noise_std` 0.2\): .* has no bits per dimension of images\.$"


def test_bits_per_dimension_are_refused_by_name(tmp_path):
    import datasets

    model = noisy_model()
    pixels = datasets.Dataset.from_dict({"pixels": random_bytes(2, model.config).numpy()})
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=REFUSAL):
        evaluate(model, pixels)
    with pytest.raises(ValueError, match=REFUSAL):
        write_model_card(tmp_path, facts(), "jet/tiny")
    noisy_model(noise_std=RANGE).save_pretrained(tmp_path / "range")
    write_model_card(tmp_path / "range", facts(evaluations=[]), "jet/tiny")
    text = " ".join((tmp_path / "range" / "README.md").read_text().split())
    assert "standard deviation 0.05 to 0.4 on the scale [-1, 1], which is an input" in text and "steps of Tw" in text
    assert "model.encode(pixel_values, noise_std=0.05)" in text and "manual_seed(0), denoising_steps=8)" in text
    write_model_card(tmp_path, facts(evaluations=[]), "jet/tiny")
    text = (tmp_path / "README.md").read_text()
    assert "no bits per dimension" in text and "denoise" in text and ".bits_per_dim" not in text
    with pytest.raises(ValueError, match=REFUSAL):
        add_evaluation(tmp_path, RECORD)
    assert (tmp_path / "README.md").read_text() == text
    with pytest.raises(ValueError, match=r"`noise_std` must be 0.2, with which the weights"):
        JetForDensityEstimation.from_pretrained(tmp_path, noise_std=None)


def test_a_run_trains_evaluates_and_samples(tmp_path, capsys):
    """Evaluations report the loss of noisy images, and the finished model samples denoised images."""
    data = write_images(tmp_path / "data")
    fields = {"dataset_path": data, "noise_std": [*RANGE], "learning_rate": 0.01, "max_steps": 6, "eval_steps": 6}
    train_here(output_dir=tmp_path / "run", save_best=True, **fields)
    evaluations = rows(tmp_path / "run", "evaluations.jsonl")
    assert [set(row) for row in evaluations] == 2 * [{"step", "noisy_nats_per_dim", "standard_error", "num_images"}]
    assert evaluations[-1]["noisy_nats_per_dim"] < evaluations[0]["noisy_nats_per_dim"]
    assert json.loads((tmp_path / "run" / "best" / "evaluation.json").read_text()) == evaluations[-1]
    text = capsys.readouterr().err
    assert "nats per dimension of 5 held-out noisy images" in text and "bits per dimension" not in text
    (row,) = rows(tmp_path / "run")[-1:]
    assert row["loss"] == pytest.approx(row["loss_prior"] + row["loss_log_det"], abs=1e-5), "there is no constant"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "no bits per dimension" in card
    command = ["sample.py", "--model", tmp_path / "run", "--num_images", 2, "--output_dir"]
    assert run_script(*command, tmp_path / "clean") == run_script(*command, tmp_path / "noisy", "--denoise=false") == 0
    clean, noisy = (np.asarray(Image.open(tmp_path / name / "00000.png")) for name in ("clean", "noisy"))
    assert (clean != noisy).any()
    assert run_script(*command, tmp_path / "steps", "--denoising_steps", 3, "--stochastic", "--noise_std", 0.3) == 0
    assert (np.asarray(Image.open(tmp_path / "steps" / "00000.png")) != clean).any()
    assert run_script(*command, tmp_path / "none", "--denoise=false", "--denoising_steps=2") == 1
    assert "`denoising_steps` and `stochastic` need `denoise`, got False" in capsys.readouterr().err
    assert run_script("evaluate.py", "--model", tmp_path / "run", "--dataset", data) == 1
    assert "has no bits per dimension of images" in capsys.readouterr().err


def test_the_demo_refuses_noisy_models(tmp_path):
    from jet_demo import JetDemo

    noisy_model().save_pretrained(tmp_path)
    JetImageProcessor(size=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=REFUSAL):
        JetDemo(tmp_path)


def test_prepared_models_name_what_denoising_takes():
    model = noisy_model()
    prepare_for_inference(model)
    with pytest.raises(RuntimeError, match="call `undo_preparation` first"):
        model.sample(1)
    assert model.sample(1, denoise=False).isfinite().all()
