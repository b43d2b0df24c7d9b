"""What a TensorFlow user has without this library: the plain layer, and L-Softmax in TensorFlow's own ops."""

from __future__ import annotations

import tensorflow as tf

import lsoftmax_op

MARGIN, LAMBDA = 4, 5.0


def ours(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """This library."""
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


def step(layer: object, features: tf.Tensor, weights: tf.Variable, labels: tf.Tensor) -> object:
    """Returns a compiled training step: cross-entropy of the layer's logits, and its gradients."""

    @tf.function
    def run() -> tuple:
        with tf.GradientTape() as tape:
            tape.watch(features)
            logits = layer(features, weights, labels)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        return loss, *tape.gradient(loss, [features, weights])

    return run


def products(features: tf.Tensor, weights: tf.Variable, grad: tf.Tensor) -> object:
    """Returns the three bare matrix products that no training step can do without."""

    @tf.function
    def run() -> tuple:
        return (
            tf.matmul(features, weights),
            tf.matmul(grad, weights, transpose_b=True),
            tf.matmul(features, grad, transpose_a=True),
        )

    return run


def arguments(rows: int, depth: int, classes: int) -> tuple[tf.Tensor, tf.Variable, tf.Tensor]:
    """Returns random features, weights and labels, float32 and int64."""
    random = tf.random.Generator.from_seed(0)
    return (
        random.normal([rows, depth]),
        tf.Variable(0.05 * random.normal([depth, classes])),
        random.uniform([rows], 0, classes, tf.int64),
    )
