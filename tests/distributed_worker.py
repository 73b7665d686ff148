"""
Measurements that must be the same for one process, for DDP and for FSDP2: training, scores, averages, samples.

    torchrun --nproc-per-node 2 tests/distributed_worker.py FOLDER

takes them under DDP, then under FSDP2, and writes `ddp-RANK.json` and `fsdp2-RANK.json`. accelerate enables FSDP for
accelerators only; if its state says that FSDP is on, it shards on CPUs over gloo with torch's own `fully_shard`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from conftest import random_bytes, randomize, tiny_config, tiny_model
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.evaluation import evaluate, score_images
from jet_hf.analysis.sample_quality import SampleOptions, describe_samples, evaluate_samples
from jet_hf.data import BatchSharding, train_batches
from jet_hf.training import TrainArguments, Trainer, UpdateGuard
from jet_hf.training.checkpoints import Checkpointer, find_checkpoint
from jet_hf.training.monitor import MetricsWindow


# The settings of recipes/accelerate/fsdp2.yaml under the names of accelerate's plugin.
SHARDING = {
    "fsdp_version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_cls_names_to_wrap": ["JetCoupling"],
    "reshard_after_forward": True,
    "state_dict_type": "SHARDED_STATE_DICT",
    # Loading in one process treats every entry of the state dict as a sharded parameter, but permutations are buffers.
    "cpu_ram_efficient_loading": False,
}
NUM_STEPS, SAVED_AT = 5, 3
NUM_EVAL_IMAGES = 7
MICRO_BATCHES = 2


def pixels(num_images: int, seed: int) -> datasets.Dataset:
    features = datasets.Features({"pixels": datasets.Array3D((3, 8, 8), "uint8")})
    images = random_bytes(num_images, tiny_config(), seed).numpy()
    return datasets.Dataset.from_dict({"pixels": list(images)}, features=features)


def make_accelerator() -> Accelerator:
    plugin = GradientAccumulationPlugin(num_steps=MICRO_BATCHES, adjust_scheduler=False, sync_with_dataloader=False)
    return Accelerator(cpu=True, gradient_accumulation_plugin=plugin)


def make_trainer(model: JetForDensityEstimation, accelerator: Accelerator) -> Trainer:
    noise_curriculum = 16 if model.config.noise_std is None else 0
    options = {"learning_rate": 0.01, "ema_decay": 0.8, "seed": 3, "noise_curriculum": noise_curriculum}
    return Trainer(model, num_training_steps=NUM_STEPS, accelerator=accelerator, **options)


def make_checkpointer(trainer: Trainer, folder: Path) -> Checkpointer:
    arguments = TrainArguments(output_dir=str(folder), train_batch_size=8)
    processor = JetImageProcessor(size=trainer.base_model.config.image_size)
    return Checkpointer(arguments, trainer, processor, trajectory={}, window=MetricsWindow(), grace_seconds=None)


def take_steps(trainer: Trainer, first: int, last: int) -> list[list[float]]:
    """Return the losses and gradient norms of the steps from `first` up to `last`."""
    accelerator = trainer.accelerator
    shares = BatchSharding(8, MICRO_BATCHES, accelerator.process_index, accelerator.num_processes)
    batches = iter(train_batches(pixels(11, seed=1), shares, range(first, last), seed=5))
    measured = []
    for _ in range(first, last):
        metrics = trainer.step([next(batches) for _ in range(MICRO_BATCHES)])
        measured.append([metrics.loss, metrics.grad_norm])
    return measured


def score(trainer: Trainer) -> list[float]:
    held_out = pixels(NUM_EVAL_IMAGES, seed=2)
    return evaluate(
        trainer.model, held_out, batch_size=2, num_noise_samples=2, accelerator=trainer.accelerator
    ).bits_per_dim.tolist()


def compare_samples(accelerator: Accelerator) -> dict | None:
    """Return the figures of samples, of the main process only."""
    model = tiny_model(num_classes=2)
    held_out, real = (
        pixels(count, seed).add_column("label", [0, 1] * (count // 2)) for count, seed in ((12, 3), (14, 4))
    )
    options = SampleOptions(num_samples=11, num_noise_samples=1, batch_size=2)
    report = evaluate_samples(model, JetImageProcessor(size=8), held_out, real, options, accelerator)
    return None if report is None else describe_samples(report)


def measure(accelerator: Accelerator) -> tuple[Trainer, dict]:
    """Train up to the step that is saved, and sample first of all."""
    model = tiny_model()
    trainer = make_trainer(model, accelerator)
    results = {"samples": model.sample(2, generator=torch.Generator().manual_seed(0)).tolist()}
    results["steps"] = take_steps(trainer, 0, SAVED_AT)
    results["scores"] = score(trainer)
    with trainer.averaged_weights():
        results["averaged_scores"] = score(trainer)
    results["scores_again"] = score(trainer)
    results["samples_again"] = model.sample(2, generator=torch.Generator().manual_seed(0)).tolist()
    noisy = make_trainer(tiny_model(noise_std=[0.05, 0.4]), make_accelerator())
    generator = torch.Generator().manual_seed(0)
    results["denoised_samples"] = noisy.base_model.sample(2, generator=generator, denoising_steps=2).tolist()
    results["noisy_steps"] = take_steps(noisy, 0, 2)
    held_out = pixels(NUM_EVAL_IMAGES, seed=2)
    results["noisy_scores"] = score_images(noisy.model, held_out, 2, accelerator=noisy.accelerator).tolist()
    return trainer, results


def save_and_resume(trainer: Trainer, folder: Path) -> dict:
    """Save and continue, and resume a second time from the checkpoint with another model."""
    make_checkpointer(trainer, folder).save()
    results = {"straight": take_steps(trainer, SAVED_AT, NUM_STEPS)}
    with trainer.averaged_weights():
        results["straight_averaged"] = score(trainer)
    other = make_trainer(randomize(tiny_model(), seed=9), make_accelerator())
    take_steps(other, 0, 1)
    make_checkpointer(other, folder).load(find_checkpoint(folder, "latest"))
    results["resumed"] = take_steps(other, SAVED_AT, NUM_STEPS)
    with other.averaged_weights():
        results["resumed_averaged"] = score(other)
    return results


def describe_sharding(trainer: Trainer) -> dict:
    """Return which modules and parameters are sharded, after a forward pass."""
    model = trainer.base_model
    parameters = list(model.parameters())
    return {
        "sharded_modules": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
        "all_sharded": all(isinstance(parameter, DTensor) for parameter in [*parameters, *trainer.ema.values()]),
        "local_share": sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters),
    }


def score_in_bfloat16() -> dict:
    """Take a step with weights gathered in bfloat16, for a flow whose state stays float32."""
    accelerator = make_accelerator()
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    accelerator.state.fsdp_plugin = replace(accelerator.state.fsdp_plugin, mixed_precision_policy=policy)
    trainer = make_trainer(tiny_model(), accelerator)
    steps = take_steps(trainer, 0, 1)
    images = random_bytes(2, trainer.base_model.config) / 127.5 - 1
    latents = trainer.model(images, noise=torch.zeros_like(images)).latents
    return {"bfloat16_steps": steps, "bfloat16_latents": str(latents.dtype)}


def skip_a_step(accelerator: Accelerator) -> list[list]:
    """Take three steps, in the second of which the noise of one process is infinite."""
    trainer = make_trainer(tiny_model(), accelerator)
    trainer.guard = UpdateGuard(max_skipped_steps=1)
    shares = BatchSharding(8, MICRO_BATCHES, accelerator.process_index, accelerator.num_processes)
    batches = iter(train_batches(pixels(11, seed=1), shares, range(3), seed=5))
    measured = []
    for step in range(3):
        micro_batches = [next(batches) for _ in range(MICRO_BATCHES)]
        value = float("inf") if step == 1 and accelerator.is_main_process else 0.5
        noise = [torch.full(batch.pixels.shape, value) for batch in micro_batches]
        metrics = trainer.step(micro_batches, noise=noise)
        measured.append([metrics.skipped, metrics.loss])
    return measured


def main(folder: Path) -> None:
    accelerator = make_accelerator()
    rank = accelerator.process_index
    _, results = measure(accelerator)
    results["skipped_step"] = skip_a_step(make_accelerator())
    results["figures"] = compare_samples(accelerator)
    (folder / f"ddp-{rank}.json").write_text(json.dumps(results))

    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**SHARDING)
    # accelerate keeps the type in two places, also when it enables FSDP itself.
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    trainer, results = measure(make_accelerator())
    results |= describe_sharding(trainer)
    trainer.save_model(folder / "model")
    results |= save_and_resume(trainer, folder)
    results["skipped_step"] = skip_a_step(make_accelerator())
    results |= score_in_bfloat16()
    (folder / f"fsdp2-{rank}.json").write_text(json.dumps(results))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
