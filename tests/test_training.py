import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from conftest import FIXTURES, random_bytes, tiny_config, tiny_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jet_hf import JetForDensityEstimation
from jet_hf.data import Batch
from jet_hf.importers import convert_big_vision
from jet_hf.importers.big_vision import read_big_vision
from jet_hf.model.modeling_jet import scale_bytes
from jet_hf.training import (
    DivergenceError,
    NonFiniteLossError,
    Trainer,
    UpdateGuard,
    build_optimizer,
    build_scheduler,
)


def test_parity_of_forty_steps_of_the_original_trainer(tmp_path, within):
    path = FIXTURES / "training_trajectory_16px.npz"
    reference = np.load(path)
    settings = json.loads(reference["config_json"].item())
    config, state_dict = convert_big_vision(path)
    model = JetForDensityEstimation(config)
    model.load_state_dict(state_dict)
    trainer = Trainer(
        model,
        num_training_steps=settings["total_steps"],
        learning_rate=settings["lr"],
        weight_decay=settings["wd"],
        warmup_ratio=settings["warmup_steps"] / settings["total_steps"],
        max_grad_norm=settings["grad_clip_norm"],
    )
    measured = []
    for pixels, noise in zip(reference["in/pixels_uint8"], reference["in/noise"], strict=True):
        pixels, noise = (torch.from_numpy(array).permute(0, 3, 1, 2).contiguous() for array in (pixels, noise))
        measured.append(trainer.step([Batch(pixels, torch.arange(len(pixels)))], noise=[noise]))
    for field, key, tolerance in (
        ("learning_rate", "lr", 1e-6),
        ("loss", "loss_bpd", 1e-5),
        ("grad_norm", "grad_norm", 1e-5),
    ):
        ours, theirs = np.array([getattr(metrics, field) for metrics in measured]), reference[f"out/{key}"]
        difference = np.abs(ours - theirs)
        if field != "loss":  # relative; the first rate is zero
            assert (ours[theirs == 0] == 0).all()
            difference = difference[theirs != 0] / theirs[theirs != 0]
        within(f"training_trajectory_16px: {field}", difference.max().item(), tolerance)
    assert trainer.scheduler.get_last_lr() == [0.0]

    # This is the same file with the final parameters in place of the initial ones.
    final = {name: array for name, array in reference.items() if not name.startswith("params/")}
    np.savez(tmp_path / "final.npz", **{name.removeprefix("final_"): array for name, array in final.items()})
    assert read_big_vision(tmp_path / "final.npz").keys() == read_big_vision(path).keys()
    _, expected = convert_big_vision(tmp_path / "final.npz")
    names = [name for name, _ in model.named_parameters()]
    ours = torch.cat([model.state_dict()[name].flatten().double() for name in names])
    theirs = torch.cat([expected[name].flatten().double() for name in names])
    within(
        "training_trajectory_16px: final parameters, relative", ((ours - theirs).norm() / theirs.norm()).item(), 1e-5
    )


