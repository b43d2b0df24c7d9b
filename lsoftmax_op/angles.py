"""The angle between every sample and the weights of its class, as TensorFlow functions: to be watched, not derived."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import tensorflow as tf

from lsoftmax_op import _checks, _op_margin, _terms, formula, library
from lsoftmax_op._tensors import batch_of
from lsoftmax_op.margins import Margin, margin_of

if TYPE_CHECKING:
    from tensorflow.types.experimental import TensorLike


def target_angles(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    *,
    margin: Margin | int = 4,
    class_major: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the angle between every sample and the weights of its class, to watch it while training.

    Args:
        features: [N, D], float16, bfloat16, float32 or float64.
        weights: [D, C], of the same dtype; [C, D] if `class_major`.
        labels: [N], int32 or int64, each in [0, C), or -1.
        margin: the integer m from 1 to 64 that cuts [0, pi] into segments, or one of `lsoftmax_op.margins`.
        class_major: whether the weights are [C, D], as for `lsoftmax_loss`.

    Returns:
        A pair of cos(theta) [N], of the features' dtype, 0 where a norm is zero and NaN where the label is -1; and
        the segment k [N], int32, for which theta is in [k pi/margin, (k+1) pi/margin] (of another margin, m1 theta + m2
        in [k pi, (k+1) pi]), -1 where the label is -1.
        Neither is differentiable.

    Raises:
        TypeError, ValueError, tf.errors.InvalidArgumentError: as for `lsoftmax_logits`.
    """
    margin, class_major = margin_of(margin), _checks.flag(class_major, "class_major")
    with tf.name_scope("target_angles"):
        batch = batch_of(features, weights, labels, class_major=class_major)
        geometry = library.load().lsoftmax_target_geometry(*batch, class_major=class_major).geometry
        return angles_of(batch.labels, geometry, margin, batch.features.dtype)


def target_cosines(features: TensorLike, weights: TensorLike, labels: TensorLike) -> tf.Tensor:
    """Returns cos(theta) [N] as `target_angles` does, but 0 where the label is -1.

    For training steps: a NaN would stop whoever looks for other ones (``tf.debugging.enable_check_numerics``).
    """
    with tf.name_scope("target_cosines"):
        batch = batch_of(features, weights, labels)
        geometry = library.load().lsoftmax_target_geometry(*batch).geometry
        # The geometry of a row without a target is 0, which has the cosine 0.
        return tf.cast(formula.cos_theta(geometry), batch.features.dtype)


def angles_of(labels: tf.Tensor, geometry: tf.Tensor, margin: Margin, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `target_angles` does, of a geometry that is known."""
    has_target = labels >= 0
    cos_theta = formula.cos_theta(geometry)
    segment = tf.cast(formula.psi(cos_theta, _op_margin.terms(margin), **_terms.attributes(margin)).segment, tf.int32)
    cos_theta = tf.where(has_target, cos_theta, tf.constant(math.nan, tf.float64))
    return tf.cast(cos_theta, dtype), tf.where(has_target, segment, -1)
