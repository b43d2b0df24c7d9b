"""What is compared in TensorFlow: this library, the plain layer, and L-Softmax in TensorFlow's own ops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import tensorflow as tf

import lsoftmax_op
from benchmarks import batches

tf.get_logger().setLevel("ERROR")  # every peer is a function of its own, and no retracing of one
MARGIN, LAMBDA = 4, 5.0
Layer = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]  # features, weights, labels -> logits [N, C]
Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]  # features, weights, labels -> [N]


def margin_logits(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """This library's logits."""
    return lsoftmax_op.lsoftmax_logits(features, weights, labels, margin=MARGIN, lam=LAMBDA)


def plain(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The plain dense layer: no margin."""
    return tf.matmul(features, weights)


def vectorised(
    features: tf.Tensor,
    weights: tf.Tensor,
    labels: tf.Tensor,
    margin: int = MARGIN,
    lam: float = LAMBDA,
) -> tf.Tensor:
    """L-Softmax without a loop and without a custom op: the label columns gathered, the target entries scattered."""
    logits = tf.matmul(features, weights)
    target_weights = tf.gather(weights, labels, axis=1)  # [D, N]
    dot = tf.einsum("nd,dn->n", features, target_weights)
    norms = tf.norm(features, axis=1) * tf.norm(target_weights, axis=0)
    cos_theta = tf.clip_by_value(tf.math.divide_no_nan(dot, norms), -1.0, 1.0)
    edges = tf.cos(tf.range(1, margin, dtype=features.dtype) * (3.141592653589793 / margin))
    segment = tf.reduce_sum(tf.cast(cos_theta[:, None] < edges, features.dtype), axis=1)
    before, chebyshev = tf.ones_like(cos_theta), cos_theta
    for _ in range(1, margin):
        before, chebyshev = chebyshev, 2 * cos_theta * chebyshev - before
    psi = (1 - 2 * (segment % 2)) * chebyshev - 2 * segment
    target = (lam * dot + norms * psi) / (1 + lam)
    entries = tf.stack([tf.range(tf.shape(labels)[0], dtype=labels.dtype), labels], axis=1)
    return tf.tensor_scatter_nd_update(logits, entries, target)


def cross_entropy(layer: Layer) -> Loss:
    """Returns TensorFlow's own loss of the layer's logits."""

    def loss(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = layer(features, weights, labels)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)

    return loss


def fused(class_block_size: int | None = None, lam: float = LAMBDA) -> Loss:
    """Returns this library's loss."""
    return partial(lsoftmax_op.lsoftmax_loss, margin=MARGIN, lam=lam, class_block_size=class_block_size)


LOSSES = {
    "ours": fused(),
    "plain": cross_entropy(plain),
    "pure TF": cross_entropy(vectorised),
    "logits": cross_entropy(margin_logits),
}


def step(
    loss: Loss, features: tf.Tensor, weights: tf.Variable, labels: tf.Tensor, xla: bool = False
) -> Callable[[], tuple]:
    """Returns a compiled training step: the mean loss, and its gradients in features and weights."""

    @tf.function(jit_compile=xla)
    def run(features: tf.Tensor, labels: tf.Tensor) -> tuple:
        with tf.GradientTape() as tape:
            tape.watch(features)
            mean = tf.reduce_mean(loss(features, weights, labels))
        return mean, *tape.gradient(mean, [features, weights])

    return partial(run, features, labels)


def products(features: tf.Tensor, weights: tf.Variable, grad: tf.Tensor) -> Callable[[], tuple]:
    """Returns the three bare matrix products that no training step can do without, in a step's order."""

    @tf.function
    def run(features: tf.Tensor, grad: tf.Tensor) -> tuple:
        logits = tf.matmul(features, weights)
        with tf.control_dependencies([logits]):
            return (
                logits,
                tf.matmul(grad, weights, transpose_b=True),
                tf.matmul(features, grad, transpose_a=True),
            )

    return partial(run, features, grad)


def arguments(rows: int, depth: int, classes: int) -> tuple[tf.Tensor, tf.Variable, tf.Tensor]:
    """Returns random features, weights and labels."""
    features, weights, labels = batches.batch(rows, depth, classes)
    return tf.constant(features), tf.Variable(weights), tf.constant(labels)


def steps(*shape: int) -> dict[str, Callable[[], tuple]]:
    """Returns the two steps that take turns with another framework's; the full margin, as theirs."""
    batch = arguments(*shape)
    return {"ours": step(fused(lam=0.0), *batch), "plain": step(LOSSES["plain"], *batch)}
