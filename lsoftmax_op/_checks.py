"""Checks of arguments that every function of the package takes: the error names what came and what was expected.

A sentence stands here once, for TensorFlow's tensors and for arrays alike.

Numbers become Python's own, arrays NumPy's own, here: what comes after never meets another type's arithmetic.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lsoftmax_op.margins import Margin

MAX_MARGIN = 64

Shape = Sequence[int | None]  # None is a size that is not known yet. A message shows a tuple or a list as it came.


def margin(value: object, name: str = "margin") -> int:
    """Returns the margin of Large-Margin Softmax, what an angle is multiplied by, as an int.

    Raises:
        TypeError: it is no integer (a bool is none).
        ValueError: it is not within 1 and 64.
    """
    expected = f"{name}: expected an integer from 1 to {MAX_MARGIN}"
    number = _index(value, expected)
    if not 1 <= number <= MAX_MARGIN:
        raise ValueError(f"{expected}, got {shown(value)}")
    return number


def bias_beside(bias: object, margin: Margin) -> None:
    """Refuses a bias beside a margin that normalises features or weights, or scales.

    Raises:
        ValueError: there is one.
    """
    if bias is not None and margin.has_factors:
        raise ValueError(
            f"bias: expected None with a margin that normalises or scales, {shown(margin)}, got {described(bias)}"
        )


def host_lambda(value: object) -> float:
    """Returns an annealing weight lambda that is a Python or NumPy number, as a float.

    Raises:
        TypeError: it is a bool or no number.
        ValueError: it is negative or NaN, or too large for float64.
    """
    expected = "lam: expected a number >= 0"
    number = real(value, expected)
    if math.isnan(number) or number < 0:
        raise ValueError(f"{expected}, got {shown(value)}")
    return number


def label_smoothing(value: object) -> float:
    """Returns the share of the target distribution that all classes have, as a float.

    Raises:
        TypeError: it is a bool or no number.
        ValueError: it is not within [0, 1).
    """
    expected = "label_smoothing: expected a number in [0, 1)"
    number = real(value, expected)
    if not 0 <= number < 1:
        raise ValueError(f"{expected}, got {shown(value)}")
    return number


def sample_rate(value: object) -> float:
    """Returns the share of the classes that a step samples, as a float.

    Raises:
        TypeError: it is a bool or no number.
        ValueError: it is not within (0, 1].
    """
    expected = "sample_rate: expected a number in (0, 1]"
    number = real(value, expected)
    if not isinstance(value, float) and hasattr(value, "dtype"):
        number = float(str(value))  # of NumPy's float32 the digits that were meant: 0.1, not 0.10000000149
    if not 0 < number <= 1:
        raise ValueError(f"{expected}, got {shown(value)}")
    return number


def gradient_filter(value: object, label_smoothing: float) -> bool:
    """Returns whether the gradients may leave out what is below rounding: all classes matter to smoothed labels.

    Raises:
        TypeError: it is neither a string nor a bool.
        ValueError: it is neither "auto" nor False.
    """
    expected = 'filter: expected "auto" or False'
    if not isinstance(value, (str, bool, np.bool_)):
        raise TypeError(f"{expected}, got {shown(value)}")
    if value != "auto" and (isinstance(value, str) or value):
        raise ValueError(f"{expected}, got {shown(value)}")
    return isinstance(value, str) and label_smoothing == 0


def positive_integer(value: object, name: str) -> int:
    """Returns a count as an int.

    Raises:
        TypeError: it is no integer (a bool is none).
        ValueError: it is less than 1, or too large for int64.
    """
    return integer_from(1, value, name)


def integer_from(least: int, value: object, name: str) -> int:
    """Returns an integer that is at least 0, or at least 1, as an int.

    Raises:
        TypeError: it is no integer (a bool is none).
        ValueError: it is less than `least`, or too large for int64.
    """
    expected = f"{name}: expected a positive integer" if least == 1 else f"{name}: expected an integer >= {least}"
    number = integer(value, expected)
    if number < least:
        raise ValueError(f"{expected}, got {shown(value)}")
    return number


def flag(value: object, name: str) -> bool:
    """Returns a bool.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


def integer(value: object, expected: str) -> int:
    """Returns an integer as an int; the message of an error begins with `expected`.

    Raises:
        TypeError: it is no integer (a bool is none).
        ValueError: it is too large for int64.
    """
    number = _index(value, expected)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{expected} that fits in int64, got {shown(value)}")
    return number


