"""A step of Keras' fit, compiled as Keras chooses, beside the same backbone and Dense (below 1: it is faster)."""

from __future__ import annotations

from typing import Any

from benchmarks import harness
from benchmarks import keras as question
from benchmarks.batches import SMALL, TINY, Shape

TITLE = __doc__.splitlines()[0]
WANTED = [
    (shape, policy)
    for shape in ((1024, 512, 10_000), (1024, 512, 100_000), SMALL)
    for policy in ("float32", "mixed_bfloat16")
]


def sees_gpu() -> bool:
    """Returns whether TensorFlow does."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def rows(wanted: tuple[Shape, str], quick: bool) -> list[dict[str, Any]]:
    """Measures one shape under one dtype policy."""
    import keras

    shape, policy = (TINY, wanted[1]) if quick else wanted
    steps, repeats = (2, 2) if quick else (50, 9)
    keras.config.set_dtype_policy(policy)
    peers = {peer: question.fit(*make(*shape[1:]), shape, "auto", steps) for peer, make in question.MODELS.items()}
    seconds = harness.interleave(peers, repeats, warm_up=1)
    return [
        {
            "N, D, C": ", ".join(map(str, shape)),
            "policy": policy,
            "plain ms": harness.milliseconds(seconds["plain"]) / steps,
            "ours ms": harness.milliseconds(seconds["ours"]) / steps,
            "ours/plain": harness.ratio(seconds["ours"], seconds["plain"]),
            "quartiles": harness.spread(seconds["ours"], seconds["plain"]),
        }
    ]
