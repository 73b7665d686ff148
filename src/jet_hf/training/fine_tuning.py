# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The model of a run: a new one, or a saved one, which may get another image size or other classes."""

import logging
import math
from contextlib import suppress
from pathlib import Path

import torch
from accelerate.utils import set_seed

from ..arguments import TrainArguments, read_recipe
from ..hub import load_config
from ..model.configuration_jet import JetConfig
from ..model.flow_jet import JetCoupling, spatial_permutation
from ..model.modeling_jet import JetForDensityEstimation
from .trainer import check_noise_curriculum


logger = logging.getLogger(__name__)

# Fields of a saved model that fine-tuning may change.
CHANGEABLE = ("image_size", "num_classes")
POSITIONS = "position_embeddings"


def find_config(arguments: TrainArguments) -> JetConfig:
    """
    Return the configuration of the model that a run trains.

    Raises:
        ValueError: if the model to fine-tune cannot be found, or differs from the given fields in more than those in
            `CHANGEABLE`; for a model with a context, which datasets of images do not have; or for a noise curriculum
            that does not fit the model.
    """
    given, name_or_path = arguments.config_fields(), arguments.model_name_or_path
    if name_or_path is None:
        config = JetConfig(**given)
    else:
        if not Path(name_or_path).exists() and (recipe := recipe_of(name_or_path)):
            raise ValueError(
                f"`model_name_or_path` {name_or_path} does not exist yet: train it first by `jet-hf train --config "
                f"{recipe}`."
            )
        saved = load_config(name_or_path, "model_name_or_path")
        fields = saved.own_fields()
        for name, value in given.items():
            if value != fields[name] and name not in CHANGEABLE:
                raise ValueError(
                    f"`{name}` must be {fields[name]!r}, as in the model {name_or_path}, got {value!r}: its weights "
                    f"fit no other value. Fine-tuning can change only {' and '.join(CHANGEABLE)}."
                )
        config = JetConfig(**fields | given)
    if config.context_size is not None:
        raise ValueError(
            f"`context_size` must be None, since datasets of images have no context tokens, got "
            f"{config.context_size}: train a model with a context in a training loop of your own."
        )
    check_noise_curriculum(arguments.noise_curriculum, config)
    return config


def recipe_of(output_dir: str) -> Path | None:
    """Return the recipe in the folder `recipes` that trains into a folder, if there is one."""
    for path in sorted(Path("recipes").glob("*.yaml")):
        with suppress(ValueError):
            if read_recipe(str(path)).get("output_dir") == output_dir.rstrip("/"):
                return path
    return None


def make_model(arguments: TrainArguments, config: JetConfig) -> JetForDensityEstimation:
    """Build a new model, or load the one to fine-tune as it was saved, with float32 weights."""
    if arguments.model_name_or_path is not None:
        return JetForDensityEstimation.from_pretrained(arguments.model_name_or_path, dtype="float32")
    set_seed(arguments.seed)
    return JetForDensityEstimation(config)


def adapt_model(model: JetForDensityEstimation, config: JetConfig, seed: int = 0) -> JetForDensityEstimation:
    """
    Return a model with the image size and the number of classes of `config`, and log what is new in it.

    Position embeddings are interpolated to the new grid of patches, and spatial splits are made for it. Other classes
    get a new embedding; a model without classes also gets the cross-attention to it, which adds nothing before it is
    trained. All other weights are kept.

    Args:
        model: Model; it is returned itself if it has this size and these classes.
        config: Configuration that differs in the fields in `CHANGEABLE` at most.
        seed: Seed of new weights.

    Raises:
        ValueError: for another size of a model whose spatial splits are not those of its configuration.
    """
    old = model.config
    if all(getattr(old, name) == getattr(config, name) for name in CHANGEABLE):
        return model
    kept = model.state_dict()
    if old.num_classes != config.num_classes:
        kept.pop("jet.label_embedding.weight", None)
        more = " and cross-attention to it, which adds nothing yet" if old.num_classes is None else ""
        logger.info(f"`num_classes` {old.num_classes} -> {config.num_classes}: a new embedding of the classes{more}.")
    if old.image_size != config.image_size:
        resize_grid(model, kept, config.grid_shape)
        before, after = (" x ".join(map(str, grid_shape)) for grid_shape in (old.grid_shape, config.grid_shape))
        logger.info(
            f"`image_size` {old.image_size} -> {config.image_size}: position embeddings are interpolated from "
            f"{before} to {after} patches."
        )
    set_seed(seed)
    adapted = JetForDensityEstimation(config)
    adapted.load_state_dict(kept, strict=False)
    return adapted


def resize_grid(model: JetForDensityEstimation, weights: dict[str, torch.Tensor], grid_shape: tuple[int, int]) -> None:
    """Interpolate the position embeddings among the weights of a model, and delete its spatial splits from them."""
    old_shape = model.config.grid_shape
    for name, module in model.named_modules():
        if not isinstance(module, JetCoupling):
            continue
        positions = f"{name}.conditioner.{POSITIONS}"
        if positions in weights:  # the CNN has none
            pattern = "channels" if module.map.masking else module.pattern
            weights[positions] = resize_positions(weights[positions], old_shape, grid_shape, pattern)
        if module.spatial:
            if not torch.equal(module.permutation, module.make_permutation()):
                raise ValueError(
                    f"`image_size` cannot be changed: `{name}.permutation` is not the split {module.pattern!r} of the "
                    "configuration."
                )
            del weights[f"{name}.permutation"]
    if (positions := f"dequantizer.{POSITIONS}") in weights:
        weights[positions] = resize_positions(weights[positions], old_shape, grid_shape, "channels")


def resize_positions(
    positions: torch.Tensor, old_shape: tuple[int, int], grid_shape: tuple[int, int], pattern: str
) -> torch.Tensor:
    """
    Interpolate the position embeddings of one conditioner bicubically.

    Args:
        positions: Tensor (1, N, E).
        old_shape, grid_shape: Numbers of rows and columns of patches in the old and in the new grid.
        pattern: Name of the spatial split whose first half the tokens are, or `"channels"` if they are all patches.

    Returns:
        Tensor (1, number of patches of the new grid, E).
    """

    def patches(shape: tuple[int, int]) -> torch.Tensor:
        number = math.prod(shape)
        return torch.arange(number) if pattern == "channels" else spatial_permutation(pattern, *shape)[: number // 2]

    # A patch of a half is cut into two tokens, see `split_indices`: they are channels of one grid here.
    values = positions.view(len(patches(old_shape)), -1).T
    grid = torch.zeros(len(values), math.prod(old_shape)).index_copy(1, patches(old_shape), values)
    known = torch.zeros(1, math.prod(old_shape)).index_fill(1, patches(old_shape), 1)
    grid, known = (part.view(-1, 1, *old_shape) for part in (grid, known))
    # The patches of the other half get the mean of their neighbors, of which at least one is known.
    cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None]
    sums, counts = (torch.nn.functional.conv2d(part, cross, padding=1) for part in (grid, known))
    grid = torch.where(known.bool(), grid, sums / counts)
    grid = torch.nn.functional.interpolate(grid, grid_shape, mode="bicubic", align_corners=False, antialias=True)
    return grid.flatten(1)[:, patches(grid_shape)].T.reshape(1, math.prod(grid_shape), -1)
