"""Checks of arguments that every function of the package takes: the error names what came and what was expected."""

from __future__ import annotations

import math
import operator
from numbers import Real

MAX_MARGIN = 64


def margin(value: object) -> int:
    """Returns the margin as an int.

    Raises:
        TypeError: it is no integer (a bool is none).
        ValueError: it is not within 1 and 64.
    """
    expected = f"margin: expected an integer from 1 to {MAX_MARGIN}"
    if isinstance(value, bool):
        raise TypeError(f"{expected}, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{expected}, got {value!r}") from None
    if not 1 <= number <= MAX_MARGIN:
        raise ValueError(f"{expected}, got {value!r}")
    return number


def host_lambda(value: Real, name: str = "lam") -> float:
    """Returns an annealing weight lambda that is a Python or NumPy number.

    Raises:
        TypeError: it is a bool or no number.
        ValueError: it is negative or NaN.
    """
    expected = f"{name}: expected a number >= 0"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{expected}, got {value!r}")
    number = float(value)
    if math.isnan(number) or number < 0:
        raise ValueError(f"{expected}, got {value!r}")
    return number


def positive_integer(value: object, name: str) -> int:
    """Returns a count as an int.

    Raises:
        TypeError: it is no integer (a bool is none).
        ValueError: it is less than 1.
    """
    expected = f"{name}: expected a positive integer"
    if isinstance(value, bool):
        raise TypeError(f"{expected}, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{expected}, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{expected}, got {value!r}")
    return number
