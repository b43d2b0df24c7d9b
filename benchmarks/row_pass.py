"""What does the pass over the logits cost alone, beside TensorFlow's softmax cross-entropy?

Three functions make the same fresh [N, C] logits with one cheap op, so that a loss may write in their buffer: one
stops there, one goes on to TensorFlow's loss and its gradient in the logits, one to ours. Compared is what the loss
adds. Ours works out the margin from the features and the label columns, too, and leaves the mean's 1 / N to the [N, D]
side of the step; TensorFlow's multiplies it into its [N, C] gradient.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import harness
from benchmarks.batches import SHAPES, TINY, Shape, name

MINUTES = 0.7
TARGET = 0.2


def main(output: Path | None, quick: bool = False) -> None:
    """Measures the three functions, interleaved."""
    rows = []
    for shape in [TINY] if quick else SHAPES:
        harness.progress(name(shape))
        seconds = _measure(shape, 3 if quick else 101 if shape[2] < 5000 else 31)
        made = seconds["make"]
        ours, theirs = (
            [after - before for after, before in zip(seconds[peer], made, strict=True)] for peer in ("ours", "plain")
        )
        rows.append(
            {
                "N,D,C": name(shape),
                "make ms": harness.milliseconds(made),
                "TensorFlow adds ms": harness.milliseconds(theirs),
                "ours adds ms": harness.milliseconds(ours),
                "ours/TensorFlow": statistics.median(ours) / statistics.median(theirs),
                "target": TARGET,
            }
        )
    harness.report("row_pass", __doc__.splitlines()[0], rows, output)


def _measure(shape: Shape, repeats: int) -> dict[str, list[float]]:
    import tensorflow as tf

    from benchmarks import peers
    from lsoftmax_op import library

    features, weights, labels = peers.arguments(*shape)
    products = tf.matmul(features, weights)
    no_bias, lam = tf.zeros([0]), tf.constant(peers.LAMBDA, tf.float64)
    no_terms, no_factors = tf.zeros([0], tf.float64), tf.zeros([0])

    @tf.function
    def make(products: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        return products * scale

    @tf.function
    def plain(products: tf.Tensor, scale: tf.Tensor) -> tuple:
        logits = products * scale
        with tf.GradientTape() as tape:
            tape.watch(logits)
            mean = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        return mean, tape.gradient(mean, logits)

    @tf.function
    def ours(products: tf.Tensor, scale: tf.Tensor) -> tuple:
        logits = products * scale
        layer = (features, weights, labels, no_bias, lam, no_terms, no_factors)
        state = library.load().lsoftmax_loss(logits, *layer, margin=peers.MARGIN)
        return tf.reduce_mean(state.loss), state.products_grad

    one = tf.constant(1.0)
    functions = {"make": make, "plain": plain, "ours": ours}
    return harness.interleave({key: lambda f=f: f(products, one) for key, f in functions.items()}, repeats, warm_up=3)
