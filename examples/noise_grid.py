# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Compare samples of models that are trained with Gaussian noise, with a noise curriculum, or without either.

    python -m examples.noise_grid --output_dir noise_grid

It trains the demo's models of digits and of photographs once per kind of noise, and writes a table, a picture and
`results.json`. The table in `docs/samples.md` is that of the defaults.
"""

import argparse

from accelerate.utils import set_seed

from jet_hf import JetConfig, JetForDensityEstimation
from jet_hf.analysis.evaluation import evaluate
from jet_hf.analysis.sampling import sample_images
from jet_hf.utils.files import new_folder, strict_json
from jet_hf.utils.tables import markdown_table

from .demo import (
    BATCH_SIZES,
    COLUMNS,
    DemoArguments,
    TrainingData,
    TrainingSettings,
    figures_of_samples,
    model_configs,
    read_crops,
    read_digits,
    train,
)
from .plots import plot_image_rows


NOISE_STDS = (None, 0.02, 0.05, 0.1, 0.2)
# First noise level, in gray levels of 8-bit images, and share of the steps with noise: JetFormer's, and a gentler one.
CURRICULA = ((64.0, 1.0), (16.0, 0.5))
FIGURES = {
    "digits": ["kernel_distance", "nearest_neighbor_accuracy", "seam_strength", "classifier_accuracy"],
    "noisy_photographs": ["nearest_neighbor_accuracy", "seam_strength"],
}
HEADER = ("KID", "nearest neighbor", "seams", "classifier", "Bayes classifier", "bits per dimension")


def run_grid(output_dir: str, arguments: DemoArguments) -> None:
    """
    Train and compare the models; write the table, the pictures and the results to a new folder.

    Raises:
        FileExistsError: if `output_dir` holds anything but earlier results.
    """
    results: dict[str, dict[str, dict]] = {}
    with new_folder(output_dir, replaces="results.json") as folder:
        data = {
            "digits": read_digits(folder / "data" / "digits"),
            "noisy_photographs": read_crops(folder / "data" / "photographs", arguments),
        }
        for name, images in data.items():
            config, rows = model_configs(arguments)[name], {}
            results[name] = {}
            for title, noise_std, (curriculum, ratio) in kinds_of_noise():
                set_seed(arguments.seed)
                model = JetForDensityEstimation(JetConfig(**config.own_fields() | {"noise_std": noise_std}))
                settings = TrainingSettings(
                    max_steps=getattr(arguments, f"{name}_steps"),
                    max_minutes=arguments.max_minutes,
                    batch_size=BATCH_SIZES[name],
                    seed=arguments.seed,
                    noise_curriculum=curriculum,
                    noise_curriculum_ratio=ratio,
                )
                train(f"{name}, {title}", model, images, settings)
                for denoise in (False, True) if noise_std else (False,):
                    row = title + (", denoised" if denoise else "")
                    results[name][row] = measure(name, model.eval(), images, arguments, denoise)
                    # One sample of each class, or as many of a model without classes.
                    rows[row] = sample_images(model, images.processor, COLUMNS, seed=arguments.seed, denoise=denoise)
            plot_image_rows(folder / f"{name}.png", rows, COLUMNS)
        tables = [format_table(name, rows) for name, rows in results.items()]
        (folder / "tables.md").write_text("\n\n".join(tables) + "\n")
        (folder / "results.json").write_text(strict_json(results, indent=2) + "\n")
    print(*tables, sep="\n\n")


def kinds_of_noise() -> list[tuple[str, float | None, tuple[float, float]]]:
    """Return the title, the `noise_std` and the noise curriculum of each training."""
    none = (0.0, 1.0)
    kinds = [("uniform" if std is None else f"noise {std}", std, none) for std in NOISE_STDS]
    curricula = [(f"curriculum from {level:g} over {ratio:.0%}", None, (level, ratio)) for level, ratio in CURRICULA]
    return [kinds[0], *curricula, *kinds[1:]]


def measure(
    name: str, model: JetForDensityEstimation, images: TrainingData, arguments: DemoArguments, denoise: bool
) -> dict[str, float | None]:
    """Return the figures of samples, and the bits per dimension of a model that has them."""
    names = [*FIGURES[name], *(["bayes_accuracy"] if name == "digits" else [])]
    count = arguments.num_samples if name == "digits" else arguments.num_eval_crops
    figures = figures_of_samples(model, images, count, arguments.seed, names, denoise=denoise)
    values = {figure: row["samples"] for figure, row in figures.items()}
    has_bits = model.config.noise_std is None
    return values | {"bits_per_dim": evaluate(model, images.held_out).mean if has_bits else None}


def format_table(name: str, rows: dict[str, dict[str, float | None]]) -> str:
    """Return the Markdown table of one data set, without columns that it does not have."""
    keys = [*FIGURES["digits"], "bayes_accuracy", "bits_per_dim"]
    columns = [(title, key) for title, key in zip(HEADER, keys, strict=True) if key in next(iter(rows.values()))]
    lines = [[name.replace("noisy_", ""), *(title for title, _ in columns)]]
    for title, values in rows.items():
        lines.append([title, *("" if values[key] is None else f"{values[key]:.3f}" for _, key in columns)])
    return markdown_table(lines, left=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare samples of models trained with several kinds of noise.")
    parser.add_argument("--output_dir", default="noise_grid", help="folder to write; earlier results are replaced")
    parser.add_argument("--max_minutes", type=float, default=30.0, help="time limit of each training")
    for field, default in (("digits_steps", 1000), ("noisy_photographs_steps", 300)):
        parser.add_argument(f"--{field}", type=int, default=default, help="optimizer steps of each training")
    parsed = vars(parser.parse_args())
    run_grid(parsed.pop("output_dir"), DemoArguments(**parsed))
