"""What the oracle takes: numbers of any library as float64, labels as int64, checked."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from lsoftmax_op import _checks, margins


def margin(value: object) -> margins.Margin:
    """Returns the margin that an argument means, with the present values of tensors and variables.

    Raises:
        TypeError, ValueError: it means none.
    """
    return margins.Margin.from_config(margins.margin_of(value).get_config())


def number(value: Any, expected: str) -> float:
    """Returns a number, or a scalar array, as a float; the message of an error begins with `expected`.

    Raises:
        TypeError: it is neither.
        ValueError: it is too large for float64.
    """
    scalar = value if isinstance(value, Real) else _checks.array(value, expected.partition(":")[0])[()]
    return _checks.real(scalar if isinstance(scalar, Real) else value, expected)


def annealing(lam: Any) -> float:
    """Returns the annealing weight lambda, a number or a scalar array, as a float.

    Raises:
        TypeError, ValueError: as for `number`.
    """
    return number(lam, "lam: expected a number >= 0")


def smoothing(label_smoothing: Any) -> float:
    """Returns the label smoothing, a number or a scalar array, as a float.

    Raises:
        TypeError: it is neither.
        ValueError: it is outside [0, 1).
    """
    return _checks.label_smoothing(number(label_smoothing, "label_smoothing: expected a number in [0, 1)"))


def angle(theta: Any) -> float:
    """Returns an angle, a number or a scalar array, as a float.

    Raises:
        TypeError: it is neither.
        ValueError: it is outside [0, pi].
    """
    theta = number(theta, "theta: expected an angle from 0 to pi")
    if not 0 <= theta <= math.pi:
        raise ValueError(f"theta: expected an angle from 0 to pi, got {theta}")
    return theta


def float64(value: Any, name: str) -> np.ndarray:
    """Returns an array of numbers, or what NumPy makes one of, in float64.

    Raises:
        TypeError: it is no array of numbers.
        ValueError: one of them is too large for float64.
    """
    values = _checks.array(value, name)
    if values.dtype == object:
        numbers = [_checks.real(entry, f"{name}: expected numbers") for entry in values.flat]
        return np.array(numbers, np.float64).reshape(values.shape)
    if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected numbers, got dtype {values.dtype}")
    return values.astype(np.float64)


def batch(
    features: Any, weights: Any, labels: Any, bias: Any, lam: float, margin: margins.Margin
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns features [N, D], weights [D, C] and bias [C] as float64, labels [N] as int64, which fit each other.

    Raises:
        TypeError, ValueError: they do not, or lambda is negative or NaN, or there is a bias beside a margin that
            normalises.
    """
    x, w, y = float64(features, "features"), float64(weights, "weights"), _checks.array(labels, "labels")
    b = None if bias is None else float64(bias, "bias")
    if math.isnan(lam) or lam < 0:
        raise ValueError(f"lam: expected a number >= 0, got {lam}")
    if x.ndim != 2:
        raise ValueError(f"features: expected shape [N, D], got {list(x.shape)}")
    if w.ndim != 2 or w.shape[0] != x.shape[1] or w.shape[1] == 0:
        raise ValueError(f"weights: expected shape [{x.shape[1]}, C] with C >= 1, got {list(w.shape)}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"labels: expected shape [{x.shape[0]}], got {list(y.shape)}")
    if y.size and y.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got dtype {y.dtype.name}")
    for i, label in enumerate(y):
        if not -1 <= label < w.shape[1]:
            raise ValueError(f"labels: expected values in [0, {w.shape[1]}), or -1, got labels[{i}] = {label}")
    _checks.bias_beside(bias, margin)
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"bias: expected shape [{w.shape[1]}], got {list(b.shape)}")
    return x, w, y.astype(np.int64), b
