# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The model of a run: a new one, or a saved one, which may get another image size or other classes."""

import logging
from contextlib import suppress
from pathlib import Path

from accelerate.utils import set_seed

from ..arguments import TrainArguments, read_recipe
from ..hub import load_config
from ..model.configuration_jet import JetConfig
from ..model.modeling_jet import JetForDensityEstimation
from ..model.positions_jet import resized_weights
from .trainer import check_noise_curriculum


logger = logging.getLogger(__name__)

# Fields of a saved model that fine-tuning may change.
CHANGEABLE = ("image_size", "num_classes")


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
        kept |= resized_weights(model, config)
        before, after = (" x ".join(map(str, grid_shape)) for grid_shape in (old.grid_shape, config.grid_shape))
        logger.info(
            f"`image_size` {old.image_size} -> {config.image_size}: position embeddings are interpolated from "
            f"{before} to {after} patches."
        )
    set_seed(seed)
    adapted = JetForDensityEstimation(config)
    adapted.load_state_dict(kept, strict=False)
    return adapted
