"""The logits without the margin, in the ops of Keras alone: what a layer infers with and is exported as.

    logit_j = scale x . w_j / (|x| |w_j|)       each norm where the margin divides by it; 0 where that norm is 0

A norm is taken of the vector divided by its largest component, so that no square overflows or vanishes. That component
is a constant to the derivative, of which the quotient does not depend on it. A norm below 2^-60 counts as zero, and
value and gradient are 0.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from lsoftmax_op.margins import Margin

_LEAST = 2.0**-60


def unit_rows(x: Any, dtype: str) -> Any:
    """Returns rows divided by their norms; those of norm zero are zero.

    Args:
        x: [..., D], of any floating type, also symbolic.
        dtype: what to compute in, and the type of the result: "float32" or "float64".

    Returns:
        [..., D].
    """
    exists, scaled, norm, _ = _norms(keras.ops.cast(x, dtype), -1, dtype)
    return keras.ops.where(exists, scaled / norm, 0.0)


def class_factors(kernel: Any, dtype: str) -> Any:
    """Returns 1 / |w| of each column w of a kernel [D, C], 0 where the norm is zero, [1, C], of a dtype."""
    exists, _, norm, largest = _norms(keras.ops.cast(kernel, dtype), 0, dtype)
    return keras.ops.where(exists, 1 / norm / largest, 0.0)


def _norms(x: Any, axis: int, dtype: str) -> tuple[Any, Any, Any, Any]:
    """Returns which vectors have a norm, the vectors over their largest components, their norms, the components."""
    ops = keras.ops
    largest = ops.max(ops.abs(x), axis=axis, keepdims=True)
    if not isinstance(x, keras.KerasTensor):  # older releases of Keras 3 have no symbolic one
        largest = ops.stop_gradient(largest)
    exists = largest >= _LEAST
    largest = ops.where(exists, largest, 1.0)
    scaled = x / largest
    norm_sq = ops.sum(ops.square(scaled), axis=axis, keepdims=True)
    return exists, scaled, ops.sqrt(ops.maximum(norm_sq, 1.0)), largest  # a sum from 1 to D, but for a zero vector


def scaled_variables(variables: dict[str, Any], margin: Margin) -> dict[str, np.ndarray]:
    """Returns the variables of a Dense layer whose products are the plain logits, of features that are unit rows.

    Args:
        variables: as Keras saves those of a head without a bias: "0", the kernel [D, C], and after int8 quantisation
            "1", what the kernel is to be divided by, [C].
        margin: the head's.
    """
    kernel, *divisors = (np.asarray(variables[name]) for name in sorted(variables, key=int))
    values = kernel.astype(np.float64)
    for divisor in divisors:
        values = values / divisor.astype(np.float64)
    factors = np.full(values.shape[1], float(margin.scale))
    if margin.normalize_weights:
        largest = np.abs(values).max(axis=0, initial=0)
        exists = largest >= _LEAST
        largest = np.where(exists, largest, 1)
        norms = largest * np.sqrt(np.square(values / largest).sum(axis=0))
        factors = np.where(exists, factors / np.where(exists, norms, 1), 1 if divisors else 0)
    if divisors:  # a column of zeros stays one
        return {"0": kernel, "1": (divisors[0] / factors).astype(divisors[0].dtype)}
    return {"0": (values * factors).astype(kernel.dtype)}
