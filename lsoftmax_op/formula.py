"""The margin of one sample in TensorFlow's ops, where TensorFlow is to derive it, or where it is only watched.

The formulas are those of cc/core/margin.h, of [N] samples at once. They take O(N) time, but many small ops. And the
logits without a margin, [N, C], that the margin is put into.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from lsoftmax_op._op_margin import inverse_norms
from lsoftmax_op._terms import Terms

_POLE = 2.0**-46  # of sin(theta)^2


def plain_logits(
    ops: Any,
    features: tf.Tensor,
    weights: tf.Tensor,
    terms: tf.Tensor,
    attributes: dict[str, Any],
    class_major: bool = False,
) -> tf.Tensor:
    """Returns the logits without the margin and without a bias, [N, C], differentiable."""
    if terms.shape[0] == 0:
        return tf.matmul(features, weights, transpose_b=class_major)
    factor = tf.expand_dims(row_factor(features, terms, attributes["normalize_features"]), -1)
    scaled = tf.cast(tf.cast(features, tf.float64) * factor, features.dtype)
    logits = tf.matmul(scaled, weights, transpose_b=class_major)
    if not attributes["normalize_weights"]:
        return logits
    factors = inverse_norms(ops, weights, class_major)
    return tf.cast(tf.cast(logits, factors.dtype) * factors, logits.dtype)


def row_factor(features: tf.Tensor, terms: tf.Tensor, normalize_features: bool) -> tf.Tensor:
    """Returns what the logits of each row are multiples of, beside the factors of the classes, [N] or [], float64."""
    factor = Terms(*tf.unstack(terms, num=7)).scale
    if normalize_features:
        factor *= _inverse_norm(tf.reduce_sum(tf.square(tf.cast(features, tf.float64)), axis=1))
    return factor


def smoothing_of_loss(logits: tf.Tensor, labels: tf.Tensor, epsilon: Any, of_class: Any) -> tf.Tensor:
    """Returns what smoothed labels add to the cross-entropy of the logits, [N]; 0 where epsilon is.

    Args:
        logits: [N, C].
        labels: [N]; of one of -1 the result means nothing.
        epsilon: the share of the target distribution that all classes have, a float or a float64 scalar.
        of_class: that of each of them, epsilon / C.
    """
    epsilon, of_class = (tf.cast(tf.convert_to_tensor(n, tf.float64), logits.dtype) for n in (epsilon, of_class))
    target = tf.gather(logits, tf.maximum(labels, 0), axis=1, batch_dims=1)
    added = epsilon * target - of_class * tf.reduce_sum(logits, axis=1)
    return tf.where(epsilon == 0, tf.zeros_like(added), added)


class Psi(NamedTuple):
    """Psi and its derivative in c = cos(theta), and the segment of theta, [N]."""

    value: tf.Tensor
    slope: tf.Tensor
    segment: tf.Tensor


def psi(c: tf.Tensor, terms: tf.Tensor, *, margin: int, linear_continuation: bool = False, **_: Any) -> Psi:
    """Returns psi at c, from the recurrence of the Chebyshev polynomials; the keywords are an op's attributes."""
    before, u = tf.zeros_like(c), tf.ones_like(c)  # U_{j-1} and U_j, from j = 0
    segment, sign = tf.zeros_like(c), tf.ones_like(c)  # k and (-1)^k
    for _j in range(1, margin):
        before, u = u, 2 * c * u - before
        changes = sign * u < 0
        segment += tf.cast(changes, c.dtype)
        sign = tf.where(changes, -sign, sign)
    cosine, sine_ratio = sign * (c * u - before), sign * u
    if terms.shape[0] == 0:
        return Psi(cosine - 2 * segment, margin * sine_ratio, segment)
    shift, cos_shift, sin_shift, offset, *_ = tf.unstack(terms, num=7)
    sin_sq = (1 - c) * (1 + c)
    at_pole = sin_sq < _POLE
    root = tf.sqrt(tf.where(at_pole, tf.ones_like(c), sin_sq))  # at a pole, no slope of its own
    tip = tf.stop_gradient(tf.sqrt(tf.maximum(sin_sq, 0)))
    sine, over_sine = tf.where(at_pole, tip, root), tf.where(at_pole, tip / _POLE, 1 / root)
    value = cosine * cos_shift - sine_ratio * sine * sin_shift
    slope = margin * (sine_ratio * cos_shift + cosine * over_sine * sin_shift)
    beyond = cosine < -cos_shift
    segment = tf.where(beyond, segment + 1, segment)
    if linear_continuation:
        beyond_value, beyond_slope = c - shift * sin_shift, tf.ones_like(c)
    else:
        beyond_value, beyond_slope = -value - 2 * segment, -slope
    return Psi(
        tf.where(beyond, beyond_value, value - 2 * segment) - offset, tf.where(beyond, beyond_slope, slope), segment
    )


