"""The margin of one sample in TensorFlow's ops, where TensorFlow is to derive it, or where it is only watched.

The formulas are those of cc/core/margin.h, of [N] samples at once. They take O(N) time, but many small ops.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


def attributes(margin: int) -> dict[str, Any]:
    """Returns the attributes of the raw ops that a margin is made of.

    The zeros are spelled out as floats: in eager code TensorFlow takes several times as long for the ops' default, an
    integer.
    """
    return {"margin": margin, "shift": 0.0, "offset": 0.0}


class Psi(NamedTuple):
    """Psi and its derivative in c = cos(theta), and the segment of theta, [N]."""

    value: tf.Tensor
    slope: tf.Tensor
    segment: tf.Tensor


def psi(margin: int, c: tf.Tensor) -> Psi:
    """Returns (-1)^k T_m(c) - 2k, from the recurrence of the Chebyshev polynomials."""
    before, u = tf.zeros_like(c), tf.ones_like(c)  # U_{j-1} and U_j, from j = 0
    segment, sign = tf.zeros_like(c), tf.ones_like(c)  # k and (-1)^k
    for _ in range(1, margin):
        before, u = u, 2 * c * u - before
        changes = sign * u < 0
        segment += tf.cast(changes, c.dtype)
        sign = tf.where(changes, -sign, sign)
    return Psi(sign * (c * u - before) - 2 * segment, sign * margin * u, segment)


def cos_theta(geometry: tf.Tensor) -> tf.Tensor:
    """Returns cos(theta) [N] from the geometry [3, N], in [-1, 1]; 0 where a norm is zero, and no NaN on the way."""
    s, A, B = tf.unstack(geometry, num=3)
    has_norms = (A != 0) & (B != 0)
    one = tf.ones_like(s)
    c = s / tf.sqrt(tf.where(has_norms, A, one)) / tf.sqrt(tf.where(has_norms, B, one))
    c = tf.where(c < -1, -one, tf.where(c > 1, one, c))
    return tf.where(has_norms, c, tf.zeros_like(c))


def jacobian(geometry: tf.Tensor, alpha: tf.Tensor, margin: int) -> tf.Tensor:
    """Returns dt / d(s, A, B), [3, N], differentiable. Needs nonzero norms."""
    s, A, B = tf.unstack(geometry, num=3)
    a, b = tf.sqrt(A), tf.sqrt(B)
    c = s / (a * b)
    c += tf.stop_gradient(tf.clip_by_value(c, -1.0, 1.0) - c)  # clamped, and still with the slope of c
    p = psi(margin, c)
    q = alpha * (p.value - c * p.slope) / 2
    return tf.stack([1 + alpha * (p.slope - 1), q * b / a, q * a / b])
