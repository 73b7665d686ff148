import json

import numpy as np
import pytest
import torch
from conftest import FIXTURES, random_bytes, tiny_config, tiny_model

from jet_hf import JetForDensityEstimation
from jet_hf.convert import convert_big_vision
from jet_hf.convert.checkpoints import read_big_vision
from jet_hf.training import NonFiniteLossError, Trainer, build_optimizer, build_scheduler


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
        measured.append(trainer.step(pixels, noise))
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

    # The same file with the final parameters in the place of the first ones.
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


def test_schedule_rises_from_zero_and_falls_to_exactly_zero():
    optimizer = build_optimizer(torch.nn.Linear(1, 1), learning_rate=1.0)
    scheduler = build_scheduler(optimizer, num_training_steps=100, warmup_ratio=0.2)
    rates = []
    for _ in range(101):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0 and rates[10] == 0.5 and max(rates) == rates[20] == 1 and rates[60] == pytest.approx(0.5)
    assert rates[100] == 0 and all(rate > 0 for rate in rates[1:100])


@pytest.mark.parametrize(
    "arguments", [{"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"weight_decay": -1.0}]
)
def test_optimizer_names_a_bad_argument(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        build_optimizer(torch.nn.Linear(1, 1), **arguments)


@pytest.mark.parametrize("arguments", [(0, 0.1), (10, 1.0), (10, -0.1)])
def test_scheduler_names_a_bad_argument(arguments):
    optimizer = build_optimizer(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"num_training_steps|warmup_ratio"):
        build_scheduler(optimizer, *arguments)


def test_a_run_fits_a_batch():
    torch.manual_seed(0)
    model = JetForDensityEstimation(tiny_config())
    pixels = random_bytes(4, model.config) // 64
    trainer = Trainer(model, num_training_steps=30, learning_rate=1e-2)
    losses = []
    trainer.run([pixels] * 30, on_step=lambda metrics: losses.append(metrics.loss))
    assert len(losses) == 30 and losses[-1] < losses[0] - 1


def test_a_run_that_runs_out_of_batches_says_so():
    trainer = Trainer(tiny_model(), num_training_steps=3)
    with pytest.raises(ValueError, match="ran out after 1 of 3"):
        trainer.run([random_bytes(1, trainer.model.config)])


def test_a_non_finite_loss_stops_before_the_weights_change():
    model = tiny_model()
    trainer = Trainer(model, num_training_steps=3, learning_rate=1.0)
    with torch.no_grad():
        model.jet.couplings[0].conditioner.out_proj.bias[0] = float("inf")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="step 1"):
        trainer.step(random_bytes(2, model.config))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
