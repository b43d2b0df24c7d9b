"""How much faster is a whole training step than the per-sample loop's?"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import harness

MINUTES = 1
TARGET = 25.0


def main(output: Path | None, quick: bool = False) -> None:
    """Measures building the graph, and a step, of both."""
    import tensorflow as tf

    from benchmarks import peers
    from benchmarks.per_sample_loop import L_softmax

    shape = (3, 4, 5) if quick else (128, 512, 1000)

    def loop(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return L_softmax(features, labels, weights, tf.zeros([shape[2]]), shape[0], peers.LAMBDA)[0]

    batch = peers.arguments(*shape)
    losses = {**peers.LOSSES, "loop": peers.cross_entropy(loop)}
    steps = {name: peers.step(loss, *batch) for name, loss in losses.items()}
    build = {}
    for name, step in steps.items():
        harness.progress(f"builds {name}")
        began = time.perf_counter()
        step.func.get_concrete_function(*step.args)
        build[name] = time.perf_counter() - began
    seconds = harness.interleave(steps, 3 if quick else 31)
    rows = [
        {
            "loss": name,
            "builds in s": build[name],
            "step ms": harness.milliseconds(seconds[name]),
            "over plain": harness.ratio(seconds[name], seconds["plain"]),
            "over ours": harness.ratio(seconds[name], seconds["ours"]),
            "target": f">= {TARGET:.0f} over ours" if name == "loop" else "",
        }
        for name in losses
    ]
    harness.report("loop", f"{__doc__} At N,D,C = {','.join(map(str, shape))}", rows, output)
