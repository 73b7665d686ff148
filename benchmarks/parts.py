# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The parts of a benchmark; each gives rows of figures."""

import dataclasses
import inspect
import logging

import datasets
import torch

from jet_hf.analysis.cost import forward_flops, peak_flops, training_flops
from jet_hf.analysis.evaluation import evaluate
from jet_hf.data import Batch
from jet_hf.model.configuration_jet import JetConfig
from jet_hf.model.modeling_jet import JetForDensityEstimation, scale_bytes
from jet_hf.utils.noise import uniform_noise

from .contenders import BF16, CHECKPOINTED, COMPILED, FLOOR, JET_HF, OPERATIONS, Contender, Work, build
from .measures import first_call, interleave, peak_memory


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Setting:
    """
    What all parts share.

    Args:
        config: Sizes of the model, but for what a part changes.
        patch_sizes: Each is a table of its own.
        batch_size: Images at a time.
        contenders: Who takes part; those that are not installed are left out.
        rounds: Times that each is measured.
        device: Where.
        compile_mode: Of `torch.compile`.
        operations: Those of the part [`speed`].
        compile_layers: Numbers of coupling layers of the part [`compilation`].
    """

    config: JetConfig
    patch_sizes: tuple[int, ...]
    batch_size: int
    contenders: tuple[Contender, ...]
    rounds: int
    device: str
    compile_mode: str | None = None
    operations: tuple[str, ...] = OPERATIONS
    compile_layers: tuple[int, ...] = ()

    def with_fields(self, **fields) -> JetConfig:
        """The model's configuration with other fields."""
        own = {name: getattr(self.config, name) for name in inspect.get_annotations(JetConfig)}
        if "hidden_size" in fields:
            own["intermediate_size"] = None
        return JetConfig(**own | fields)

    def build(self, contender: Contender, operation: str, config: JetConfig, batch_size: int | None = None) -> Work:
        return build(contender, operation, config, batch_size or self.batch_size, self.device, self.compile_mode)


def speed(setting: Setting) -> list[dict]:
    """Seconds of each operation, all contenders in turns."""
    rows = []
    for patch_size in setting.patch_sizes:
        config = setting.with_fields(patch_size=patch_size)
        for operation in setting.operations:
            taking_part = [contender for contender in setting.contenders if contender.can(operation)]
            logger.info(f"speed: {operation}, patch size {patch_size}, {len(taking_part)} contenders")
            works = {contender.name: setting.build(contender, operation, config) for contender in taking_part}
            timings = interleave({name: work.run for name, work in works.items()}, setting.rounds, setting.device)
            flops = training_flops(config) if operation == "train" else forward_flops(config)
            for name, timing in timings.items():
                low, high = timing.quartiles
                row = {"operation": operation, "patch_size": patch_size, "contender": name, "seconds": timing.median}
                row |= {"low": low, "high": high, "images_per_second": setting.batch_size / timing.median}
                rows.append(row | {"utilization": _utilization(setting, flops, timing.median)})
    return rows


def _utilization(setting: Setting, flops: int, seconds: float) -> float | None:
    """Operations a second over the device's peak, where that is known."""
    peak = peak_flops(torch.cuda.get_device_name()) if torch.device(setting.device).type == "cuda" else None
    return peak and flops * setting.batch_size / seconds / peak


def memory(setting: Setting) -> list[dict]:
    """Bytes of a training step, those of jet_hf with gradient checkpointing among them."""
    contenders = [*setting.contenders, Contender(JET_HF, (CHECKPOINTED,))]
    rows = []
    for patch_size in setting.patch_sizes:
        config = setting.with_fields(patch_size=patch_size)
        for contender in dict.fromkeys(contenders):
            logger.info(f"memory: {contender.name}, patch size {patch_size}")
            resident, peak = peak_memory(setting.build(contender, "train", config), setting.device)
            rows.append({"patch_size": patch_size, "contender": contender.name, "resident": resident, "peak": peak})
    return rows


