"""A training step in TensorFlow, beside plain softmax in the same data type and mode (below 1: it is faster).

Forward and backward of the mean loss, in a tf.function, uncompiled and compiled by XLA: in float32, in float32 with the
products in TF32, which is TensorFlow's default, and in bfloat16. `logits` is lsoftmax_logits with TensorFlow's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from benchmarks import harness, peers
from benchmarks.batches import SMALL, TINY, Shape

TITLE = __doc__.splitlines()[0]
WANTED = [
    (shape, mode)
    for shape in ((4096, 512, 10_000), (1024, 512, 100_000), (256, 512, 1000), SMALL)
    for mode in ("TF32", "bfloat16", "float32")
]


def sees_gpu() -> bool:
    """Returns whether TensorFlow does."""
    return bool(tf.config.list_physical_devices("GPU"))


def clock(function: Callable[[], Any], calls: int) -> float:
    """Returns the seconds of a call among several in a row, until the device has done them all."""

    def run() -> None:
        for _ in range(calls):
            function()
        tf.test.experimental.sync_devices()

    return harness.wall_clock(run) / calls


def rows(wanted: tuple[Shape, str], quick: bool) -> list[dict[str, Any]]:
    """Measures one shape in one mode."""
    shape, mode = (TINY, wanted[1]) if quick else wanted
    tf.config.experimental.enable_tensor_float_32_execution(mode == "TF32")
    features, weights, labels = peers.arguments(*shape)
    if mode == "bfloat16":
        features, weights = tf.cast(features, tf.bfloat16), tf.Variable(tf.cast(weights, tf.bfloat16))
    steps = {peer: peers.step(peers.LOSSES[peer], features, weights, labels) for peer in ("ours", "plain", "logits")}
    steps |= {
        f"{peer} XLA": peers.step(peers.LOSSES[peer], features, weights, labels, xla=True) for peer in ("ours", "plain")
    }
    for step in steps.values():
        step()  # and be traced and compiled
    seconds = harness.interleave(steps, 3 if quick else 11, warm_up=3, clock=harness.in_a_row(steps, clock))
    return [
        {
            "N, D, C": ", ".join(map(str, shape)),
            "dtype": mode,
            "plain ms": harness.milliseconds(seconds["plain"]),
            "ours/plain": harness.ratio(seconds["ours"], seconds["plain"]),
            "logits/plain": harness.ratio(seconds["logits"], seconds["plain"]),
            "plain XLA ms": harness.milliseconds(seconds["plain XLA"]),
            "ours XLA/plain XLA": harness.ratio(seconds["ours XLA"], seconds["plain XLA"]),
        }
    ]
