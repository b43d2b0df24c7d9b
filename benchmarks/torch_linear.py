"""What does a training step of lsoftmax_op.torch cost, beside torch.nn.Linear and PyTorch's cross-entropy?

The environment's own PyTorch, or that of another interpreter of the same version: TORCH_PYTHON=/path/to/python.
"""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks import harness, pytorch, turns
from benchmarks.batches import SHAPES, TINY, Shape, name

MINUTES = 2.5
TARGET = 1.0  # of L-Softmax over plain
TITLE = __doc__.splitlines()[0]


def main(output: Path | None, quick: bool = False) -> None:
    """Interleaves the steps in one process of PyTorch."""
    python = pytorch.interpreter(("torch",))
    if python is None:
        harness.report("torch_linear", TITLE, [{"step": "torch", "result": "not installed: pip install torch"}], output)
        return
    rows = []
    for shape in [TINY] if quick else SHAPES:
        harness.progress(name(shape))
        rows += _measure(python, shape, 3 if quick or shape[2] > 50_000 else 7)
    harness.report("torch_linear", TITLE, rows, output)


def _measure(python: str, shape: Shape, rounds: int) -> list[dict]:
    process = turns.Process(python, "benchmarks.torch_linear_peers", shape)
    losses = process.losses
    if not math.isclose(losses["no margin"], losses["plain"], rel_tol=1e-4):
        raise RuntimeError(f"without a margin the loss is {losses['no margin']}, PyTorch's own is {losses['plain']}")
    seconds = turns.take([process], rounds, 3)
    process.close()
    return [
        turns.row(shape, peer, losses, seconds) | {"target": TARGET if peer == "L-Softmax" else ""} for peer in seconds
    ]
