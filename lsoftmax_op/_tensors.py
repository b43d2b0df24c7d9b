"""What the TensorFlow functions are given, as tensors that have been checked as far as they are known."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import tensorflow as tf

from lsoftmax_op import _checks
from lsoftmax_op._terms import without_psi
from lsoftmax_op.margins import Margin, margin_of

FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)
INTEGERS = (tf.int32, tf.int64)


class Batch(NamedTuple):
    """Features [N, D], weights [D, C] (or [C, D], if they are class-major) and labels [N], checked."""

    features: tf.Tensor
    weights: tf.Tensor
    labels: tf.Tensor


def batch_of(features: Any, weights: Any, labels: Any, *, class_major: bool = False) -> Batch:
    """Converts the three to tensors and checks what is known of them."""
    features = checked_tensor("features", features, FLOATS, "[N, D]")
    weights = checked_tensor("weights", weights, (features.dtype,), _checks.layout(class_major))
    labels = checked_tensor("labels", labels, INTEGERS, "[N]")
    shapes = (tuple(tensor.shape.as_list()) for tensor in (features, weights, labels))
    _checks.batch_shapes(*shapes, class_major=class_major)
    return Batch(features, weights, labels)


def bias_of(bias: Any, weights: tf.Tensor, margin: Margin, *, class_major: bool = False) -> tf.Tensor:
    """Converts a bias [C] to a tensor and checks it beside the weights and the margin."""
    _checks.bias_beside(bias, margin)
    bias = checked_tensor("bias", bias, (weights.dtype,), "[C]")
    _checks.bias_shape(*(tuple(tensor.shape.as_list()) for tensor in (bias, weights)), class_major=class_major)
    return bias


def margin_and_lambda(margin: Any, lam: Any) -> tuple[Margin, tf.Tensor]:
    """Returns the margin and lambda, a float64 scalar tensor. What an infinite number leaves of a margin is none."""
    margin = margin_of(margin)
    if not isinstance(lam, (bool, Real)):
        return margin, tf.cast(checked_tensor("lam", lam, (*FLOATS, *INTEGERS), "[]"), tf.float64)
    lam = _checks.host_lambda(lam)
    if math.isinf(lam):
        margin, lam = without_psi(margin), 0.0
    return margin, tf.constant(lam, tf.float64)


def checked_tensor(argument: str, value: Any, dtypes: tuple[tf.DType, ...], shape: str) -> tf.Tensor:
    """Converts `value` to a tensor of one of the dtypes and of the rank that `shape` spells."""
    names = " or ".join(dtype.name for dtype in dtypes)
    _checks.refuse_masked(value, argument)
    try:
        tensor = tf.convert_to_tensor(value)
    except (tf.errors.OpError, MemoryError):
        raise
    except Exception as error:  # whatever the value's own class raises
        raise TypeError(
            f"{argument}: expected a tensor {shape} of {names}, got {_checks.described(value)}: {error}"
        ) from error
    if tensor.dtype not in dtypes:
        raise TypeError(f"{argument}: expected {names}, got {tensor.dtype.name}")
    if tensor.shape.rank is None:
        tensor = tf.ensure_shape(tensor, [None] * _checks.rank(shape))
    _checks.shape_has_rank(argument, tuple(tensor.shape.as_list()), shape)
    return tensor
