"""The layers that are measured, N, D, C, a random batch for each, and margins: the same numbers for every framework."""

from __future__ import annotations

import numpy as np

Shape = tuple[int, int, int]
SMALL = (256, 128, 10)
SHAPES = ((256, 512, 1000), (256, 512, 10_000), (128, 512, 100_000), (512, 256, 10_000))
WIDEST = (256, 128, 1_000_000)
TINY = (8, 4, 6)  # does it run at all?
ARCFACE, COSFACE, SCALE = 0.5, 0.35, 64.0  # m of the one (in radians) and of the other, and s of both: their papers'


def batch(rows: int, depth: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features [N, D] and weights [D, C], float32, and labels [N], int64."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((rows, depth), np.float32)
    weights = rng.standard_normal((depth, classes), np.float32)
    weights *= 0.05
    return features, weights, rng.integers(0, classes, rows)


def name(shape: Shape) -> str:
    """Returns what the tables call a shape."""
    return ",".join(map(str, shape))
