"""The argument `lam` of layer and classifier: a number, or lambda as a function of the optimizer's step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lsoftmax_op import _checks
from lsoftmax_op.schedules import LambdaSchedule

keras.saving.register_keras_serializable(package="lsoftmax_op")(LambdaSchedule)

DEFAULT = LambdaSchedule()
Schedule = Callable[[Any], Any]


def checked(lam: Any) -> float | Schedule:
    """Returns a number or schedule that was looked at.

    Args:
        lam: a number >= 0; a `LambdaSchedule`; or another function of the step (a scalar tensor, see `at`) in Python's
            arithmetic and TensorFlow's ops, such as one of ``keras.optimizers.schedules``.

    Raises:
        TypeError: it is none of these, or a function that fails.
        ValueError: a number, or a function's value at some step, that is negative or NaN.
    """
    if isinstance(lam, (bool, Real)):
        return _checks.host_lambda(lam)
    if not callable(lam):
        raise TypeError(f"lam: expected a number, a LambdaSchedule or another function of the step, got {lam!r}")
    if not isinstance(lam, LambdaSchedule):  # which has no other values
        _check_values(lam)
    return lam


def at(schedule: Schedule, step: Any) -> tf.Tensor:
    """Returns lambda at a step, a float32 scalar tensor.

    The schedule gets the step as int64; where it cannot compute with that (``10.0 / (1 + step)``), as float64, which is
    exact, too; and at last as float32 (``tf.maximum(1.0, 9.0 - step)``). It may hold Python's ``if``, as a
    ``tf.function`` may.

    Raises:
        TypeError: the schedule fails with each of them, or gives no number.
    """
    forms = [schedule] if tf.executing_eagerly() else [schedule, tf.function(schedule)]
    for form, dtype in itertools.product(forms, (tf.int64, tf.float64, tf.float32)):
        try:
            value = tf.cast(tf.convert_to_tensor(form(tf.cast(step, dtype))), tf.float32)
            return tf.ensure_shape(value, [])
        except (TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
            failure = error
    raise TypeError(
        "lam: expected a function of the step that gives a number, by arithmetic and TensorFlow's ops (tf.maximum and "
        f"tf.exp for max and math.exp), got {schedule!r}, which fails: {failure}"
    ) from failure


def initial(lam: float | Schedule) -> float:
    """Returns lambda at step 0 as float32 has it: what is too large is infinite, which has as little of a margin."""
    with np.errstate(over="ignore"):
        return _number(lam, 0) if callable(lam) else float(np.float32(lam))


def steps_of(optimizer: Any) -> Callable[[], tf.Tensor]:
    """Returns a function that tells how many steps an optimizer has taken, an int64 scalar tensor.

    It keeps the optimizer in a closure: as an attribute of a layer, the optimizer would be saved as a part of it.

    Raises:
        TypeError: it is no Keras optimizer.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"optimizer: expected a Keras optimizer, got {optimizer!r}")
    # Loss scaling skips steps. It passes the others on, and the first releases of Keras 3 count them nowhere else.
    counting = getattr(optimizer, "inner_optimizer", optimizer)
    return lambda: tf.convert_to_tensor(counting.iterations)


def serialize(lam: float | Schedule) -> Any:
    """Returns what a layer's config holds."""
    return keras.saving.serialize_keras_object(lam) if callable(lam) else lam


def deserialize(config: Any) -> Any:
    """Returns the number or schedule of a layer's config."""
    return keras.saving.deserialize_keras_object(config) if isinstance(config, dict) else config


def _check_values(schedule: Schedule) -> None:
    """Looks at a function at every step up to 10, and then at 8 steps a decade up to ten millions.

    For the user of ``9.0 - step``, whose logits would be NaN at a step that may be hours away. A function may rise, as
    one with warm restarts does.
    """
    for step in [*range(10), *(round(10 ** (1 + n / 8)) for n in range(49))]:
        value = _number(schedule, step)
        if not 0 <= value < math.inf:
            raise ValueError(f"lam: expected a function with finite values >= 0, got {value} at step {step}")


def _number(schedule: Schedule, step: int) -> float:
    with tf.init_scope():  # eager, wherever a layer is built
        return float(at(schedule, step))