class Shapes(TorchDispatchMode):
    """Record operators with the shapes of their results."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen.append((str(func), [tuple(x.shape) for x in tree_leaves(result) if isinstance(x, torch.Tensor)]))
        return result


class Reads(TorchFunctionMode):
    """Record the functions that read values, for which the host would wait for an accelerator."""

    NAMES = {"tolist", "item", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"}

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.NAMES:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "fields, options",
    [
        ({}, {}),
        ({"use_actnorm": True, "use_invertible_dense": True, "num_classes": 3}, {"ema_decay": 0.9}),
        ({"dequantization": "flow", "dequantization_num_coupling_layers": 2}, {"random_flip": True}),
        ({"backbone": "cnn", "num_groups": 2}, {"noise_curriculum": 64.0, "mutation_rate": 0.1}),
        ({"noise_std": [0.05, 0.4]}, {"ema_decay": 0.9}),
    ],
    ids=["plain", "glow", "dequantization", "cnn", "noise"],
)
def test_a_step_reads_nothing_but_its_metrics_and_keeps_its_shapes(fields, options):
    config = tiny_config(num_coupling_layers=2, **fields)
    trainer = Trainer(JetForDensityEstimation(config), num_training_steps=8, label_dropout=0.0, **options)
    steps = []
    for i in range(3):
        labels = torch.arange(4) % 3 if config.num_classes else None
        batch = Batch(random_bytes(4, config), torch.arange(4) + 4 * i, labels)
        with Reads() as reads, Shapes() as shapes:
            trainer.step([batch])
        steps.append((reads.seen, shapes.seen))
    # The first step makes the state of the optimizer and initializes ActNorm. Labels are dropped on the host.
    expected = ["__bool__", "tolist"] if config.num_classes else ["tolist"]
    assert steps[1] == steps[2] == (expected, steps[1][1])
    with Reads() as reads:
        trainer.base_model(scale_bytes(batch.pixels), labels=batch.labels)  # values of unknown origin are checked
    assert reads.seen


def test_weight_decay_does_not_depend_on_the_learning_rate():
    for learning_rate in (1e-4, 1e-2):
        layer = torch.nn.Linear(3, 3)
        before = layer.weight.detach().clone()
        optimizer = build_optimizer(layer, learning_rate=learning_rate, weight_decay=1e-2)
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        torch.testing.assert_close(layer.weight, before * (1 - 1e-2))
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in layer.parameters()}


def learning_rates(num_training_steps: int, **options) -> list[float]:
    """Return the rates of all steps of a schedule with a peak of 1, and that after the last one."""
    optimizer = build_optimizer(torch.nn.Linear(1, 1), learning_rate=1.0)
    scheduler = build_scheduler(optimizer, num_training_steps, **options)
    rates = []
    for _ in range(num_training_steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedule_rises_from_zero_and_falls_to_exactly_zero():
    rates = learning_rates(100, warmup_ratio=0.2)
    assert rates[0] == 0 and rates[10] == 0.5 and max(rates) == rates[20] == 1 and rates[60] == pytest.approx(0.5)
    assert rates[100] == 0 and all(rate > 0 for rate in rates[1:100])


def test_constant_and_wsd_stay_after_the_warm_up_and_wsd_cools_down_at_the_end():
    constant = learning_rates(20, warmup_ratio=0.2, lr_scheduler_type="constant")
    assert constant == [0, 0.25, 0.5, 0.75] + 17 * [1]
    wsd = learning_rates(20, warmup_ratio=0.2, lr_scheduler_type="wsd", cooldown_ratio=0.4)
    assert wsd[:13] == constant[:13] and wsd[20] == 0
    assert wsd[12:] == pytest.approx([1 - math.sqrt(step / 8) for step in range(9)])


def test_the_optimizer_and_the_schedule_name_a_bad_argument():
    layer = torch.nn.Linear(1, 1)
    for arguments in ({"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            build_optimizer(layer, **arguments)
    for arguments in (
        {"num_training_steps": 0},
        {"warmup_ratio": 1.0},
        {"warmup_ratio": -0.1},
        {"lr_scheduler_type": "linear"},
        {"cooldown_ratio": 0.95, "lr_scheduler_type": "wsd"},
        {"cooldown_ratio": 0.0, "lr_scheduler_type": "wsd"},
    ):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            build_scheduler(build_optimizer(layer), **{"num_training_steps": 10} | arguments)


def random_batch(size: int, config, start: int = 0) -> Batch:
    return Batch(random_bytes(size, config) // 64, torch.arange(start, start + size))


def new_trainer(num_micro_batches: int = 1, **options) -> Trainer:
    torch.manual_seed(0)
    plugin = GradientAccumulationPlugin(num_steps=num_micro_batches, sync_with_dataloader=False)
    accelerator = Accelerator(gradient_accumulation_plugin=plugin)
    options = {"num_training_steps": 30, "learning_rate": 1e-2} | options
    return Trainer(JetForDensityEstimation(tiny_config()), accelerator=accelerator, **options)


def test_a_run_fits_a_batch():
    trainer = new_trainer()
    batch = random_batch(4, trainer.base_model.config)
    losses = [trainer.step([batch]).loss for _ in range(30)]
    assert losses[-1] < losses[0] - 1


def test_accumulation_gives_the_same_update():
    batches = [random_batch(8, tiny_config(), start=8 * step) for step in range(3)]
    # The trainers take turns, since accelerate's accumulation is a setting of the process.
    one = new_trainer(noise_curriculum=16)
    expected = [one.step([batch]) for batch in batches]
    four = new_trainer(num_micro_batches=4, noise_curriculum=16)
    for batch, theirs in zip(batches, expected, strict=True):
        ours = four.step([Batch(*part) for part in zip(*(tensor.split(2) for tensor in batch[:2]), strict=True)])
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
    for ours, theirs in zip(four.base_model.parameters(), one.base_model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_noise_belongs_to_the_image_and_the_seed():
    config = tiny_config()
    batch = random_batch(4, config)
    elsewhere = Batch(batch.pixels, batch.indices + 4)
    losses = [new_trainer(seed=seed).step([images]).loss for seed, images in ((0, batch), (1, batch), (0, elsewhere))]
    assert len(set(losses)) == 3
    backwards = Batch(*(tensor.flip(0) for tensor in batch[:2]))
    assert new_trainer(seed=0).step([backwards]).loss == pytest.approx(losses[0], rel=1e-6)


def test_the_average_follows_the_weights():
    trainer = new_trainer(ema_decay=0.75, warmup_ratio=0.0)
    name = "jet.couplings.0.conditioner.out_proj.weight"
    expected = trainer.base_model.get_parameter(name).detach().clone()
    for step in range(4):
        trainer.step([random_batch(4, trainer.base_model.config, 4 * step)])
        now = trainer.base_model.get_parameter(name).detach().clone()
        expected = 0.75 * expected + 0.25 * now
    with trainer.averaged_weights():
        torch.testing.assert_close(trainer.base_model.get_parameter(name), expected)
        assert not torch.equal(trainer.base_model.get_parameter(name), now)
    assert torch.equal(trainer.base_model.get_parameter(name), now)


def test_a_non_finite_loss_stops_before_the_weights_change():
    trainer = new_trainer(learning_rate=1.0)
    model = trainer.base_model
    with torch.no_grad():
        model.jet.couplings[0].conditioner.out_proj.bias[0] = float("inf")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="step 1"):
        trainer.step([random_batch(2, model.config)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dequantization", ["uniform", "flow"])
def test_the_terms_of_the_loss_add_up_and_the_prior_is_that_of_the_latents(dequantization):
    model = tiny_model(dequantization=dequantization, dequantization_num_coupling_layers=2)
    batches = [random_batch(2, model.config, start=2 * i) for i in range(2)]
    plugin = GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
    trainer = Trainer(model, 3, accelerator=Accelerator(gradient_accumulation_plugin=plugin))
    noise = [torch.full(batch.pixels.shape, 0.5) for batch in batches]
    with torch.no_grad():
        latents = torch.cat(
            [model(batch.pixels / 127.5 - 1, noise=u).latents for batch, u in zip(batches, noise, strict=True)]
        )
    metrics = trainer.step(batches, noise=noise)
    prior = -torch.distributions.Normal(0.0, 1.0).log_prob(latents).mean() / math.log(2)
    assert metrics.loss_prior == pytest.approx(prior.item(), rel=1e-5)
    assert metrics.loss == pytest.approx(metrics.loss_prior + metrics.loss_log_det + math.log2(127.5), abs=1e-5)
    assert abs(metrics.loss_log_det) > 0.01


def test_a_skipped_step_changes_only_the_place_in_data_and_schedule():
    trainer = new_trainer(ema_decay=0.9, warmup_ratio=0.0, guard=UpdateGuard(max_skipped_steps=2))
    batch = random_batch(4, trainer.base_model.config)
    bad = [torch.full(batch.pixels.shape, float("inf"))]

    def state() -> list[torch.Tensor]:
        moments = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
        return [tensor.clone() for tensor in (*trainer.base_model.parameters(), *trainer.ema.values(), *moments)]

    trainer.step([batch])
    before = state()
    skipped = [trainer.step([batch], noise=bad) for _ in range(2)]
    assert all(metrics.skipped for metrics in skipped)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(), before, strict=True))
    assert skipped[1].step == 3 and skipped[1].learning_rate < skipped[0].learning_rate
    assert not trainer.step([batch]).skipped
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(state(), before, strict=True))
    # The steps that may be skipped in a row are counted from the last update.
    assert all(trainer.step([batch], noise=bad).skipped for _ in range(2))
    with pytest.raises(NonFiniteLossError, match=r"step 7 .* weights are still those of step 4.*`max_skipped_steps`"):
        trainer.step([batch], noise=bad)


def test_a_spike_is_a_gradient_norm_far_above_those_before():
    guard = UpdateGuard(max_skipped_steps=1, spike_factor=4.0)
    norms = [50.0, *99 * [1.0]]  # the first steps may be anything
    assert all(guard.accept(step, 3.0, norm) for step, norm in enumerate(norms, 1))
    assert guard.mean_grad_norm == pytest.approx(np.mean(norms))
    mean = guard.mean_grad_norm
    assert guard.accept(101, 3.0, 3.9 * mean) and guard.mean_grad_norm == pytest.approx(1.029 * mean)
    mean = guard.mean_grad_norm
    assert not guard.accept(102, 3.0, 4.1 * mean) and guard.mean_grad_norm == mean
    # A checkpoint keeps the mean and the number of skipped steps.
    resumed = UpdateGuard(1, 4.0, **json.loads(json.dumps(guard.state_dict())))
    with pytest.raises(DivergenceError, match=r"step 103 has the loss 3.0 and the gradient norm 20.0 .*mean is"):
        resumed.accept(103, 3.0, 20.0)
    assert guard.accept(103, 3.0, 1.0) and guard.num_skipped == 0


def test_a_batch_that_spikes_is_skipped():
    trainer = new_trainer(guard=UpdateGuard(max_skipped_steps=1, spike_factor=5.0, num_updates=99))
    batch = random_batch(4, trainer.base_model.config)
    trainer.step([batch])
    trainer.guard.mean_grad_norm = 1.0
    wild = trainer.step([batch], noise=[torch.full(batch.pixels.shape, 1e4)])
    assert wild.skipped and math.isfinite(wild.loss) and math.isfinite(wild.grad_norm)


def test_random_flips_mirror_half_of_the_images_by_their_index():
    model = tiny_model(image_size=(8, 12), num_levels=65536)
    pixels, seen = random_bytes(64, model.config).int(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def flipped(indices: torch.Tensor, **fields) -> torch.Tensor:
        """Return which images the model sees mirrored, in one step."""
        trainer = Trainer(model, 2, learning_rate=1e-9, **fields)
        levels = pixels[indices % 64].to(torch.uint16)  # which PyTorch 2.9 cannot index
        trainer.step([Batch(levels, indices)])
        images = scale_bytes(levels, 65536)
        is_flipped = (seen[-1] == images.flip(3)).flatten(1).all(dim=1)
        assert torch.equal(~is_flipped, (seen[-1] == images).flatten(1).all(dim=1))
        return is_flipped

    first = flipped(torch.arange(64), random_flip=True)
    assert 20 < first.sum() < 44 and not flipped(torch.arange(64)).any()
    # Neither the share of a process nor its batch size matters, only the index and the seed.
    assert torch.equal(flipped(torch.arange(63, 20, -2), random_flip=True), first[torch.arange(63, 20, -2)])
    for other in (
        flipped(torch.arange(64, 128), random_flip=True),
        flipped(torch.arange(64), random_flip=True, seed=1),
    ):
        assert 20 < (other != first).sum() < 44
