"""What the raw ops take of a margin: its attributes, as an op has them, its terms and the factors of the classes.

    terms     [7]: what `lsoftmax_op._terms` says, as tensors, of which each may be one of the caller's
    factors   [C]: f_j = 1 / |w_j| where the margin divides by it, else 1

Both are [0] where there are none.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from lsoftmax_op._terms import Terms, has_terms, known_terms
from lsoftmax_op.margins import Margin


def attributes_of(op: Any) -> dict[str, Any]:
    """Returns an op's attributes that are its margin's."""
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
    margin: Margin,
    smoothing: float = 0.0,
    weights: tf.Tensor | None = None,
    class_major: bool = False,
    num_classes: int | tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the terms [7], float64; [0] where there are none: of L-Softmax with labels that are not smoothed.

    `num_classes` is the C that smoothed labels divide by, where `weights` are not those of all classes.
    """
    if not has_terms(margin, smoothing):
        return tf.constant([], tf.float64)
    of_class: Any = 0.0
    if smoothing != 0 and weights is not None:
        dim = _class_dimension(class_major)
        classes = weights.shape[dim] if num_classes is None else num_classes
        if classes is None:
            classes = tf.shape(weights)[dim]
        of_class = smoothing / (tf.cast(classes, tf.float64) if isinstance(classes, tf.Tensor) else classes)
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


def class_factors(ops: Any, margin: Margin, weights: tf.Tensor, class_major: bool = False) -> tf.Tensor:
    """Returns what the logits of each class are multiples of, [C], in the type they are computed in; [0] for none."""
    if margin.normalize_weights:
        return inverse_norms(ops, weights, class_major)
    dim, wide = _class_dimension(class_major), _wide(weights.dtype)
    return tf.ones(tf.shape(weights)[dim : dim + 1], wide) if margin.has_factors else tf.constant([], wide)


def inverse_norms(ops: Any, weights: tf.Tensor, class_major: bool = False) -> tf.Tensor:
    """Returns 1 / |w| of each class, [C], 0 of a norm below 2^-60, in the type that its logits are computed in."""
    return ops.lsoftmax_class_factors(weights, Twide=_wide(weights.dtype), class_major=class_major)


def _wide(dtype: tf.DType) -> tf.DType:
    return tf.float64 if dtype == tf.float64 else tf.float32


def _class_dimension(class_major: bool) -> int:
    """Returns which dimension of the weights is that of the classes."""
    return 0 if class_major else 1
