"""The margin of one sample in TensorFlow's ops, where TensorFlow is to derive it, or where it is only watched.

The formulas are those of cc/core/margin.h, of [N] samples at once. They take O(N) time, but many small ops. And what
the raw ops take of a margin: attributes, terms and the factors of the classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from lsoftmax_op._terms import Terms, has_terms, known_terms
from lsoftmax_op.margins import Margin

_POLE = 2.0**-46  # of sin(theta)^2


def attributes_of(op: Any) -> dict[str, Any]:
    """Returns those of an op."""
    return some_attributes_of(op, "margin", "normalize_features", "normalize_weights", "linear_continuation")


def some_attributes_of(op: Any, *names: str) -> dict[str, Any]:
    """Returns attributes, which are no strings, of an op.

    An eager tape's has them in one list, name by name, of which a get_attr would take five microseconds each.
    """
    listed = getattr(op, "attrs", None)
    if listed is None:
        return {name: op.get_attr(name) for name in names}
    known = dict(zip(listed[::2], listed[1::2], strict=True))
    return {name: known[name] for name in names}


def terms(
    margin: Margin, smoothing: float = 0.0, weights: tf.Tensor | None = None, class_major: bool = False
) -> tf.Tensor:
    """Returns the terms [7], float64; [0] where there are none: of L-Softmax with labels that are not smoothed."""
    if not has_terms(margin, smoothing):
        return tf.constant([], tf.float64)
    of_class: Any = 0.0
    if smoothing != 0 and weights is not None:
        dim = _class_dimension(class_major)
        classes = weights.shape[dim]
        of_class = smoothing / (tf.cast(tf.shape(weights)[dim], tf.float64) if classes is None else classes)
    numbers = (margin.m2, margin.m3, margin.scale, smoothing, of_class)
    if all(isinstance(number, float) for number in numbers):
        return tf.constant(known_terms(*numbers), tf.float64)
    # Not tf.cast of a float, which would make it a float32 first.
    shift, offset, scale, smoothing, of_class = (
        tf.constant(number, tf.float64) if isinstance(number, float) else tf.cast(number, tf.float64)
        for number in numbers
    )
    # No gradient goes to them; of the logits, it would miss the target's share.
    return tf.stop_gradient(tf.stack(Terms(shift, tf.cos(shift), tf.sin(shift), offset, scale, smoothing, of_class)))


def _class_dimension(class_major: bool) -> int:
    """Returns which dimension of the weights is that of the classes."""
    return 0 if class_major else 1


def class_factors(ops: Any, margin: Margin, weights: tf.Tensor, class_major: bool = False) -> tf.Tensor:
    """Returns what the logits of each class are multiples of, [C], in the type they are computed in; [0] for none."""
    wide = tf.float64 if weights.dtype == tf.float64 else tf.float32
    if margin.normalize_weights:
        return ops.lsoftmax_class_factors(weights, Twide=wide, class_major=class_major)
    dim = _class_dimension(class_major)
    return tf.ones(tf.shape(weights)[dim : dim + 1], wide) if margin.has_factors else tf.constant([], wide)


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
    factor = Terms(*tf.unstack(terms, num=7)).scale
    if attributes["normalize_features"]:
        norm_sq = tf.reduce_sum(tf.square(tf.cast(features, tf.float64)), axis=1, keepdims=True)
        factor *= _inverse_norm(norm_sq)
    scaled = tf.cast(tf.cast(features, tf.float64) * factor, features.dtype)
    logits = tf.matmul(scaled, weights, transpose_b=class_major)
    if not attributes["normalize_weights"]:
        return logits
    wide = tf.float64 if weights.dtype == tf.float64 else tf.float32
    factors = ops.lsoftmax_class_factors(weights, Twide=wide, class_major=class_major)
    return tf.cast(tf.cast(logits, wide) * factors, logits.dtype)


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
    """Returns psi at c, from the recurrence of the Chebyshev polynomials; the keywords are `attributes`."""
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
