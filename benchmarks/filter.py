"""What does a step take where few classes matter to its gradients, and what does it cost to look for them in vain?

`lsoftmax_loss` with filter="auto" over filter=False, and over TensorFlow's plain softmax step. Classes come in
clusters: those of a sample's cluster matter to it, all others are below rounding, as late in a training. At the
smallest share, and where all matter to the same layer, also with weights [C, D], a row for every class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import harness
from benchmarks.batches import SHAPES, TINY, Shape, batch, name

if TYPE_CHECKING:
    import tensorflow as tf

MINUTES = 7
TRAINED = (128, 512, 100_000)
SHARES = (0.01, 0.05, 0.2, 0.4)  # of the classes, those that matter
TARGETS = {0.01: (0.45, 0.6)}  # of the backward pass over that of all classes, of the step over plain softmax's
IN_VAIN = 1.02
STEPS = 10  # of a training, before it is measured


def main(output: Path | None, quick: bool = False) -> None:
    """Measures steps with and without the filter, forward passes and plain softmax, interleaved."""
    rows = []
    for share in (0.25,) if quick else SHARES:
        shape = TINY if quick else TRAINED
        harness.progress(f"{name(shape)}: {share:.0%} of the classes matter")
        arrays = trained(shape, share, 1 if quick else STEPS)
        rows += [_row(shape, share, arrays, quick, rows_of) for rows_of in _layouts(share == SHARES[0] or quick)]
    for shape in [TINY] if quick else [shape for shape in SHAPES if shape[2] > 4096]:
        harness.progress(f"{name(shape)}: all matter")
        rows += [_row(shape, None, batch(*shape), quick, rows_of) for rows_of in _layouts(shape == TRAINED or quick)]
    harness.report("filter", __doc__.splitlines()[0], rows, output)


def _layouts(both: bool) -> tuple[bool, ...]:
    """Which layouts are measured: whether weights are class-major."""
    return (False, True) if both else (False,)


def _row(
    shape: Shape, share: float | None, arrays: tuple[np.ndarray, ...], quick: bool, class_major: bool
) -> dict[str, object]:
    import tensorflow as tf

    import lsoftmax_op
    from benchmarks import peers

    features, labels = tf.constant(arrays[0]), tf.constant(arrays[2])
    weights = tf.Variable(np.ascontiguousarray(arrays[1].T) if class_major else arrays[1])
    layer, layout = (features, weights, labels), {"class_major": class_major}
    kept = int(lsoftmax_op.kept_classes(*layer, margin=peers.MARGIN, lam=peers.LAMBDA, **layout))
    plain = peers.cross_entropy(lambda x, w, y: tf.matmul(x, w, transpose_b=class_major))
    steps = {
        "filter": peers.step(_loss("auto", **layout), *layer),
        "forced": forced(peers.step(_loss("auto", **layout), *layer)),
        "all": peers.step(_loss(False, **layout), *layer),
        "plain": peers.step(plain, *layer),
        "forward": _forward(_loss(False, **layout), *layer),
    }
    if share is None:
        del steps["forced"]
    seconds = harness.interleave(steps, 3 if quick else max(7, min(41, 10**11 // math.prod(shape))))
    backward = {peer: _minus(seconds[peer], seconds["forward"]) for peer in seconds}
    of_backward, over_plain = TARGETS.get(share, ("", ""))
    return {
        "N,D,C": name(shape),
        "weights": "[C, D]" if class_major else "[D, C]",
        "matter": f"{kept / shape[2]:.2%}",
        "plain ms": harness.milliseconds(seconds["plain"]),
        "all ms": harness.milliseconds(seconds["all"]),
        "filter ms": harness.milliseconds(seconds["filter"]),
        "backward, over that of all": harness.ratio(backward["filter"], backward["all"]),
        "target": of_backward,
        "over plain": harness.ratio(seconds["filter"], seconds["plain"]),
        "its target": over_plain,
        "over all": harness.ratio(seconds["filter"], seconds["all"]),
        "quartiles": harness.spread(seconds["filter"], seconds["all"]),
        "price's target": IN_VAIN if share is None else "",
        "without the limit, over all": harness.ratio(seconds["forced"], seconds["all"]) if "forced" in seconds else "",
    }


def _loss(filter: Any, **layout: bool) -> Callable[..., tf.Tensor]:
    from functools import partial

    import lsoftmax_op
    from benchmarks import peers

    return partial(lsoftmax_op.lsoftmax_loss, margin=peers.MARGIN, lam=peers.LAMBDA, filter=filter, **layout)


def forced(step: Callable[[], tuple]) -> Callable[[], tuple]:
    """Returns a step, traced now, that leaves out what does not matter, be it ever so little (filtering.MOST)."""
    from lsoftmax_op import filtering

    most, filtering.MOST = filtering.MOST, 1
    try:
        step()
    finally:
        filtering.MOST = most
    return step


def _forward(loss: Callable[..., tf.Tensor], *layer: Any) -> Callable[[], tf.Tensor]:
    import tensorflow as tf

    return tf.function(lambda: tf.reduce_mean(loss(*layer)))


def _minus(seconds: list[float], others: list[float]) -> list[float]:
    return [a - b for a, b in zip(seconds, others, strict=True)]


def class_means(shape: Shape, share: float) -> np.ndarray:
    """Returns the mean of every class, [C, D], of length 1.

    They come in clusters, so large that those of N samples are the share of all, at angles of some 50 degrees.
    """
    rows, depth, classes = shape
    rng = np.random.default_rng(0)
    mates = max(1, round(share * classes / rows))
    means = np.repeat(rng.standard_normal((-(-classes // mates), depth), np.float32), mates, axis=0)[:classes]
    means += 0.75 * rng.standard_normal((classes, depth), np.float32)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def samples_of(means: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns samples [N, D] of length 10, at some 15 degrees from the means of their classes, and their labels [N]."""
    rng = np.random.default_rng([1, seed])
    labels = rng.integers(0, len(means), rows)
    samples = means[labels] + 0.25 / math.sqrt(means.shape[1]) * rng.standard_normal((rows, means.shape[1]))
    return (10 * samples / np.linalg.norm(samples, axis=1, keepdims=True)).astype(np.float32), labels


def trained(shape: Shape, share: float, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns samples, weights and labels where the share of the classes, or less, matters.

    Weights begin as the classes' means; their norms, which grow in a training, are raised until the share is reached.
    Some steps of gradient descent follow, each with a batch of its own, and a last batch is returned.
    """
    import tensorflow as tf

    import lsoftmax_op
    from benchmarks import peers

    means = class_means(shape, share)
    features, labels = (tf.Variable(array) for array in samples_of(means, shape[0], seed=0))
    weights = tf.Variable(np.ascontiguousarray(means.T))
    most = max(1, round(1.02 * share * shape[2]))
    for _ in range(40):
        if lsoftmax_op.kept_classes(features, weights, labels, margin=peers.MARGIN, lam=peers.LAMBDA) <= most:
            break
        weights.assign(1.2 * weights)
    loss = _loss("auto")

    @tf.function
    def train() -> None:
        with tf.GradientTape() as tape:
            mean = tf.reduce_mean(loss(features, weights, labels))
        weights.assign_sub(0.1 * tape.gradient(mean, weights))

    for seed in range(1, steps + 1):
        train()
        samples, classes = samples_of(means, shape[0], seed)
        features.assign(samples)
        labels.assign(classes)
    return features.numpy(), weights.numpy(), labels.numpy()
