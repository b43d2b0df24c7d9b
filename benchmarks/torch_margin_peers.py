"""The steps of margin_peers.py in PyTorch: plain cross-entropy, and pytorch-metric-learning's ArcFace and CosFace."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss

from benchmarks import batches, torch_peers

MARGINS = {  # with m as each wants it
    "ArcFace": (ArcFaceLoss, math.degrees(batches.ARCFACE)),
    "CosFace": (CosFaceLoss, batches.COSFACE),
}


def steps(*shape: int) -> dict[str, Callable[[], tuple]]:
    """Returns the three steps, on as many threads as there are cores for us."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    batch = [torch.from_numpy(array) for array in batches.batch(*shape)]
    return {torch_peers.PLAIN: torch_peers.plain(*batch)} | {
        f"{name}: {torch_peers.METRIC_LEARNING}": torch_peers.metric_learning(kind, margin, batches.SCALE, *batch)
        for name, (kind, margin) in MARGINS.items()
    }
