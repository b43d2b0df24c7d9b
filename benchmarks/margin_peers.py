"""What is compared of ArcFace and CosFace in TensorFlow: this library, a good hand-written version, and the usual one.

    z_ij = s cos(theta_ij),  at the target s psi(theta);     cos(theta_ij) = x_i . w_j / (|x_i| |w_j|)
    ArcFace:  psi = cos(theta + m),  and -2 - cos(theta + m) beyond theta + m = pi
    CosFace:  psi = cos(theta) - m

ArcFace is eq. 3 of Deng et al., 2019, continued so that psi falls on all of [0, pi]; CosFace, eq. 4 of Wang et al.,
2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import tensorflow as tf

import lsoftmax_op
from benchmarks import peers
from benchmarks.batches import ARCFACE, COSFACE, SCALE

TINY = 1e-12  # what a square is at least: as tf.math.l2_normalize has it
Psi = Callable[[tf.Tensor], tf.Tensor]  # cos(theta) [N] -> psi [N]


def arcface(cosine: tf.Tensor) -> tf.Tensor:
    """ArcFace's psi by the addition theorem, no angle; falling on all of [0, pi]."""
    sine = tf.sqrt(tf.maximum(1 - cosine * cosine, TINY))
    shifted = cosine * math.cos(ARCFACE) - sine * math.sin(ARCFACE)
    return tf.where(cosine > -math.cos(ARCFACE), shifted, -2 - shifted)


def cosface(cosine: tf.Tensor) -> tf.Tensor:
    """CosFace's psi."""
    return cosine - COSFACE


def arcface_by_angle(cosine: tf.Tensor) -> tf.Tensor:
    """ArcFace's psi as it is usually pasted: not continued beyond theta + m = pi."""
    return tf.cos(tf.acos(tf.clip_by_value(cosine, -1 + 1e-7, 1 - 1e-7)) + ARCFACE)


@tf.custom_gradient
def over_column_norms(features: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns z_ij = x_i . w_j / |w_j|, with its gradient written out: automatic differentiation passes W once more.

    dL/dw_j = sum_i g_ij x_i / |w_j|  -  w_j sum_i g_ij z_ij / |w_j|^2
    """
    inverse = tf.math.rsqrt(tf.maximum(tf.reduce_sum(tf.square(weights), axis=0), TINY))
    products = tf.matmul(features, weights) * inverse

    def gradient(grad: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        along = tf.reduce_sum(grad * products, axis=0) * tf.square(inverse)  # [C]
        grad *= inverse
        return (
            tf.matmul(grad, weights, transpose_b=True),
            tf.matmul(features, grad, transpose_a=True) - weights * along,
        )

    return products, gradient


def vectorised(psi: Psi) -> peers.Layer:
    """Returns the logits in as few passes as TensorFlow's ops allow: no normalised W, no N x C mask, no acos.

    The scale goes into the N x D features, the norms of W into the products, and the margin into one entry a row by a
    scatter-add, whose gradient leaves all others as they are. None of tf.math.l2_normalize on W, a one-hot mask,
    tf.where, tf.tensor_scatter_nd_update or a product with gathered columns made it faster at any of `batches.SHAPES`.
    """

    def layer(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        rows = SCALE * tf.math.l2_normalize(features, axis=1)
        logits = over_column_norms(rows, tf.convert_to_tensor(weights))
        entries = tf.stack([tf.range(tf.shape(labels)[0], dtype=labels.dtype), labels], axis=1)
        cosine = tf.gather_nd(logits, entries) / SCALE
        return tf.tensor_scatter_nd_add(logits, entries, SCALE * (psi(cosine) - cosine))

    return layer


def pasted(psi: Psi) -> peers.Loss:
    """Returns the loss of the code that goes round: psi of every cosine, of which a one-hot mask keeps the target's."""

    def loss(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        cosines = tf.matmul(tf.math.l2_normalize(features, axis=1), tf.math.l2_normalize(weights, axis=0))
        hot = tf.one_hot(labels, tf.shape(weights)[1], dtype=cosines.dtype)
        logits = SCALE * (cosines * (1 - hot) + psi(cosines) * hot)
        return tf.nn.softmax_cross_entropy_with_logits(labels=hot, logits=logits)

    return loss


def ours() -> dict[str, peers.Loss]:
    """Returns this library's losses."""
    margins = {
        "ArcFace": lsoftmax_op.margins.ArcFace(ARCFACE, SCALE),
        "CosFace": lsoftmax_op.margins.CosFace(COSFACE, SCALE),
    }
    return {f"{name}: ours": partial(lsoftmax_op.margin_softmax_loss, margin=m) for name, m in margins.items()}


LOSSES = ours() | {
    "ArcFace: pure TF": peers.cross_entropy(vectorised(arcface)),
    "CosFace: pure TF": peers.cross_entropy(vectorised(cosface)),
    "ArcFace: pasted": pasted(arcface_by_angle),
    "CosFace: pasted": pasted(cosface),
}


def steps(*shape: int) -> dict[str, Callable[[], tuple]]:
    """Returns the steps that take turns: plain softmax, every loss here, and what XLA makes of all but the pasted."""
    batch = peers.arguments(*shape)
    losses = {"plain": peers.LOSSES["plain"], **LOSSES}
    return {peer: peers.step(loss, *batch) for peer, loss in losses.items()} | {
        f"{peer}, XLA": peers.step(loss, *batch, xla=True) for peer, loss in losses.items() if "pasted" not in peer
    }