def cos_theta(geometry: tf.Tensor) -> tf.Tensor:
    """Returns cos(theta) [N] from the geometry [3, N], in [-1, 1]; 0 where a norm is zero, and no NaN on the way."""
    s, A, B = tf.unstack(geometry, num=3)
    has_norms = (A != 0) & (B != 0)
    one = tf.ones_like(s)
    c = s / tf.sqrt(tf.where(has_norms, A, one)) / tf.sqrt(tf.where(has_norms, B, one))
    c = tf.where(c < -1, -one, tf.where(c > 1, one, c))
    return tf.where(has_norms, c, tf.zeros_like(c))


def factor_of(geometry: tf.Tensor, terms: tf.Tensor, attributes: dict[str, Any]) -> tf.Tensor:
    """Returns what the plain logits of the targets are multiples of, [N]; 0 where a norm is zero that is divided by."""
    _, A, B = tf.unstack(geometry, num=3)
    factor = tf.broadcast_to(Terms(*tf.unstack(terms, num=7)).scale, tf.shape(A))
    for norm_sq, divides in ((A, attributes["normalize_features"]), (B, attributes["normalize_weights"])):
        if divides:
            factor *= _inverse_norm(norm_sq)
    return factor


def _inverse_norm(norm_sq: tf.Tensor) -> tf.Tensor:
    """Returns 1 / sqrt(norm_sq), 0 of a norm below 2^-60."""
    is_zero = norm_sq < 2.0**-120
    inverse = tf.math.rsqrt(tf.where(is_zero, tf.ones_like(norm_sq), norm_sq))
    return tf.where(is_zero, tf.zeros_like(norm_sq), inverse)


def jacobian(geometry: tf.Tensor, alpha: tf.Tensor, terms: tf.Tensor, attributes: dict[str, Any]) -> tf.Tensor:
    """Returns dt / d(s, A, B), [3, N], differentiable. Needs nonzero norms."""
    s, A, B = tf.unstack(geometry, num=3)
    a, b = tf.sqrt(A), tf.sqrt(B)
    c = s / (a * b)
    c += tf.stop_gradient(tf.clip_by_value(c, -1.0, 1.0) - c)  # clamped, and still with the slope of c
    p = psi(c, terms, **attributes)
    slope = 1 + alpha * (p.slope - 1)
    if terms.shape[0] == 0:
        q = alpha * (p.value - c * p.slope) / 2
        return tf.stack([slope, q * b / a, q * a / b])
    v = c + alpha * (p.value - c)
    unit_features, unit_weights = attributes["normalize_features"], attributes["normalize_weights"]
    factor = factor_of(geometry, terms, attributes)
    of_features = (0 if unit_features else v) - c * slope
    of_weights = (0 if unit_weights else v) - c * slope
    return tf.stack([factor * slope, factor * b / a * of_features / 2, factor * a / b * of_weights / 2])