def precision(setting: Setting, num_images: int = 64) -> list[dict]:
    """Bits per dimension with conditioners in bfloat16, and in float32 on the same images and noise."""
    rows = []
    shape = (setting.config.num_channels, setting.config.image_size, setting.config.image_size)
    # Smooth images: noise would have 8 bits whatever the model does.
    small = torch.rand(num_images, shape[0], 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(small, size=shape[1:], mode="bicubic").clamp(0, 1)
    images = scale_bytes((255 * images).byte()).to(setting.device)
    noise = uniform_noise(0, torch.arange(num_images, device=images.device), shape)
    for patch_size in setting.patch_sizes:
        work = setting.build(Contender(JET_HF), "encode", setting.with_fields(patch_size=patch_size))
        with torch.no_grad():
            exact = work.model(images, noise=noise).bits_per_dim
            with torch.autocast(torch.device(setting.device).type, torch.bfloat16):
                autocast = work.model(images, noise=noise).bits_per_dim
            narrow = work.model.bfloat16()(images, noise=noise).bits_per_dim
        for name, bits in (("bf16 weights", narrow), ("autocast", autocast)):
            difference = bits - exact
            row = {"patch_size": patch_size, "conditioners": name, "bits_per_dim": exact.mean().item()}
            row |= {"mean_error": difference.mean().item(), "largest_error": difference.abs().max().item()}
            rows.append(row)
    return rows


def compilation(setting: Setting) -> list[dict]:
    """Seconds that compiling a training step takes in a new process, by the number of coupling layers."""
    contenders = [c for c in setting.contenders if COMPILED in c.options and BF16 not in c.options]
    rows = []
    for number in setting.compile_layers:
        config = setting.with_fields(num_coupling_layers=number, patch_size=setting.patch_sizes[0])
        for contender in contenders:
            logger.info(f"compilation: {contender.name}, {number} coupling layers")
            call = first_call(contender, "train", config, setting.batch_size, setting.device, setting.compile_mode, 1)
            rows.append({"contender": contender.name, "layers": number, "seconds": call.first - call.later})
    return rows


def latency(setting: Setting) -> list[dict]:
    """Seconds to a new process's first image, and to a later one."""
    rows = []
    for patch_size in setting.patch_sizes:
        config = setting.with_fields(patch_size=patch_size)
        for contender in setting.contenders:
            if contender.can("decode"):
                logger.info(f"latency: {contender.name}, patch size {patch_size}")
                call = first_call(contender, "decode", config, 1, setting.device, setting.compile_mode, 15)
                row = {"contender": contender.name, "patch_size": patch_size}
                rows.append(row | {"first": call.first, "later": call.later})
    return rows


# Kinds of operations in a profile, by what their names contain; the first that fits counts.
KINDS = {
    "matrix products": ("mm", "linear_pointwise", "aten::linear"),
    "attention": ("scaled_dot_product", "softmax"),
    "layer norms": ("layer_norm",),
    "optimiser and clipping": ("adam", "norm"),
    "moving and copying": ("copy", "index", "cat", "fill", "zero", "clone"),
    "element by element": ("gelu", "sigmoid", "aten::add", "aten::mul", "aten::div", "aten::sub", "lerp"),
}


def _kind(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "rest")


def profile(setting: Setting, repeats: int = 3) -> list[dict]:
    """Shares of jet_hf's own time in each kind of operation, and their number of calls."""
    device_type = torch.device(setting.device).type
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (device_type == "cuda")
    rows = []
    for patch_size in setting.patch_sizes:
        config = setting.with_fields(patch_size=patch_size)
        for operation in ("encode", "train"):
            logger.info(f"profile: {operation}, patch size {patch_size}")
            work = setting.build(Contender(JET_HF), operation, config)
            work.run()
            with torch.profiler.profile(activities=activities) as recorded:
                for _ in range(repeats):
                    work.run()
            times: dict[str, float] = {}
            for event in recorded.key_averages():
                kind = _kind(event.key)
                times.setdefault(kind, 0.0)
                times[kind] += event.self_device_time_total if device_type == "cuda" else event.self_cpu_time_total
            total = sum(times.values())
            for kind, spent in sorted(times.items(), key=lambda item: -item[1]):
                rows.append({"patch_size": patch_size, "operation": operation, "kind": kind, "share": spent / total})
    return rows


GROWTH = {
    "batch_size": (1, 2, 4, 8, 16, 32),
    "num_coupling_layers": (2, 4, 8, 16),
    "image_size": (32, 64, 128, 256),
    "hidden_size": (64, 128, 256, 512),
}


def growth(setting: Setting, axes: dict[str, tuple[int, ...]] = GROWTH) -> list[dict]:
    """Seconds of jet_hf and of the floor as one size grows, all sizes in turns; but for the batch, of two images."""
    rows = []
    contenders = [c for c in setting.contenders if c.name in (JET_HF, FLOOR)]
    for axis, values in axes.items():
        for operation in ("encode", "train"):
            logger.info(f"growth: {axis}, {operation}")
            runs, sizes = {}, {}
            for value in values:
                fields = {"num_coupling_layers": 2, "patch_size": 4} | ({axis: value} if axis != "batch_size" else {})
                config, batch_size = setting.with_fields(**fields), value if axis == "batch_size" else 2
                flops = batch_size * (training_flops(config) if operation == "train" else forward_flops(config))
                for contender in contenders:
                    name = f"{contender.name} {value}"
                    runs[name] = setting.build(contender, operation, config, batch_size).run
                    sizes[name] = {"axis": axis, "value": value, "contender": contender.name, "flops": flops}
            timings = interleave(runs, max(3, setting.rounds // 2), setting.device)
            rows += [
                sizes[name] | {"operation": operation, "seconds": timing.median} for name, timing in timings.items()
            ]
    return rows


def scoring(setting: Setting, num_batches: int = 8) -> list[dict]:
    """Images a second of `evaluate`, which `scripts/evaluate.py` calls, and of the bare model on the same images."""
    rows = []
    for patch_size in setting.patch_sizes:
        config = setting.with_fields(patch_size=patch_size)
        logger.info(f"scoring: patch size {patch_size}")
        shape = (config.num_channels, config.image_size, config.image_size)
        number = num_batches * setting.batch_size
        pixels = torch.randint(256, (number, *shape), dtype=torch.uint8)
        features = datasets.Features({"pixels": datasets.Array3D(shape, "uint8")})
        dataset = datasets.Dataset.from_dict({"pixels": list(pixels.numpy())}, features=features)
        model = JetForDensityEstimation(config).to(setting.device).eval()
        parts = pixels.split(setting.batch_size)
        batches = [Batch(part, torch.arange(len(part))).to(setting.device) for part in parts]
        noise = uniform_noise(0, batches[0].indices, shape)

        @torch.no_grad()
        def bare(model=model, batches=batches, noise=noise) -> list[torch.Tensor]:
            return [model(scale_bytes(batch.pixels), noise=noise).bits_per_dim for batch in batches]

        def whole(model=model, dataset=dataset):
            return evaluate(model, dataset, setting.batch_size)

        timings = interleave({"bare": bare, "evaluate": whole}, setting.rounds, setting.device)
        speeds = {name: number / timing.median for name, timing in timings.items()}
        rows.append({"patch_size": patch_size, **speeds})
    return rows
