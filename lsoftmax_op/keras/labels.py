"""Labels as Keras users have them, integers of any type or one-hot rows, become the class indices that the ops take."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from lsoftmax_op import _checks

_OUT_OF_RANGE = tf.int32.min


def class_indices(labels: Any, classes: int, name: str = "labels") -> tf.Tensor:
    """Returns the class index of every sample.

    Args:
        labels: integers [N] or [N, 1], each in [0, C) or -1 for "no target"; or one-hot [N, C], in which a row of zeros
            has no target (as `tf.one_hot` makes of -1). Both of any integer or floating type or bool, as readers of CSV
            files and images have them.
        classes: C.
        name: what the caller names the labels.

    Returns:
        [N], int32 or int64.

    Raises:
        TypeError: labels that are no tensor of one of these types, or masked ones.
        ValueError: no labels, or a shape that is none of these.
        tf.errors.InvalidArgumentError: a number that is no integer, or none of int64, or a row of [N, C] that is not
            one-hot, which it shows. (Labels out of range are found by the op. Under XLA no error can be raised here:
            such a row becomes a label out of range, so that the op raises the error, or makes the row NaN where it
            cannot either.)
    """
    expected = f"{name}: expected integers [N] or one-hot [N, {classes}]"
    if labels is None:
        raise ValueError(f"{expected}, got None")
    if isinstance(labels, dict):
        raise TypeError(f"{expected}, got a dict with the keys {list(labels)}: pass the labels themselves")
    _checks.refuse_masked(labels, name)
    try:
        labels = tf.convert_to_tensor(labels)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{expected}, got {type(labels).__name__}: {error}") from error
    shape, dtype = labels.shape, labels.dtype
    if shape.rank not in (1, 2) or (shape.rank == 2 and shape[1] not in (1, classes)):
        raise ValueError(f"{expected}, got shape {shape}")
    if not (dtype.is_integer or dtype.is_floating or dtype.is_bool):
        raise TypeError(f"{expected}, got {dtype.name} {shape}")
    if shape.rank == 2 and shape[1] == classes and not (classes == 1 and dtype.is_integer):
        return _of_one_hot(labels, expected)
    labels = tf.reshape(labels, [-1])
    if dtype.is_floating or dtype == tf.uint64:
        indices = tf.cast(labels, tf.int64)
        right = indices >= 0 if dtype == tf.uint64 else tf.cast(indices, dtype) == labels
        return _checked(indices, right, labels, f"{expected}, got")
    if dtype not in (tf.int32, tf.int64):
        labels = tf.cast(labels, tf.int64 if dtype == tf.uint32 else tf.int32)
    return labels


def _of_one_hot(rows: tf.Tensor, expected: str) -> tf.Tensor:
    """The column of each row's 1, -1 for a row of zeros."""
    ones, zeros = rows == tf.ones([], rows.dtype), rows == tf.zeros([], rows.dtype)
    hot = tf.math.count_nonzero(ones, axis=1)
    is_one_hot = tf.reduce_all(ones | zeros, axis=1) & (hot <= 1)
    indices = tf.where(hot == 1, tf.argmax(tf.cast(ones, tf.int32), axis=1), tf.constant(-1, tf.int64))
    why = "A margin needs one target a row; label smoothing, mixup and CutMix make several: pass class indices"
    return _checked(indices, is_one_hot, rows, f"{expected}, got rows of other numbers. {why}. Got")


def _checked(indices: tf.Tensor, right: tf.Tensor, labels: tf.Tensor, message: str) -> tf.Tensor:
    """Returns the indices if every row is right, else raises an error with the first label that is not."""

    def refuse() -> tf.Tensor:
        # With one row more, since XLA compiles this for batches without rows, too.
        row = tf.argmin(tf.cast(tf.concat([right, [False]], axis=0), tf.int32))
        label = tf.concat([labels, tf.zeros([1, *labels.shape[1:]], labels.dtype)], axis=0)[row]
        check = tf.debugging.Assert(False, [message, label, "in row", row], summarize=10)
        with tf.control_dependencies([check]):
            return tf.where(right, indices, tf.constant(_OUT_OF_RANGE, tf.int64))

    return tf.cond(tf.reduce_all(right), lambda: indices, refuse)
