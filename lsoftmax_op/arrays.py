"""The margin logits and their gradient on NumPy arrays, without TensorFlow.

The products are NumPy's (float16 and bfloat16 multiply in float32, as its BLAS has no other way); the margin comes
from the same kernels as the TensorFlow ops'. The GIL is released while they run. Results do not depend on the number
of threads.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lsoftmax_op import _checks, _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Gradients(NamedTuple):
    """The derivatives of a loss in the arguments of the layer."""

    features: np.ndarray  # [N, D]
    weights: np.ndarray  # [D, C]
    bias: np.ndarray | None  # [C], None where the layer has no bias


def logits(
    features: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    margin: int = 4,
    lam: float = 0.0,
    num_threads: int | None = None,
) -> np.ndarray:
    """Computes the logits of Large-Margin Softmax (Liu et al., ICML 2016, equations 4 to 6).

    Args:
        features: [N, D], float16, bfloat16 (of ml_dtypes), float32 or float64. Read-only and strided arrays are fine.
        weights: [D, C], of the same dtype, a column for every class.
        labels: [N], integers, each in [0, C); -1 leaves its row the plain dense layer's.
        bias: [C], of the same dtype, or None.
        margin: the integer m from 1 (no margin) to 64.
        lam: the annealing weight lambda >= 0; infinity is the plain dense layer.
        num_threads: at most so many threads; by default one for each processor this process may use.

    Returns:
        The logits, [N, C], of the features' dtype.

    Raises:
        TypeError: an argument of the wrong dtype or type.
        ValueError: shapes that do not fit, or a label, margin or lambda out of range.
    """
    margin, lam = _checks.margin(margin), _checks.host_lambda(lam)
    threads = _threads(num_threads)
    features, weights, labels, bias = _batch(features, weights, labels, bias)
    geometry = _core.target_geometry(features, weights, labels, threads)
    result = _product(features, weights)
    _core.logits(result, labels, geometry, lam, margin, threads)
    if bias is not None:
        result += bias
    return result


def logits_grad(
    grad: ArrayLike,
    features: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    margin: int = 4,
    lam: float = 0.0,
    num_threads: int | None = None,
) -> Gradients:
    """Computes the gradient of ``sum(grad * logits(features, weights, labels, bias))``.

    Args:
        grad: [N, C], of the features' dtype: the loss's derivative in the logits.
        features: [N, D], as for `logits`.
        weights: [D, C], as for `logits`.
        labels: [N], as for `logits`.
        bias: [C] or None, as for `logits`. Its values do not matter.
        margin: as for `logits`.
        lam: as for `logits`.
        num_threads: as for `logits`.

    Returns:
        The derivatives in features [N, D], weights [D, C] and bias [C] (None without a bias).

    Raises:
        TypeError, ValueError: as for `logits`.
    """
    margin, lam = _checks.margin(margin), _checks.host_lambda(lam)
    threads = _threads(num_threads)
    features, weights, labels, bias = _batch(features, weights, labels, bias)
    grad = _array("grad", grad, "[N, C]", (features.dtype.name,))
    expected = (features.shape[0], weights.shape[1])
    if grad.shape != expected:
        raise ValueError(f"grad: expected shape [N, C] = {list(expected)}, got {list(grad.shape)}")
    geometry = _core.target_geometry(features, weights, labels, threads)
    products_grad = grad.copy()
    geometry_grad = _core.logits_grad(products_grad, labels, geometry, lam, margin, threads)
    features_grad = _product(products_grad, weights.T)
    _core.features_grad(features_grad, features, weights, labels, geometry_grad, threads)
    weights_grad = _product(features.T, products_grad)
    _core.weights_grad(weights_grad, features, weights, labels, geometry_grad, threads)
    bias_grad = None
    if bias is not None:
        bias_grad = grad.sum(axis=0, dtype=_computed_in(grad.dtype)).astype(grad.dtype)
    return Gradients(features_grad, weights_grad, bias_grad)


def _computed_in(dtype: np.dtype) -> type:
    return np.float64 if dtype == np.float64 else np.float32


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A @ b in the dtype of both, dense."""
    wide = _computed_in(a.dtype)
    return np.matmul(a.astype(wide, copy=False), b.astype(wide, copy=False)).astype(a.dtype, copy=False)


def _threads(num_threads: int | None) -> int:
    if num_threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(num_threads, bool) or not isinstance(num_threads, (int, np.integer)) or num_threads < 1:
        raise ValueError(f"num_threads: expected a positive integer or None, got {num_threads!r}")
    return min(int(num_threads), 1024)


def _array(argument: str, value: ArrayLike, shape: str, dtypes: tuple[str, ...]) -> np.ndarray:
    """Returns `value` as a dense array of one of the dtypes and of the rank that `shape` spells."""
    array = np.asarray(value)
    if array.dtype.name not in dtypes:
        raise TypeError(f"{argument}: expected dtype {' or '.join(dtypes)}, got {array.dtype.name}")
    if array.ndim != shape.count(",") + 1:
        raise ValueError(f"{argument}: expected shape {shape}, got {list(array.shape)}")
    return np.ascontiguousarray(array)


def _labels(labels: ArrayLike) -> np.ndarray:
    array = np.asarray(labels)
    if array.size == 0 and not isinstance(labels, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int64):
        raise TypeError(f"labels: expected integers that fit in int64, got dtype {array.dtype.name}")
    if array.ndim != 1:
        raise ValueError(f"labels: expected shape [N], got {list(array.shape)}")
    return np.ascontiguousarray(array, dtype=np.int32 if array.dtype == np.int32 else np.int64)


def _batch(
    features: ArrayLike, weights: ArrayLike, labels: ArrayLike, bias: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Checks the arguments of a layer, all but the label's values, and makes each a dense array."""
    features = _array("features", features, "[N, D]", _FLOATS)
    weights = _array("weights", weights, "[D, C]", (features.dtype.name,))
    labels = _labels(labels)
    (rows, depth), classes = features.shape, weights.shape[1]
    if weights.shape[0] != depth:
        raise ValueError(
            f"weights: expected shape [D, C] with the D = {depth} of features {list(features.shape)}, "
            f"got {list(weights.shape)}"
        )
    if classes == 0:
        raise ValueError(f"weights: expected shape [D, C] with at least one class, got {list(weights.shape)}")
    if labels.shape != (rows,):
        raise ValueError(
            f"labels: expected shape [N] with the N = {rows} of features {list(features.shape)}, "
            f"got {list(labels.shape)}"
        )
    if bias is not None:
        bias = _array("bias", bias, "[C]", (features.dtype.name,))
        if bias.shape != (classes,):
            raise ValueError(
                f"bias: expected shape [C] with the C = {classes} of weights {list(weights.shape)}, "
                f"got {list(bias.shape)}"
            )
    return features, weights, labels, bias
