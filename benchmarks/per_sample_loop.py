"""The per-sample loop of a 2018 post that this library replaces: a reconstruction from its description.

For each sample it slices the feature and the label's weight column, expands cos(4 theta) by binomials, finds the
segment k in a float64 while loop over the segments' edges, adds |b|, and stacks the rows. Its faults are kept: the
margin is fixed at 4, the graph grows with the batch, and a cosine that rounds past 1 is in no segment, so that the
search never ends.
"""

from __future__ import annotations

import math

import tensorflow as tf

MARGIN = 4


def L_softmax(  # noqa: N802
    feature: tf.Tensor,
    labels: tf.Tensor,
    softmax_w: tf.Tensor,
    softmax_b: tf.Tensor,
    batch_size: int,
    labmda: float = 100,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns the margin logits [N, C], and the cosines and segments of the targets."""
    depth = feature.shape[1]
    rows, cosines, segments = [], [], []
    for i in range(batch_size):
        x = tf.reshape(tf.slice(feature, [i, 0], [1, depth]), [depth])
        label = labels[i]
        w = tf.reshape(tf.slice(softmax_w, [0, label], [depth, 1]), [depth])
        product = tf.reduce_sum(x * w)
        norms = tf.sqrt(tf.reduce_sum(x * x)) * tf.sqrt(tf.reduce_sum(w * w))
        c = product / norms
        cos_4 = tf.add_n(
            [
                (-1.0) ** n * math.comb(MARGIN, 2 * n) * tf.pow(c, MARGIN - 2 * n) * tf.pow(1 - c * c, n)
                for n in range(MARGIN // 2 + 1)
            ]
        )
        c_64 = tf.cast(c, tf.float64)
        (k,) = tf.while_loop(
            lambda k, c=c_64: tf.logical_not(
                tf.logical_and(tf.cos((k + 1) * math.pi / MARGIN) <= c, c <= tf.cos(k * math.pi / MARGIN))
            ),
            lambda k: [k + 1],
            [tf.constant(0.0, tf.float64)],
        )
        k = tf.cast(tf.stop_gradient(k), x.dtype)
        psi = tf.pow(tf.constant(-1, x.dtype), k) * cos_4 - 2 * k
        target = (labmda * product + norms * psi) / (1 + labmda)
        row = tf.reshape(tf.matmul(x[None, :], softmax_w), [-1])
        mask = tf.one_hot(label, softmax_w.shape[1], dtype=x.dtype)
        rows.append(row * (1 - mask) + target * mask + tf.abs(softmax_b))
        cosines.append(c)
        segments.append(k)
    return tf.stack(rows), [tf.stack(cosines), tf.stack(segments)]
