"""What does a training step with the margin cost, beside PyTorch's plain one and its L-Softmax?

The environment's own PyTorch, or that of another interpreter: TORCH_PYTHON=/path/to/python.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import harness, turns
from benchmarks.batches import SHAPES, TINY, Shape, name

MINUTES = 2.5
TARGET = 0.4
PACKAGES = ("torch", "pytorch_metric_learning")
TITLE = __doc__.splitlines()[0]


def main(output: Path | None, quick: bool = False) -> None:
    """Lets a process of TensorFlow and one of PyTorch take turns, on the same numbers and as many threads."""
    python = interpreter()
    if python is None:
        rows = [{"step": package, "result": "not installed: pip install '.[bench]'"} for package in PACKAGES]
        harness.report("pytorch", TITLE, rows, output)
        return
    rows = []
    for shape in [TINY] if quick else SHAPES:
        harness.progress(name(shape))
        rows += _measure(python, shape, 3 if quick or shape[2] > 50_000 else 5, 2)
    harness.report("pytorch", TITLE, rows, output)


def interpreter(packages: tuple[str, ...] = PACKAGES) -> str | None:
    """Returns the Python that has the packages, by default PyTorch and pytorch-metric-learning, or None."""
    python = os.environ.get("TORCH_PYTHON", sys.executable)
    finds = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {packages})))"
    return python if subprocess.run([python, "-c", finds], check=False).returncode == 0 else None


def _measure(python: str, shape: Shape, rounds: int, repeats: int) -> list[dict]:
    processes = [
        turns.Process(sys.executable, "benchmarks.peers", shape),
        turns.Process(python, "benchmarks.torch_peers", shape),
    ]
    losses = {peer: loss for process in processes for peer, loss in process.losses.items()}
    _agree(losses, "ours", "metric-learning")
    _agree(losses, "plain", "PyTorch")
    seconds = turns.take(processes, rounds, repeats)
    for process in processes:
        process.close()
    return [
        turns.row(shape, peer, losses, seconds)
        | {"ours over it": harness.ratio(seconds["ours"], values), "target": TARGET if "metric" in peer else ""}
        for peer, values in seconds.items()
    ]


def _agree(losses: dict[str, float], one: str, other: str) -> None:
    """Checks that two peers compute the same thing, before anybody compares their times."""
    (theirs,) = (loss for peer, loss in losses.items() if other in peer)
    if not math.isclose(losses[one], theirs, rel_tol=1e-4):
        raise RuntimeError(f"{one} computes a loss of {losses[one]}, {other} one of {theirs}")
