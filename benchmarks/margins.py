"""What does a training step with ArcFace or CosFace cost, beside plain softmax, TensorFlow's own ops and PyTorch?

Normalising included. Over plain softmax in time, and in the peak of the memory as memory.py measures it. PyTorch's
steps are there where pytorch.py finds it.
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

from benchmarks import harness, memory, pytorch, turns
from benchmarks.batches import SHAPES, TINY, Shape, name

MINUTES = 6
OVER_PLAIN = dict(zip(SHAPES, (1.0, 1.05, 1.35, 0.90), strict=True))
OVER_PEERS = {"pure TF": 0.75, "metric": 0.45}
MEMORY = 1.02
Times = dict[str, list[float]]  # a peer's seconds in each round


def main(output: Path | None, quick: bool = False) -> None:
    """Lets a process of TensorFlow and one of PyTorch take turns, on the same numbers and as many threads."""
    shapes = [TINY] if quick else list(SHAPES)
    python = pytorch.interpreter()
    measured = {shape: _measure(python, shape, quick) for shape in shapes}
    harness.progress("memory")
    peaks = _peaks(shapes)
    rows = [
        _row(shape, peer, losses, seconds, peaks)
        for shape, (losses, seconds) in measured.items()
        for peer in sorted(seconds, key=_margin)
    ]
    harness.report("margins", __doc__.splitlines()[0], rows, output)


def _measure(python: str | None, shape: Shape, quick: bool) -> tuple[dict[str, float], Times]:
    """Returns every peer's loss, and its seconds in each round."""
    harness.progress(name(shape))
    processes = [turns.Process(sys.executable, "benchmarks.margin_peers", shape)]
    if python is not None:
        processes.append(turns.Process(python, "benchmarks.torch_margin_peers", shape))
    losses = {peer: loss for process in processes for peer, loss in process.losses.items()}
    check_losses(losses)
    repeats = 1 if quick else max(3, min(15, 10**10 // math.prod(shape)))
    seconds = turns.take(processes, 3 if quick or shape[2] > 50_000 else 5, repeats)
    for process in processes:
        process.close()
    return losses, seconds


def check_losses(losses: dict[str, float]) -> None:
    """Checks that all peers of one margin compute the same loss, before anybody compares their times."""
    for margin in set(map(_margin, losses)):
        same = {peer: loss for peer, loss in losses.items() if _margin(peer) == margin}
        middle = statistics.median(same.values())
        if not all(math.isclose(loss, middle, rel_tol=1e-4) for loss in same.values()):
            raise RuntimeError(f"peers that are to compute one loss compute {same}")


def _peaks(shapes: list[Shape]) -> dict[tuple[Shape, str], int]:
    from benchmarks import margin_peers

    cases = [(shape, peer) for shape in shapes for peer in ("plain", *margin_peers.LOSSES)]
    return dict(zip(cases, memory.peaks([(peer, None, shape) for shape, peer in cases]), strict=True))


def _row(
    shape: Shape, peer: str, losses: dict[str, float], seconds: Times, peaks: dict[tuple[Shape, str], int]
) -> dict[str, object]:
    margin, ours = _margin(peer), seconds.get(f"{_margin(peer)}: ours")
    is_ours, peak = peer.endswith(": ours"), peaks.get((shape, peer))
    target = next((limit for text, limit in OVER_PEERS.items() if margin and text in peer and "XLA" not in peer), "")
    return {
        "N,D,C": name(shape),
        "margin": margin or "-",
        "step": peer.removeprefix(f"{margin}: "),
        "loss": losses[peer],
        "ms": harness.milliseconds(seconds[peer]),
        "over plain": harness.ratio(seconds[peer], seconds["plain"]),
        "quartiles": harness.spread(seconds[peer], seconds["plain"]),
        "target": OVER_PLAIN.get(shape, "") if is_ours else "",
        "ours over it": harness.ratio(ours, seconds[peer]) if ours else "",
        "its target": target if ours else "",
        "peak MB": peak / 1e6 if peak else "",
        "peak over plain": peak / peaks[shape, "plain"] if peak else "",
        "memory's target": MEMORY if is_ours else "",
    }


def _margin(peer: str) -> str:
    """Returns the margin of a peer: what stands before the colon, if there is one."""
    return peer.rpartition(": ")[0]
