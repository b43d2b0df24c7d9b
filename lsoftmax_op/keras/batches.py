"""What comes in a batch beside the inputs: labels and weights of samples, and the weights that classes give them."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from lsoftmax_op.keras.labels import class_indices


def the_one(value: Any) -> Any:
    """Returns the labels or weights of a list that holds those of the one output, as Keras takes them, too."""
    is_list = isinstance(value, (list, tuple)) and len(value) == 1 and bool(getattr(value[0], "ndim", 0))
    return value[0] if is_list else value


def with_class_weights(batches: tf.data.Dataset, class_weight: dict[int, float], classes: int) -> tf.data.Dataset:
    """Returns the batches with the weights of their samples, those that Keras gives the samples of an array.

    Args:
        batches: of inputs and labels.
        class_weight: the weight of a class, 1 of one that is not there.
        classes: the number of classes.

    Raises:
        ValueError: the batches have weights of their own.
    """
    table = tf.constant([class_weight.get(c, 1.0) for c in range(-1, classes)], keras.config.floatx())

    def weighted(*data: Any) -> tuple[Any, ...]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if sample_weight is not None:
            raise ValueError("class_weight: expected None where the data set has sample weights, got both")
        y = the_one(y)
        labels = tf.clip_by_value(class_indices(y, classes, "y"), -1, classes - 1)  # the op tells of others
        return x, y, tf.gather(table, labels + 1)

    return batches.map(weighted).prefetch(tf.data.AUTOTUNE)
