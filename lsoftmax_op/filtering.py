"""The classes that matter to the gradients of the fused loss: the others are left out of its two backward products.

    P_ij = dloss_i/d(X W)_ij        q_i = |dloss_i/dz_iy|, which is 1 minus the probability of the target

A class matters, in a batch of N, if it is above the rounding of the gradient of some row i:

    P_ij > (eps / C) q_i r_i f_j        r_i, f_j: what logits are multiples of (cc/core/margin.h), or 1

Divided by r_i f_j, the entries of a row that are left out are at most eps q_i together. So, where r_i and f_j are 1,

    |error of dX_i|  <=  eps |g_i| q_i max_j |w_j|              g: the upstream gradient
    |error of dW_j|  <=  (eps / C) sum_i |g_i| q_i |x_i|        of the classes left out alone

and with factors as `margin_softmax_loss` says. The limit is one of the row, not of the batch: a row whose loss is 1e-9
has its own gradient to the last digits, too.

    kept = KeptClasses(P, limits)                         ascending, or none: all classes
    dX   = P[:, kept] W[:, kept]^T
    dW   = SpreadColumns((g X)^T P[:, kept], kept)        cc/tf/filter.cc

with rows for columns where weights are class-major. Where too many matter nothing is gathered, and both products are
those of all classes, to the bit.

Of classes that lie on several replicas (sharded.py) each replica keeps some of its own, by the same limits: q is known
on all of them, and C is that of all. So the bounds are the same, whichever replicas leave something out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from lsoftmax_op import formula

# Smaller layers are not looked at: the look would take its part of the step.
LEAST_CLASSES = 4096
LEAST_WEIGHTS = 2**22

# The share of the classes up to which leaving out the others is faster than multiplying by them.
MOST = 1 / 4

_EPSILON = {tf.float16: 2.0**-10, tf.bfloat16: 2.0**-7, tf.float32: 2.0**-23, tf.float64: 2.0**-52}


class Kept(NamedTuple):
    """The classes that a batch's products are computed over."""

    classes: tf.Tensor | None  # [K], int64, ascending; [0]: all; None: all, and none were looked for
    products_grad: tf.Tensor  # [N, K], or [N, C]
    weights: tf.Tensor  # [D, K], or [D, C]; [K, D], or [C, D], if they are class-major


def _looks_at(weights: tf.Tensor, class_major: bool) -> bool:
    """Whether a layer with these weights is large enough, as far as its shape is known, to look for classes at all."""
    if not weights.shape.is_fully_defined():
        return False
    depth, classes = weights.shape[::-1] if class_major else weights.shape
    return classes >= max(LEAST_CLASSES, depth) and depth * classes >= LEAST_WEIGHTS


def keep(
    ops: Any,
    filters: bool,
    products_grad: tf.Tensor,
    weights: tf.Tensor,
    class_factors: tf.Tensor,
    row_limits: Callable[[], tf.Tensor],
    class_major: bool,
) -> Kept:
    """Returns what is left of products_grad and weights, and which classes these are.

    Args:
        ops: the raw ops.
        filters: whether anything may be left out at all; of small layers nothing is.
        products_grad: [N, C], P.
        weights: [D, C], or [C, D] if they are class-major.
        class_factors: [C], or [0] for none.
        row_limits: returns [N], what `limits` does; called if the classes are looked at.
        class_major: whether the weights are.
    """
    if not (filters and _looks_at(weights, class_major)):
        return Kept(None, products_grad, weights)
    most = int(MOST * weights.shape[0 if class_major else 1])
    kept = ops.lsoftmax_kept_classes(products_grad, class_factors, row_limits(), most=most)
    entries = ops.lsoftmax_take_columns(products_grad, kept)
    return Kept(kept, entries, ops.lsoftmax_take_columns(weights, kept, class_major=class_major))


def spread(ops: Any, gradient: tf.Tensor, kept: Kept, weights: tf.Tensor, class_major: bool) -> tf.Tensor:
    """Returns the gradient in all weights, 0 in those of the classes that are left out, from that in kept.weights."""
    if kept.classes is None:
        return gradient
    return ops.lsoftmax_spread_columns(gradient, kept.classes, weights, class_major=class_major)


def limits(
    features: tf.Tensor,
    target_grad: tf.Tensor,
    terms: tf.Tensor,
    class_factors: tf.Tensor,
    classes: Any,
    normalize_features: bool,
) -> tf.Tensor:
    """Returns (eps / C) q_i r_i, [N], in the data type of the factors of the classes.

    Args:
        features: [N, D], of the data type whose eps it is.
        target_grad: [N], -q, in the units that products_grad has, too.
        terms: [7], or [0] for none.
        class_factors: [C], or [0] for none, where r is 1.
        classes: C, of all replicas if there are several, a number or a float64 scalar.
        normalize_features: whether the logits are divided by the norms of the features.
    """
    limit = tf.abs(target_grad) * (_EPSILON[features.dtype] / classes)
    if class_factors.shape[0] != 0:
        limit *= formula.row_factor(features, terms, normalize_features)
    return tf.cast(limit, class_factors.dtype)


def count(products_grad: tf.Tensor, class_factors: tf.Tensor, row_limits: tf.Tensor) -> tf.Tensor:
    """Returns how many classes matter, [], int64: those that LsoftmaxKeptClasses finds, in ops that run anywhere."""
    limit = row_limits[:, None] if class_factors.shape[0] == 0 else row_limits[:, None] * class_factors
    below = tf.abs(tf.cast(products_grad, limit.dtype)) <= limit
    return tf.math.count_nonzero(~tf.reduce_all(below, axis=0))
