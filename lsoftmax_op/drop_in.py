"""The signature of the per-sample loop that this library replaces, for code that calls it. See docs/migration.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from lsoftmax_op import _checks, _tensors, ops

if TYPE_CHECKING:
    from tensorflow.types.experimental import TensorLike


def L_softmax(
    feature: TensorLike,
    labels: TensorLike,
    softmax_w: TensorLike,
    softmax_b: TensorLike,
    batch_size: int | TensorLike,
    labmda: float | TensorLike = 100,
    margin: int = 4,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Computes margin logits with the arguments and results of the per-sample loop.

    New code calls `lsoftmax_logits` and `target_angles`, which this function is made of.

    Args:
        feature: [N, D], float16, bfloat16, float32 or float64.
        labels: [N], int32 or int64.
        softmax_w: [D, C], of the features' dtype.
        softmax_b: [C], of the features' dtype, or None.
        batch_size: N, an integer or a scalar integer tensor. Only checked: the size is taken from `feature`.
        labmda: the annealing weight lambda >= 0.
        margin: the integer m from 1 to 64.

    Returns:
        The logits [N, C] and the list of cos(theta) [N] and the segments k [N], int32: as `target_angles` gives them.

    Raises:
        TypeError, ValueError, tf.errors.InvalidArgumentError: as for `lsoftmax_logits`; also where `batch_size` is
            not the number of samples.
    """
    with tf.name_scope("L_softmax"):
        feature = _check_batch_size(_tensors.checked_tensor("features", feature, _tensors.FLOATS, "[N, D]"), batch_size)
        layer = ops.margin_layer(feature, softmax_w, labels, softmax_b, margin=margin, lam=labmda, angles=True)
        return layer.logits, [layer.cos_theta, layer.segment]


def _check_batch_size(feature: tf.Tensor, batch_size: Any) -> tf.Tensor:
    """Returns the feature; where its size or the batch size is only known at run time, checked then."""
    message = "batch_size: expected the number of rows of feature"
    rows = feature.shape[0]
    if tf.is_tensor(batch_size):
        if not batch_size.dtype.is_integer or batch_size.shape.rank not in (0, None):
            raise TypeError(f"batch_size: expected an integer, got {batch_size.dtype.name} {batch_size.shape}")
    else:
        batch_size = _checks.integer(batch_size, "batch_size: expected an integer")
        if rows is not None:
            if rows != batch_size:
                raise ValueError(f"{message}, {rows}, got {batch_size}")
            return feature
    check = tf.debugging.assert_equal(
        tf.cast(tf.shape(feature)[0], tf.int64), tf.cast(batch_size, tf.int64), message=message
    )
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(feature)