def real(value: object, expected: str) -> float:
    """Returns a Python or NumPy number as a float; the message of an error begins with `expected`.

    Raises:
        TypeError: it is a bool or no number (a time is none).
        ValueError: it is too large for float64.
    """
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, Real):
        raise TypeError(f"{expected}, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if abs(number) == math.inf and number != value:  # NumPy's long doubles become infinite in silence
        raise ValueError(f"{expected} that fits in float64, got {shown(value)}")
    return number


def array(value: Any, name: str) -> np.ndarray:
    """Returns the values of an array, or of what NumPy makes one of, as C code can read them.

    Returns:
        A NumPy array, of no subclass and of native byte order, contiguous and aligned; a view of the same memory where
        it is all that already, else a copy.

    Raises:
        TypeError: NumPy makes no array of it, or it has a mask that hides something.
    """
    refuse_masked(value, name)
    try:
        values = np.asarray(value)
        values = np.asarray(values, values.dtype.newbyteorder("="), order="C")
    except MemoryError:
        raise
    except Exception as error:  # whatever the value's own class raises
        raise TypeError(f"{name}: expected an array, got {described(value)}: {error}") from error
    return values.view() if values.flags.aligned else values.copy()


def refuse_masked(value: Any, name: str) -> None:
    """Refuses an array, or a list of arrays, with a mask that hides something: what converts it would drop the mask.

    Raises:
        TypeError: it has one.
    """
    for part in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(part, np.ma.MaskedArray) and b"\1" in np.ma.getmask(part).tobytes():
            raise TypeError(f"{name}: expected an array without masked entries, got {described(part)} that hides some")


def rank(spelled: str) -> int:
    """Returns how many sizes a shape has that is spelled "[N, D]"."""
    return 0 if spelled == "[]" else spelled.count(",") + 1


def shape_has_rank(argument: str, shape: Shape, spelled: str) -> None:
    """Refuses a shape of another rank than the spelled one.

    Raises:
        ValueError: it has another.
    """
    if len(shape) != rank(spelled):
        raise ValueError(f"{argument}: expected shape {spelled}, got {shape}")


def batch_shapes(features: Shape, weights: Shape, labels: Shape, *, class_major: bool = False) -> None:
    """Refuses shapes, of the right ranks, that do not fit, as far as they are known.

    Args:
        features: the shape of the features, [N, D].
        weights: that of the weights, [D, C], or [C, D] if `class_major`.
        labels: that of the labels, [N].
        class_major: whether the weights of a class are a row.

    Raises:
        ValueError: they do not fit, or there is no class.
    """
    spelled, (depth, classes) = layout(class_major), weights[::-1] if class_major else weights
    _same_size("weights", weights, spelled, "D", depth, features[1], "features", features)
    if classes == 0:
        raise ValueError(f"weights: expected shape {spelled} with at least one class, got {weights}")
    _same_size("labels", labels, "[N]", "N", labels[0], features[0], "features", features)


def layout(class_major: bool) -> str:
    """Returns how the shape of weights is spelled."""
    return "[C, D]" if class_major else "[D, C]"


def bias_shape(bias: Shape, weights: Shape, *, class_major: bool = False) -> None:
    """Refuses the shape of a bias that does not fit the weights', as far as they are known.

    Raises:
        ValueError: it does not fit.
    """
    _same_size("bias", bias, "[C]", "C", bias[0], weights[0 if class_major else 1], "weights", weights)


def shown(value: object) -> str:
    """Returns repr(value), shortened; of values without one, their type."""
    try:
        text = repr(value)
    except Exception:  # a huge int has none
        return described(value)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-20:]}"


def described(value: Any) -> str:
    """Returns the name of the value's type and, for an array, its device."""
    try:
        device = getattr(value, "device", None)
    except Exception:
        device = None
    name = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
    return name if device is None else f"{name} on {device}"


def _same_size(
    argument: str,
    shape: Shape,
    spelled: str,
    letter: str,
    size: int | None,
    expected: int | None,
    other: str,
    other_shape: Shape,
) -> None:
    if None not in (size, expected) and size != expected:
        raise ValueError(
            f"{argument}: expected shape {spelled} with the {letter} = {expected} of {other} {other_shape}, got {shape}"
        )


def _index(value: Any, expected: str) -> int:
    try:
        if not isinstance(value, bool) and "bool" not in str(getattr(value, "dtype", "")):  # some have an index
            return operator.index(value)
    except Exception:  # scalars of TensorFlow and others raise what they like
        pass
    raise TypeError(f"{expected}, got {shown(value)}")
