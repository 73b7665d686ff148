# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Find the defective ones among pictures of a product line.

    python -m examples.odd_products --model space/model

The products are drawn here: enameled buttons, each in another light, some of them with a scratch, a hole or a stain.
The model has seen photographs, and no button. The detector only needs pictures of good products, with whose scores it
compares the scores of the others. Of all scores, the largest patch finds small defects: it compares each patch with
the same patch of the good products.
"""

import argparse

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from sklearn.metrics import roc_auc_score

from jet_hf import JetForDensityEstimation
from jet_hf.anomaly import AnomalyDetector


DEFECTS = ("scratch", "hole", "stain")
# Products are drawn at four times their size, and averaged down.
SIZE, SCALE = 32, 4


def draw_button(rng: np.random.Generator, defect: str | None = None) -> Image.Image:
    """Draw a button in a random light, with or without a defect at a random place."""
    light, tilt = rng.uniform(0.8, 1.1), rng.uniform(-0.2, 0.2, size=2)
    side = SIZE * SCALE
    image = Image.new("RGB", (side, side), (70, 75, 80))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0.1 * side, 0.1 * side, 0.9 * side, 0.9 * side), fill=(150, 40, 45), outline=(60, 15, 20), width=6)
    draw.ellipse((0.25 * side, 0.25 * side, 0.75 * side, 0.75 * side), outline=(215, 190, 90), width=5)
    x, y = rng.uniform(0.35, 0.6, size=2) * side
    if defect == "scratch":
        draw.line((x - 12, y - 12, x + 14, y + 8), fill=(235, 235, 230), width=4)
    elif defect == "hole":
        draw.ellipse((x, y, x + 14, y + 14), fill=(10, 10, 10))
    elif defect == "stain":
        draw.ellipse((x - 8, y - 6, x + 16, y + 12), fill=(70, 90, 40))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)).resize((SIZE, SIZE), Image.Resampling.BOX), float)
    rows, columns = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    shading = light * (1 + tilt[0] * rows + tilt[1] * columns)[..., None]
    pixels = pixels * shading + rng.normal(0, 2, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def main(num_good: int = 100, num_odd: int = 20, model: str = "space/model", seed: int = 0) -> dict[str, float]:
    """
    Fit a detector to good products, judge others, and return the area under the ROC curve of each score.

    Args:
        num_good: Number of good products to compare with, and of as many others to judge.
        num_odd: Number of products with each defect.
        model: Folder of a saved model of color images.
        seed: Seed of the products.
    """
    rng = np.random.default_rng(seed)
    jet = JetForDensityEstimation.from_pretrained(model).eval()
    detector = AnomalyDetector(jet).fit([draw_button(rng) for _ in range(num_good)])
    names = ["good"] * num_good + [defect for defect in DEFECTS for _ in range(num_odd)]
    products = [draw_button(rng, None if name == "good" else name) for name in names]
    judgment = detector.judge(products)

    is_odd = np.array(names) != "good"
    areas = {name: float(roc_auc_score(is_odd, scores)) for name, scores in judgment.scores.items()}
    for name, area in sorted(areas.items(), key=lambda item: -item[1]):
        found = judgment.p_values[name][is_odd] <= 0.05
        print(f"{name:24} AUROC {area:.3f}; {found.mean():4.0%} of the defects have p <= 0.05")
    return areas


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Find the defective ones among pictures of a product line.")
    parser.add_argument("--num_good", type=int, default=100, help="number of good products to compare with")
    parser.add_argument("--num_odd", type=int, default=20, help="number of products with each defect")
    parser.add_argument("--model", default="space/model", help="folder of a saved model, or its name on the Hub")
    parser.add_argument("--seed", type=int, default=0, help="seed of the products")
    main(**vars(parser.parse_args()))
