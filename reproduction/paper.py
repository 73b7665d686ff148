# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Results of the paper's tables, in bits per dimension of the validation images. `None` stands for "N/A".

The text that the numbers were read from has lost the captions of the tables in appendix A.2. Table 1 and the
architectures of appendix A.1 identify them: the best result of each table (3.93, 3.66, 3.53, 3.13) stands at the sizes
of the best model.
"""

import itertools
from collections.abc import Mapping


N_A = None

RATIOS = ("all_spatial", "1to1", "2to1", "3to1", "4to1", "5to1")
PATTERNS = ("rows", "columns", "checkerboard", "mix")

# Section 3.2.1: the number of channel couplings per spatial coupling down, the spatial patterns across.
COUPLING_LAYOUTS = {
    "all_spatial": (3.877, 3.882, 3.872, 3.787),
    "1to1": (3.747, 3.742, 3.741, 3.737),
    "2to1": (3.735, 3.731, 3.731, 3.725),
    "3to1": (3.732, 3.729, 3.728, 3.723),
    "4to1": (3.731, 3.726, 3.724, 3.719),
    "5to1": (3.728, 3.726, 3.723, 3.720),
}
ALL_CHANNEL = 3.742

# Table 4(a): (masking, pairing).
MASKING_VS_PAIRING = {
    "all_spatial": (3.844, 3.787),
    "1to1": (3.741, 3.737),
    "2to1": (3.727, 3.725),
    "3to1": (3.723, 3.723),
    "4to1": (3.722, 3.719),
    "5to1": (3.722, 3.720),
}

# Table 4(b). One of the single parts gives 3.727 and the other 3.741; the text has lost which.
GLOW_PARTS = {"none": 3.720, "actnorm": None, "invertible_dense": None, "both": 3.733}

# Appendix A.2: coupling layers and widths across, conditioner depths down.
LAYERS_1K, WIDTHS_1K = (16, 32, 64), (256, 512, 768)
LAYERS_21K, WIDTHS_21K = (32, 64, 128), (512, 768, 1024)
VIT_DEPTHS = (1, 2, 3, 4, 5, 6)

IMAGENET1K_32 = {
    1: (4.32, 4.22, 4.18, 4.18, 4.11, 4.08, 4.12, 4.06, 4.04),
    2: (4.11, 4.04, 4.03, 4.03, 3.99, 4.01, 3.99, 3.97, 4.02),
    3: (4.05, 4.00, 4.03, 3.99, 3.97, 4.07, 3.96, 3.98, 4.11),
    4: (4.03, 3.99, 4.08, 3.97, 3.99, 4.15, 3.94, 4.03, 4.18),
    5: (4.01, 3.99, 4.14, 3.96, 4.01, 4.21, 3.93, 4.07, 4.28),
    6: (4.00, 4.00, 4.19, 3.95, 4.04, 4.34, 3.93, 4.12, N_A),
}
IMAGENET1K_64 = {
    1: (4.02, 3.94, 3.90, 3.92, 3.84, 3.81, 3.85, 3.79, 3.77),
    2: (3.86, 3.78, 3.75, 3.78, 3.72, 3.70, 3.74, 3.69, 3.68),
    3: (3.81, 3.73, 3.71, 3.74, 3.69, 3.68, 3.70, 3.66, 3.69),
    4: (3.79, 3.71, 3.69, 3.72, 3.67, 3.68, 3.69, 3.66, 3.70),
    5: (3.77, 3.70, 3.69, 3.71, 3.66, 3.69, 3.67, 3.66, 3.73),
    6: (3.76, 3.69, 3.69, 3.70, 3.66, 3.70, 3.67, 3.66, 3.75),
}
IMAGENET21K_32 = {
    1: (3.79, 3.76, 3.74, 3.74, 3.72, 3.70, 3.71, 3.69, 3.68),
    2: (3.65, 3.63, 3.62, 3.63, 3.61, 3.60, 3.61, 3.60, 3.59),
    3: (3.62, 3.59, 3.58, 3.59, 3.57, 3.56, 3.57, 3.56, N_A),
    4: (3.59, 3.57, 3.57, 3.57, 3.55, N_A, 3.55, N_A, N_A),
    5: (3.58, 3.56, 3.56, 3.55, 3.54, N_A, 3.54, N_A, N_A),
    6: (3.57, 3.55, 3.54, 3.55, 3.53, N_A, 3.55, N_A, N_A),
}
IMAGENET21K_64 = {
    1: (3.42, 3.39, 3.37, 3.37, 3.34, 3.34, 3.33, 3.31, 3.29),
    2: (3.29, 3.26, 3.24, 3.26, 3.23, 3.24, 3.23, 3.20, 3.19),
    3: (3.25, 3.22, 3.20, 3.22, 3.19, 3.21, 3.19, 3.16, N_A),
    4: (3.23, 3.19, 3.17, 3.19, 3.16, 3.15, 3.16, 3.14, N_A),
    5: (3.21, 3.18, 3.16, 3.18, 3.15, N_A, 3.15, N_A, N_A),
    6: (3.20, 3.17, 3.15, 3.17, 3.14, 3.13, 3.14, N_A, N_A),
}

CNN_WIDTHS = (256, 512, 768, 1024, 1536)
CNN_DEPTHS = (1, 2, 3, 4, 5, 6, 8)
CNN = {
    1: (4.17, 4.05, 4.00, 3.96, 3.92, 4.05, 3.95, 3.91, 3.87, 3.83, 3.97, 3.88, 3.84, N_A),
    2: (4.09, 3.97, N_A, 3.87, 3.83, 3.98, 3.88, 3.83, 3.79, 3.76, 3.90, 3.81, 3.77, 3.75),
    3: (4.06, 3.94, 3.88, 3.84, 3.80, 3.95, 3.84, 3.79, 3.77, 3.74, 3.87, 3.78, 3.75, 3.73),
    4: (4.04, 3.91, 3.85, 3.82, 3.78, 3.93, 3.83, 3.78, 3.75, 3.74, 3.85, 3.76, 5.97, N_A),
    5: (4.02, 3.90, 3.84, 3.81, 3.77, 3.91, 3.81, 3.77, 3.75, 3.74, 3.84, 3.76, 3.98, N_A),
    6: (4.00, 3.88, 3.83, 3.80, 3.77, 3.90, 3.80, 3.76, 3.74, 3.74, 3.83, 3.89, 6.41, 3.77),
    8: (3.98, 3.87, 3.81, 3.78, 3.77, 3.88, 3.79, 3.75, 3.74, 3.75, 3.81, 3.74, 3.87, 5.89),
}


def by_sizes(grid: Mapping[int, tuple], layers: tuple[int, ...], widths: tuple[int, ...]) -> dict[tuple, float | None]:
    """Return the results of a grid by (coupling layers, depth, width)."""
    # The paper left out the width 1536 with 64 coupling layers to limit memory.
    columns = [pair for pair in itertools.product(layers, widths) if pair != (64, 1536)]
    return {(n, depth, width): bits for depth in grid for (n, width), bits in zip(columns, grid[depth], strict=True)}
