"""How much faster is the step in mixed precision, bfloat16, than in float32?

As Keras does it: the weights are a float32 variable, cast in the step; the features arrive in bfloat16; the loss is
computed and its gradient comes back in bfloat16, and reaches the variable in float32. Only processors with AVX512_BF16
multiply bfloat16 faster than float32.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness
from benchmarks.batches import SHAPES, TINY, name

MINUTES = 1
TARGET = 0.75


def main(output: Path | None, quick: bool = False) -> None:
    """Measures our step and the plain one in both dtypes, interleaved."""
    import tensorflow as tf

    from benchmarks import peers

    shape = TINY if quick else SHAPES[1]
    harness.progress(name(shape))
    features, weights, labels = peers.arguments(*shape)

    def mixed(loss: peers.Loss) -> peers.Loss:
        def cast(features: tf.Tensor, weights: tf.Variable, labels: tf.Tensor) -> tf.Tensor:
            return tf.cast(loss(features, tf.cast(weights, tf.bfloat16), labels), tf.float32)

        return cast

    halves = tf.cast(features, tf.bfloat16)
    steps = {peer: peers.step(peers.LOSSES[peer], features, weights, labels) for peer in ("ours", "plain")} | {
        f"{peer} bfloat16": peers.step(mixed(peers.LOSSES[peer]), halves, weights, labels) for peer in ("ours", "plain")
    }
    seconds = harness.interleave(steps, 3 if quick else 7, warm_up=1)
    row = {
        "N,D,C": name(shape),
        "ours float32 ms": harness.milliseconds(seconds["ours"]),
        "ours bfloat16 ms": harness.milliseconds(seconds["ours bfloat16"]),
        "bfloat16/float32": harness.ratio(seconds["ours bfloat16"], seconds["ours"]),
        "target": TARGET if harness.has("avx512_bf16") else "none without AVX512_BF16",
        "ours/plain, both bfloat16": harness.ratio(seconds["ours bfloat16"], seconds["plain bfloat16"]),
    }
    harness.report("bfloat16", __doc__.splitlines()[0], [row], output)
