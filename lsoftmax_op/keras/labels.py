"""Labels as Keras users have them, integers or one-hot rows, become the class indices that the ops take."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def class_indices(labels: Any, classes: int, name: str = "labels") -> tf.Tensor:
    """Returns the class index of every sample.

    Args:
        labels: integers [N] or [N, 1], each in [0, C) or -1 for "no target"; or one-hot [N, C] of any number type, in
            which a row of zeros has no target (as `tf.one_hot` makes of -1).
        classes: C.
        name: what the caller names the labels.

    Returns:
        [N], int32 or int64.

    Raises:
        TypeError: integers were expected, and the labels are of another type.
        ValueError: no labels, or a shape that is none of these.
        tf.errors.InvalidArgumentError: a row of [N, C] that is not one-hot. (Labels out of range are found by the op.)
    """
    expected = f"{name}: expected integers [N] or one-hot [N, {classes}]"
    if labels is None:
        raise ValueError(f"{expected}, got None")
    labels = tf.convert_to_tensor(labels)
    shape = labels.shape
    if shape.rank not in (1, 2) or (shape.rank == 2 and shape[1] not in (1, classes)):
        raise ValueError(f"{expected}, got shape {shape}")
    if shape.rank == 2 and shape[1] == classes and not (classes == 1 and labels.dtype.is_integer):
        return _of_one_hot(labels, expected)
    if not labels.dtype.is_integer:
        raise TypeError(f"{expected}, got {labels.dtype.name} {shape}")
    if labels.dtype not in (tf.int32, tf.int64):
        labels = tf.cast(labels, tf.int64 if labels.dtype in (tf.uint32, tf.uint64) else tf.int32)
    return tf.reshape(labels, [-1])


def _of_one_hot(rows: tf.Tensor, expected: str) -> tf.Tensor:
    """The column of each row's 1, -1 for a row of zeros. A margin has one target: a mixture of classes is refused."""
    ones, zeros = rows == tf.ones([], rows.dtype), rows == tf.zeros([], rows.dtype)
    hot = tf.math.count_nonzero(ones, axis=1)
    is_one_hot = tf.reduce_all(ones | zeros) & tf.reduce_all(hot <= 1)
    check = tf.debugging.Assert(is_one_hot, [f"{expected}, got rows of other numbers", rows])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.where(hot == 1, tf.argmax(tf.cast(ones, tf.int32), axis=1), tf.constant(-1, tf.int64))
