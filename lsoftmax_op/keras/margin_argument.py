"""The argument `margin` of layer and classifier: an integer m, or a margin of `lsoftmax_op.margins`."""

from __future__ import annotations

from typing import Any

import keras

from lsoftmax_op import _checks
from lsoftmax_op.margins import Margin, margin_of

keras.saving.register_keras_serializable(package="lsoftmax_op")(Margin)


def checked(margin: Any, use_bias: bool) -> int | Margin:
    """Returns a margin that was looked at, an integer as an int.

    Args:
        margin: an integer from 1 to 64, or a `Margin`.
        use_bias: whether its layer has a bias.

    Raises:
        TypeError: it is neither.
        ValueError: an integer out of range; a bias with a margin that normalises or scales.
    """
    meant = margin_of(margin)
    if use_bias and meant.has_factors:
        raise ValueError(
            f"use_bias: expected False with a margin that normalises or scales, {_checks.shown(margin)}, got {use_bias}"
        )
    return margin if isinstance(margin, Margin) else meant.m1


def variables(margin: int | Margin) -> dict[str, Any]:
    """Returns those of its numbers that are variables, by their names."""
    margin = margin_of(margin)
    numbers = {f"margin_{name}": getattr(margin, name) for name in ("m2", "m3", "scale")}
    return {name: number for name, number in numbers.items() if hasattr(number, "assign")}


def serialize(margin: int | Margin) -> Any:
    """Returns what a layer's config holds; of a variable or tensor in the margin, its present value."""
    return keras.saving.serialize_keras_object(margin) if isinstance(margin, Margin) else margin


def deserialize(config: Any) -> Any:
    """Returns the margin of a layer's config."""
    return keras.saving.deserialize_keras_object(config) if isinstance(config, dict) else config
