"""Symbolic inputs for a model, with the names and data types that it is served with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import keras
import tensorflow as tf


def declared(backbone: keras.Layer) -> Any:
    """Returns the inputs that a functional or sequential model declares, as it takes them; None of any other."""
    inputs = getattr(backbone, "inputs", None)
    if not inputs:
        return None
    return inputs[0] if isinstance(backbone, keras.Sequential) else backbone.input


def like(inputs: Any, float_dtype: str) -> Any:
    """Returns symbolic inputs like some tensors or arrays [N, ...]: for any N, floats of a given dtype."""
    shapes = keras.tree.map_structure(lambda one: tuple(one.shape), inputs)
    dtypes = (tf.as_dtype(one.dtype) for one in keras.tree.flatten(inputs))
    return of_shapes(shapes, (float_dtype if dtype.is_floating else dtype.name for dtype in dtypes))


def of_shapes(shapes: Any, dtypes: Iterable[str]) -> Any:
    """Returns symbolic inputs of a structure of shapes [N, ...], for any N.

    Args:
        shapes: the structure.
        dtypes: those of its shapes, in the order in which Keras flattens it.
    """
    dtypes, names = iter(dtypes), _names(shapes)
    return keras.tree.map_shape_structure(
        lambda shape: keras.Input(batch_shape=(None, *shape[1:]), dtype=next(dtypes), name=next(names)), shapes
    )


def anew(inputs: Any) -> Any:
    """Returns symbolic inputs like others, for any batch size."""
    return keras.tree.map_structure(
        lambda one: keras.Input(batch_shape=(None, *one.shape[1:]), dtype=one.dtype, name=one.name), inputs
    )


def shapes_of(inputs: Any) -> Any:
    """Returns the structure of the inputs' shapes."""
    return keras.tree.map_structure(lambda one: tuple(one.shape), inputs)


def dtypes_of(inputs: Any) -> list[str]:
    """Returns the inputs' data types, flat."""
    return [one.dtype for one in keras.tree.flatten(inputs)]


def _names(shapes: Any) -> Iterator[str]:
    """The keys of a dict; else, as in Keras' own exports, args_0, args_0_1, ..."""
    if isinstance(shapes, dict) and not any(isinstance(one, dict) for one in shapes.values()):
        return (str(key).replace("/", "_") for key in sorted(shapes))
    return (f"args_0_{n}" if n else "args_0" for n in count())
