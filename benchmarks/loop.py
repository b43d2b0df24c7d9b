"""How much faster is a whole training step than the per-sample loop's?"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import harness

TARGET = 25.0


def main(output: Path | None, quick: bool = False) -> None:
    """Measures building the graph, and a step, of both."""
    import tensorflow as tf

    from benchmarks import peers
    from benchmarks.per_sample_loop import L_softmax

    shape = (3, 4, 5) if quick else (128, 512, 1000)

    def loop(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return L_softmax(features, labels, weights, tf.zeros([shape[2]]), shape[0], peers.LAMBDA)[0]

    arguments = peers.arguments(*shape)
    steps, build = {}, {}
    for name, layer in (("ours", peers.ours), ("loop", loop)):
        steps[name] = peers.step(layer, *arguments)
        began = time.perf_counter()
        steps[name].get_concrete_function()
        build[name] = time.perf_counter() - began
    seconds = harness.interleave(steps, 3 if quick else 31)
    row = {
        "N,D,C": ",".join(map(str, shape)),
        "loop builds in s": build["loop"],
        "ours builds in s": build["ours"],
        "loop ms": harness.milliseconds(seconds["loop"]),
        "ours ms": harness.milliseconds(seconds["ours"]),
        "loop/ours": harness.ratio(seconds["loop"], seconds["ours"]),
        "target": f">= {TARGET:.0f}",
    }
    harness.report("loop", __doc__, [row], output)
